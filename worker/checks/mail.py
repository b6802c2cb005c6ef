"""The mail server: can we log in? And the projects' own templates."""

from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

from shared.config import Config
from shared.errors import ConfigError, MailDeferred, MailRejected
from shared.redis_client import RedisClient
from worker.checks.configuration import in_the_clear
from worker.checks.findings import Finding, Passed
from worker.mail.smtp import make_mailer
from worker.mail.template_check import template_problems

SUBJECT = "smtp"


def check_mail(config: Config, redis: RedisClient) -> Iterator[Finding | Passed]:
    """Connect and log in, without sending anything."""
    if config.smtp is None:
        return
    try:
        url = config.smtp.url.resolve()
        mailer = make_mailer(config, config.smtp, redis)
    except ConfigError as error:
        if not error.source.startswith(("env:", "file:")):  # a missing secret is reported as such
            yield Finding(id="smtp-refused", subject=SUBJECT, observed=error.problems[0])
        return
    if _shows_password(url):
        yield Finding(id="smtp-in-the-clear", subject=SUBJECT, observed="a password, and no TLS")
    try:
        mailer.check()
    except (MailDeferred, MailRejected) as error:
        answered = error.code not in {"smtp_unreachable", "smtp_deferred"}
        found = "smtp-refused" if answered else "smtp-unreachable"
        yield Finding(id=found, subject=SUBJECT, observed=f"{mailer.address}: {error}")
    else:
        yield Passed(SUBJECT, f"{mailer.address} lets us in")


def _shows_password(url: str) -> bool:
    parts = urlsplit(url)
    starttls = parse_qs(parts.query).get("starttls", ["false"])[-1].lower() in {"true", "1", "yes"}
    clear = parts.scheme == "smtp" and not starttls
    return clear and bool(parts.password) and in_the_clear(f"http://{parts.hostname}/")


def check_templates(config: Config, projects: list[str]) -> Iterator[Finding]:
    """Render every template of the projects' own once."""
    for name in projects:
        folder = config.projects[name].templates
        for problem in template_problems(folder) if folder else ():
            yield Finding(id="templates-broken", subject=name, observed=problem)
