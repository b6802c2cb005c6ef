"""Requests from Twilio to InboundMessage. Pure: no network, no Redis, no Flask."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from shared.domain.endpoints import INBOUND_EVENT
from shared.domain.events import Source
from shared.errors import Malformed, Rejected

# 34 characters at Twilio. SIDs become Redis keys and appear in logs, so nothing else is accepted.
_SID = re.compile(r"[A-Z]{2}[0-9A-Za-z]{8,62}")
# Since Twilio exists. The ledger cannot hold times before 1970 (negative milliseconds).
_YEARS = range(2008, 2100)
# As forms spell them; the data of events begins them with a small letter.
_NAMES = ("MessageSid", "AccountSid", "MessagingServiceSid", "From", "To", "Body", "OptOutType")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class InboundMessage:
    """A message that a participant sent. Exists for one request only; never stored or logged."""

    message_sid: str
    account_sid: str
    messaging_service_sid: str
    sender: str
    recipient: str
    body: str
    opt_out_type: str
    source: Source
    occurred_at: datetime | None  # None: Twilio sent no time; the time of receipt is used


class Form(Protocol):
    """The part of werkzeug's MultiDict that is used here."""

    def getlist(self, key: str) -> list[str]: ...


def message_of_form(form: Form) -> InboundMessage:
    """Read the form of an inbound-message webhook. Raises Malformed.

    It holds no time. Source: Twilio docs, "Twilio's request to your incoming message webhook URL".
    """
    return _message(partial(_single, form), _NAMES, source=Source.WEBHOOK, occurred_at=None)


def messages_of_events(body: bytes) -> tuple[list[InboundMessage], list[Rejected]]:
    """Read an Event Streams batch: a JSON array of CloudEvents, or a single one. Raises Malformed if it is neither.

    Returns its messages, and the errors of those that cannot be read. Events of other types, such as the sink's
    test event, are skipped.
    """
    messages: list[InboundMessage] = []
    rejected: list[Rejected] = []
    for event in _batch(body):
        if event.get("type") == INBOUND_EVENT:
            try:
                messages.append(_message_of_event(event))
            except Malformed as error:
                rejected.append(error)
    return messages, rejected


def _batch(body: bytes) -> list[dict[str, Any]]:
    try:
        batch = json.loads(body)
    except (ValueError, RecursionError):  # RecursionError: nested a thousand times
        raise Malformed("not_json") from None
    if isinstance(batch, dict) and "specversion" in batch:
        batch = [batch]
    if not isinstance(batch, list) or not all(isinstance(event, dict) for event in batch):
        raise Malformed("not_an_array_of_events")
    return batch


def _message_of_event(event: dict[str, Any]) -> InboundMessage:
    data = event.get("data")
    if not isinstance(data, dict):
        raise Malformed("event_without_data")
    occurred_at = _time(_text(data, "timestamp") or _text(event, "time"))
    names = [name[0].lower() + name[1:] for name in _NAMES]
    return _message(partial(_text, data), names, source=Source.EVENT_STREAM, occurred_at=occurred_at)


def _message(
    value: Callable[[str], str], names: Sequence[str], *, source: Source, occurred_at: datetime | None
) -> InboundMessage:
    """Read a message, given what reads one of its parameters and how these are spelt."""
    message_sid, account_sid, service_sid, sender, recipient, body, opt_out_type = names
    return InboundMessage(
        message_sid=_sid(value(message_sid)), account_sid=_sid(value(account_sid)),
        messaging_service_sid=value(service_sid), sender=_required(sender, value(sender)),
        recipient=_required(recipient, value(recipient)), body=value(body),
        opt_out_type=value(opt_out_type).upper(), source=source, occurred_at=occurred_at,
    )  # fmt: skip


def _single(form: Form, name: str) -> str:
    """A parameter's value, or empty. Raises Malformed if it is repeated: which of two numbers would be right?"""
    values = form.getlist(name)
    if len(values) > 1:
        raise Malformed(f"repeated_{name}")
    return values[0] if values else ""


def _text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{name}_is_not_text")
    return value


def _required(name: str, value: str) -> str:
    if not value.strip():
        raise Malformed(f"no_{name}")
    return value.strip()


def _sid(value: str) -> str:
    if not _SID.fullmatch(value):
        raise Malformed("no_sid")
    return value


def _time(value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise Malformed("no_timestamp") from None
    if moment.year not in _YEARS:
        raise Malformed("strange_timestamp")
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
