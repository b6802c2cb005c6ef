"""The two routes that Twilio calls: verify, parse, store, answer."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import structlog
from flask import Blueprint, Response, current_app, request
from redis.exceptions import RedisError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.wrappers import Response as WerkzeugResponse

from shared.domain.endpoints import EVENTS_PATH, INBOUND_PATH
from shared.domain.events import OptOutEvent
from shared.errors import Forged, Malformed, Rejected
from shared.messaging.record_events import accept
from web.twilio.parsing import InboundMessage, message_of_form, messages_of_events
from web.twilio.routing import SILENCE

if TYPE_CHECKING:
    from web.app import Services

# An inbound message has at most 1,600 characters and ten media links; an Event Streams batch holds one event
# today, but is documented as an array.
INBOUND_LIMIT_BYTES = 64 * 1024
EVENTS_LIMIT_BYTES = 1024 * 1024
# Twilio sends some 40, and 20 more with ten media links. To check a signature all are sorted by their names, twice
# for each token: with 16,000 of them a forgery would cost seconds.
MOST_PARAMETERS = 128
# A body's hash and the few parameters of one's own that an address may have.
QUERY_LIMIT_BYTES = 2048

# Never text/plain: Twilio would send it to the participant. Source: Twilio docs, "TwiML for Programmable
# Messaging".
XML = "text/xml; charset=utf-8"

log = structlog.get_logger(__name__)
webhook = Blueprint("webhook", __name__)


@webhook.post(INBOUND_PATH, strict_slashes=False)
def inbound() -> Response:
    """A Messaging Service's or number's inbound-message webhook."""
    request.max_content_length = INBOUND_LIMIT_BYTES
    services = _services()
    signature = request.headers.get("X-Twilio-Signature")
    if not signature:  # whatever it holds, it is not Twilio's
        raise Forged("no_signature")
    if request.mimetype != "application/x-www-form-urlencoded":
        raise Malformed("no_form")
    if request.get_data().count(b"&") >= MOST_PARAMETERS:
        raise Malformed("too_many_parameters")
    form = request.form
    services.verifier.verify_form(_public_url(), form, signature, form.get("AccountSid"))
    message = message_of_form(form)
    projects = _store("inbound", [message])
    return _twiml(services.router.answer(projects))


@webhook.post(EVENTS_PATH, strict_slashes=False)
def events() -> Response:
    """An Event Streams webhook sink."""
    request.max_content_length = EVENTS_LIMIT_BYTES
    body = request.get_data(cache=False)
    signers = _services().verifier.verify_json(_public_url(), body, request.headers.get("X-Twilio-Signature"))
    messages, refused = messages_of_events(body)
    # One account's token must not speak for another account.
    own = [message for message in messages if message.account_sid in signers]
    refused += [ForeignAccount() for _ in range(len(messages) - len(own))]
    if refused and not own:
        raise refused[0]
    _store("events", own)
    # They do not keep the others out: a whole batch that is refused does not come again.
    for error in refused:
        _note_refusal(error.status, error.reason)
    return _twiml(SILENCE)


class ForeignAccount(Rejected):
    """An event of an account that did not sign the batch."""

    status = 403

    def __init__(self) -> None:
        super().__init__("foreign_account")


def _services() -> "Services":
    return cast("Services", current_app.extensions["optout"])


def _public_url() -> str:
    """The address that Twilio called: as configured, never guessed from headers that anybody can send.

    Raises Malformed.
    """
    if len(request.query_string) > QUERY_LIMIT_BYTES:
        raise Malformed("query_too_long")
    query = request.query_string.decode("latin-1")
    return _services().config.public_url.rstrip("/") + request.path + (f"?{query}" if query else "")


def _store(endpoint: str, messages: Sequence[InboundMessage]) -> list[str]:
    """Record what the messages change. Answers the projects of the last one."""
    services, now = _services(), datetime.now(UTC)
    projects: list[str] = []
    changes: list[OptOutEvent] = []
    for message in messages:
        projects = services.router.projects(message)
        changes += services.router.events(message, projects, now)
        if ordinary := services.router.ordinary(message, projects):
            services.ledger.note_ordinary(ordinary, message.message_sid, now=now)
        if not projects:
            log.warning("message_of_no_project", message_sid=message.message_sid)
    if not changes:
        services.tally.add(endpoint, "ignored")
        return projects
    answers = accept(
        changes,
        ledger=services.ledger,
        publish=services.publish,
        now=now,
        counted=("webhooks", endpoint, "accepted"),
    )
    for event, answer in zip(changes, answers, strict=True):
        log.info(
            "opt_out_event", project=event.project, event_id=event.event_id, change=event.change,
            source=event.source, answer=answer,
        )  # fmt: skip
    return projects


def _twiml(document: str, status: int = 200) -> Response:
    return Response(document, status=status, content_type=XML)


@webhook.app_errorhandler(Rejected)
def turned_away(error: Rejected) -> Response:
    """Forged or malformed: nothing is stored."""
    return _refusal(error.status, error.reason)


@webhook.app_errorhandler(HTTPException)
def no_page(error: HTTPException) -> WerkzeugResponse:
    """Wrong method, unknown path or a mistake of ours: an empty document, never werkzeug's HTML page."""
    response = error.get_response()
    response.set_data(SILENCE)
    response.content_type = XML
    return response


@webhook.app_errorhandler(RequestEntityTooLarge)
def too_large(_error: RequestEntityTooLarge) -> Response:
    """Longer than any message is."""
    return _refusal(413, "too_large")


@webhook.app_errorhandler(RedisError)
def not_stored(error: RedisError) -> Response:
    """The store is away: Twilio is asked to come again (a 2xx would promise what we cannot keep)."""
    log.error("not_stored", error=type(error).__name__)
    return _twiml(SILENCE, 503)


def _refusal(status: int, reason: str) -> Response:
    _note_refusal(status, reason)
    return _twiml(SILENCE, status)


def _note_refusal(status: int, reason: str) -> None:
    _services().tally.add(request.path.rstrip("/").rpartition("/")[2], reason, status)
