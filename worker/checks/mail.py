"""The mail server: connection, login, sender and recipients; and the projects' own templates."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from urllib.parse import parse_qs, urlsplit

from shared.config import Config
from shared.config.schema import Smtp
from shared.errors import ConfigError, MailDeferred, MailRejected
from shared.redis_client import RedisClient
from worker.checks.configuration import in_the_clear
from worker.checks.findings import Finding, FindingId, Passed
from worker.mail.smtp import Mailer, make_mailer
from worker.mail.template_check import template_problems
from worker.mail.verdicts import Recipients

SUBJECT = "smtp"
# RFC 5321, section 4.5.3.1.8: every server accepts this many in one transaction.
MAX_RECIPIENTS = 100

# Codes of errors, and the findings that they are; others are smtp-refused.
_FINDINGS: dict[str, FindingId] = {
    "smtp_unreachable": "smtp-unreachable",
    "smtp_deferred": "smtp-deferred",
    "smtp_greeting_rejected": "smtp-helo-rejected",
    "smtp_login_rejected": "smtp-login-rejected",
    "smtp_login_paused": "smtp-login-rejected",
    "smtp_sender_rejected": "smtp-sender-rejected",
    "smtp_relay_rejected": "smtp-relay-denied",
    "oauth2_unreachable": "smtp-token-endpoint-unreachable",
    "oauth2_client_rejected": "smtp-client-rejected",
}
# Replies whose code says more than the stage: servers such as Postfix judge greeting and sender at RCPT, Exchange
# Online judges the sender after the content. RFC 4954, section 6: 530 demands a login.
_BY_REPLY: tuple[tuple[str, FindingId], ...] = (
    (r"code 504\b", "smtp-helo-rejected"),
    (r"code 530\b", "smtp-login-rejected"),
    (r"code (\d{3} 5\.1\.[78]|553 5\.7\.1|\d{3} 5\.7\.60|\d{3} 5\.2\.252)\b", "smtp-sender-rejected"),
)


def check_mail(config: Config, projects: list[str], redis: RedisClient) -> Iterator[Finding | Passed]:
    """Connect, log in, and ask about sender and recipients, without sending anything."""
    if config.smtp is None:
        return
    try:
        mailer = make_mailer(config, config.smtp, redis)
    except ConfigError as error:
        if not error.source.startswith(("env:", "file:")):  # a missing secret is reported as such
            yield Finding(id="smtp-refused", subject=SUBJECT, observed=error.problems[0])
        return
    if _shows_secret(config.smtp):
        yield Finding(
            id="smtp-in-the-clear", subject=SUBJECT, observed="a password or an access token, and no TLS"
        )
    notify = {(name, "notify"): config.projects[name].notify for name in projects}
    try:
        yield from _recipients(mailer, notify | {(SUBJECT, "operator.notify"): config.operator.notify})
    except (MailDeferred, MailRejected) as error:
        found = _finding_of(error, config.smtp)
        yield Finding(id=found, subject=SUBJECT, observed=_observed(error, mailer.address))
        return
    yield from _last_rejection(mailer)


def _observed(error: MailDeferred | MailRejected, address: str) -> str:
    """With the server's address, unless the error names it already."""
    return str(error) if error.detail.startswith(address) else f"{address}: {error}"


def _finding_of(error: MailDeferred | MailRejected, smtp: Smtp) -> FindingId:
    if isinstance(error, MailRejected):
        return "smtp-recipient-rejected"
    if "oauth2_client_rejected" in str(error):  # also if it is why logins are paused
        return "smtp-client-rejected"
    found = _by_reply(error.detail) or _FINDINGS.get(error.code, "smtp-refused")
    return "smtp-token-rejected" if found == "smtp-login-rejected" and smtp.oauth2 else found


def _by_reply(detail: str) -> FindingId | None:
    return next((found for pattern, found in _BY_REPLY if re.search(pattern, detail)), None)


def _recipients(
    mailer: Mailer, notify: Mapping[tuple[str, str], Sequence[str]]
) -> Iterator[Finding | Passed]:
    """Ask the server about all recipients, by subject and key. Raises as the mailer does."""
    addresses = list(dict.fromkeys(chain.from_iterable(notify.values())))[:MAX_RECIPIENTS]
    missed = mailer.check(addresses)
    accepted = len(addresses) - len(missed.rejected) - len(missed.deferred)
    seen = f"{mailer.address} accepts connection, login and sender, and {accepted} of {len(addresses)} recipients"
    yield Passed(SUBJECT, seen)
    for (subject, key), recipients in notify.items():
        yield from _missed(subject, key, recipients, missed)


def _missed(subject: str, key: str, recipients: Sequence[str], missed: Recipients) -> Iterator[Finding]:
    """Findings about recipients, which are named by their place, not by their address."""
    denied = _by_reply(missed.reason) or "smtp-relay-denied"
    deferred = denied if missed.reason.startswith("code 5") else "smtp-deferred"
    results: list[tuple[FindingId, Collection[str], str]] = [
        ("smtp-recipient-rejected", missed.rejected, "rejected"),
        (deferred, missed.deferred, missed.reason),
    ]
    for found, addresses, reason in results:
        places = [str(place) for place, address in enumerate(recipients, 1) if address in addresses]
        if places:
            observed = f"{key}, address {', '.join(places)} of {len(recipients)}: {reason}"
            yield Finding(id=found, subject=subject, observed=observed)


def _last_rejection(mailer: Mailer) -> Iterator[Finding]:
    """What a server says only after the content of a mail was sent."""
    if rejection := mailer.last_rejection():
        found = _by_reply(rejection) or "smtp-message-rejected"
        yield Finding(id=found, subject=SUBJECT, observed=f"{mailer.address}: last e-mail: {rejection}")


def _shows_secret(smtp: Smtp) -> bool:
    parts = urlsplit(smtp.url.resolve())
    starttls = parse_qs(parts.query).get("starttls", ["false"])[-1].lower() in {"true", "1", "yes"}
    clear = parts.scheme == "smtp" and not starttls
    has_secret = bool(parts.password) or smtp.oauth2 is not None
    return clear and has_secret and in_the_clear(f"http://{parts.hostname}/")


def check_templates(config: Config, projects: list[str]) -> Iterator[Finding]:
    """Render every template of the projects' own once."""
    for name in projects:
        folder = config.projects[name].templates
        for problem in template_problems(folder) if folder else ():
            yield Finding(id="templates-broken", subject=name, observed=problem)
