"""The two routes that Twilio calls: verify, parse, record, answer."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import structlog
from flask import Blueprint, Request, Response, abort, request
from flask.globals import request_ctx
from redis.exceptions import RedisError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.wrappers import Response as WerkzeugResponse

from shared.domain.endpoints import EVENTS_PATH, INBOUND_PATH
from shared.domain.events import Change, OptOutEvent
from shared.domain.keywords import learnable
from shared.errors import Forged, Malformed, Rejected
from shared.messaging.record_events import Submission
from shared.redis_client import redis_cause
from web.context import Services, leave_event_loop, services
from web.recording import submit
from web.twilio.limits import EVENTS_LIMIT_BYTES, INBOUND_LIMIT_BYTES, MAX_PARAMETERS, QUERY_LIMIT_BYTES
from web.twilio.parsing import InboundMessage, message_of_form, messages_of_events
from web.twilio.signature import SETTINGS_HEADER
from web.twilio.twiml import CONTENT_TYPE, EMPTY_RESPONSE, empty_response

log = structlog.get_logger(__name__)
twilio_webhooks = Blueprint("twilio", __name__)


@twilio_webhooks.post(INBOUND_PATH, strict_slashes=False)
def inbound() -> Response:
    """A Messaging Service's or number's inbound-message webhook."""
    own = services()
    message = _verified_message(own, request_ctx.request)
    projects = _record(own, "inbound", [message])
    return Response(own.router.answer(projects), content_type=CONTENT_TYPE)


def _verified_message(own: Services, sent: Request) -> InboundMessage:
    """The message of a form that Twilio signed. Raises Forged or Malformed."""
    sent.max_content_length = INBOUND_LIMIT_BYTES
    signature = sent.headers.get("X-Twilio-Signature")
    if not signature:  # checked first, so that no unsigned body is parsed
        raise Forged("no_signature")
    if sent.mimetype != "application/x-www-form-urlencoded":
        raise Malformed("no_form")
    if sent.get_data().count(b"&") >= MAX_PARAMETERS:
        raise Malformed("too_many_parameters")
    form = sent.form
    settings = sent.headers.get(SETTINGS_HEADER)
    own.verifier.verify_form(_called_url(own, sent), form, signature, form.get("AccountSid"), settings)
    return message_of_form(form)


@twilio_webhooks.post(EVENTS_PATH, strict_slashes=False)
def events() -> Response:
    """An Event Streams webhook sink."""
    own, sent = services(), request_ctx.request
    sent.max_content_length = EVENTS_LIMIT_BYTES
    body = sent.get_data(cache=False)
    signature, settings = sent.headers.get("X-Twilio-Signature"), sent.headers.get(SETTINGS_HEADER)
    signers = own.verifier.verify_json(_called_url(own, sent), body, signature, settings)
    if len(body) > INBOUND_LIMIT_BYTES:
        leave_event_loop()  # thousands of events may be in it
    messages, rejected = messages_of_events(body)
    # The token of one account must not authenticate events of another account.
    signed = [message for message in messages if message.account_sid in signers]
    rejected += [Forged("foreign_account")] * (len(messages) - len(signed))
    if rejected and not signed:
        raise rejected[0]
    _record(own, "events", signed)
    # One bad event does not reject the others: Event Streams does not send a rejected batch again.
    for error in rejected:
        _count_rejection(error.status, error.reason)
    return empty_response()


def _called_url(own: Services, sent: Request) -> str:
    """The address that Twilio called: from the configuration, not from headers that any client can set.

    Raises Malformed.
    """
    if len(sent.query_string) > QUERY_LIMIT_BYTES:
        raise Malformed("query_too_long")
    query = sent.query_string.decode("latin-1")
    return own.config.public_url.rstrip("/") + sent.path + (f"?{query}" if query else "")


def _record(own: Services, endpoint: str, messages: Sequence[InboundMessage]) -> list[str]:
    """Record what the messages change. Returns the projects of the last message, or answers with 503."""
    now = datetime.now(UTC)
    projects: list[str] = []
    changes: list[OptOutEvent] = []
    for message in messages:
        projects = _projects(own, message)
        changes += own.router.events(message, projects, now)
    if not changes:
        own.request_counter.add(endpoint, "ignored" if projects else "no_project")
    elif not submit(own, Submission(endpoint, changes, now, list(_words(messages, changes)))):
        abort(503)
    return projects


def _words(
    messages: Sequence[InboundMessage], changes: Sequence[OptOutEvent]
) -> Iterator[tuple[set[str], str, Change]]:
    """The words that Twilio's Advanced Opt-Out treats as keywords: the message log does not say so."""
    for message in messages:
        if message.opt_out_type in {"STOP", "START"} and (word := learnable(message.body)):
            scopes = {event.scope for event in changes if event.event_id == message.message_sid}
            yield scopes, word, Change(message.opt_out_type)


def _projects(own: Services, message: InboundMessage) -> list[str]:
    """The projects that a message was sent to."""
    projects = own.router.projects(message)
    if not projects:
        log.warning("message_of_no_project", message_sid=message.message_sid)
    return projects


@twilio_webhooks.app_errorhandler(Rejected)
def handle_rejected(error: Rejected) -> Response:
    """Forged or malformed: nothing is stored."""
    _count_rejection(error.status, error.reason)
    return empty_response(error.status)


@twilio_webhooks.app_errorhandler(HTTPException)
def handle_http_error(error: HTTPException) -> WerkzeugResponse:
    """Too large, wrong method, unknown path, not stored, or an internal error: no HTML page of werkzeug's."""
    if error.code == RequestEntityTooLarge.code:
        _count_rejection(error.code, "too_large")
    response = error.get_response()
    response.set_data(EMPTY_RESPONSE)
    response.content_type = CONTENT_TYPE
    return response


@twilio_webhooks.app_errorhandler(RedisError)
def handle_redis_error(error: RedisError) -> Response:
    """Redis is unavailable: a 503 makes Twilio retry (a 2xx would promise what we cannot keep)."""
    log.error("not_stored", error=redis_cause(error))
    return empty_response(503)


def _count_rejection(status: int, reason: str) -> None:
    endpoint = request.path.rstrip("/").rpartition("/")[2]
    services().request_counter.add(endpoint, reason, status)
