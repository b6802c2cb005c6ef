"""What the ingress is measured against: other Flask applications, and HTTP alone."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from flask import Flask, Response, request
from twilio.request_validator import RequestValidator

from tests.simulators.twilio import AUTH_TOKEN, PUBLIC_URL

INBOUND = "/twilio/inbound"
EMPTY_RESPONSE = '<?xml version="1.0" encoding="UTF-8"?><Response />'


def _silence() -> Response:
    return Response(EMPTY_RESPONSE, content_type="text/xml; charset=utf-8")


def _verified() -> bool:
    signature = request.headers.get("X-Twilio-Signature", "")
    return bool(RequestValidator(AUTH_TOKEN).validate(PUBLIC_URL + request.path, request.form, signature))


def make_bare() -> Flask:
    """Reads the form and answers: the least that Flask can do."""
    app = Flask("bare", static_folder=None)

    @app.post(INBOUND)
    def inbound() -> Response:
        assert request.form["MessageSid"]
        return _silence()

    return app


def make_verify_only() -> Flask:
    """Verifies the signature and answers; keeps nothing."""
    app = Flask("verify_only", static_folder=None)

    @app.post(INBOUND)
    def inbound() -> Response:
        return _silence() if _verified() else Response(status=403)

    return app


def make_textbook() -> Flask:
    """The textbook route: verify, then `task.delay`. Celery's own defaults; nothing stored, nothing deduplicated."""
    app = Flask("textbook", static_folder=None)
    celery = Celery("textbook", broker=os.environ["OPTOUT_REDIS_URL"], set_as_current=False)
    celery.conf.task_ignore_result = True

    @celery.task(name="textbook.handle")
    def handle(message_sid: str, sender: str, recipient: str, change: str) -> None:
        """Never runs here: only its publishing is measured."""

    @app.post(INBOUND)
    def inbound() -> Response:
        if not _verified():
            return Response(status=403)
        form = request.form
        handle.delay(form["MessageSid"], form["From"], form["To"], form["OptOutType"])
        return _silence()

    return app


async def http(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Reads the body and answers: HTTP alone, without Flask."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"text/xml"), (b"content-length", str(len(EMPTY_RESPONSE)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": EMPTY_RESPONSE.encode()})


bare = make_bare()
verify_only = make_verify_only()
textbook = make_textbook()
