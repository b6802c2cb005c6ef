"""Builds the console: who may read it, headers that forbid scripts, and pages for errors."""

import structlog
from flask import Flask, Response, render_template, request
from redis.exceptions import RedisError
from werkzeug.exceptions import HTTPException

from shared.redis_client import redis_cause
from web.console import words
from web.console.context import ConsoleServices, console, init_console, local_text
from web.console.event_views import events
from web.console.login import TooManyAttempts
from web.console.platform_views import platform
from web.console.study_views import studies

# Nothing is loaded but the style sheet and the icon, and nothing is sent but the filter's form.
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# Anyone may see them: they contain nothing.
OPEN_PATHS = {"/healthz", "/static/console.css", "/static/icon.svg"}

log = structlog.get_logger(__name__)


def create_console(services: ConsoleServices) -> Flask:
    """The WSGI application."""
    app = Flask("web.console")
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.globals.update(words=words, number_of=words.number_of)
    app.jinja_env.filters["local"] = local_text
    for name in app.jinja_env.list_templates(extensions=["html"]):
        app.jinja_env.get_template(name)  # compiled now, so that the first visitor need not wait
    init_console(app, services)
    app.before_request(require_login)
    app.after_request(add_headers)
    app.register_error_handler(RedisError, handle_redis_error)
    app.register_error_handler(HTTPException, handle_http_error)
    for blueprint in (studies, events, platform):
        app.register_blueprint(blueprint)
    return app


def require_login() -> Response | None:
    """Answer 401 or 429 to a request without a valid login."""
    if request.path in OPEN_PATHS:
        return None
    gate, address = console().gate, request.remote_addr or ""
    header = request.headers.get(gate.header.name) if gate.header else None
    try:
        if gate.admits(request.authorization, header, address):
            return None
    except TooManyAttempts:
        return Response("Too many wrong logins. Try again in a minute.\n", 429, {"Retry-After": "60"})
    challenge = {"WWW-Authenticate": 'Basic realm="Opt-Out Bridge console", charset="UTF-8"'}
    return Response("The console needs a login.\n", 401, challenge)


def add_headers(response: Response) -> Response:
    """Forbid scripts, frames, foreign content and copies in caches."""
    response.headers.update(HEADERS)
    return response


def handle_redis_error(error: RedisError) -> tuple[str, int]:
    """Redis does not answer, or this user lacks a right. Its text may repeat the address."""
    log.error("console_without_redis", error=redis_cause(error))
    return render_template("error.html", title="Redis does not answer", text=redis_cause(error)), 503


def handle_http_error(error: HTTPException) -> tuple[str, int]:
    """Such as 404."""
    return render_template("error.html", title=error.name, text=""), error.code or 500
