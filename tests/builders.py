"""What many tests need: configurations, events, requests as Twilio signs them. Only what differs is named."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from shared.config import Config, parse_config
from shared.domain.addresses import PhoneHasher
from shared.domain.events import Change, OptOutEvent, Source
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, SENDER, SERVICE_SID

HASH_KEY = "a-key-for-tests-only"
REDCAP_TOKEN = "A" * 32
REDCAP_URL = "https://redcap.example.edu/api/"
NOTIFIED = "coordinator@example.edu"

# What the references in `config()` resolve to; tests set them as environment variables.
SECRETS = {
    "OPTOUT_HASH_KEY": HASH_KEY,
    "OPTOUT_SMTP_URL": "smtp://127.0.0.1:1",
    "TEST_AUTH_TOKEN": AUTH_TOKEN,
    "TEST_REDCAP_TOKEN": REDCAP_TOKEN,
}

hashed = PhoneHasher(HASH_KEY)
_numbers = itertools.count(1)


def sid(number: int | None = None, prefix: str = "SM") -> str:
    """A message SID; each call without a number gives another."""
    return f"{prefix}{next(_numbers) if number is None else number:032x}"


def project_table(**changes: Any) -> dict[str, Any]:
    """A [projects.NAME] table; a change to None takes the key out."""
    table = {
        "redcap_url": REDCAP_URL,
        "redcap_token": "env:TEST_REDCAP_TOKEN",
        "twilio": "main",
        "messaging_service_sid": SERVICE_SID,
        "phone_field": "mobile",
        "opt_out_field": "sms_opt_out_at",
        "notify": [NOTIFIED],
        "redcap_requests_per_minute": 6000,
    }
    return {key: value for key, value in {**table, **changes}.items() if value is not None}


def document(projects: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """A parsed configuration file; a change to None takes the key out."""
    whole = {
        "public_url": PUBLIC_URL,
        "time_zone": "America/Los_Angeles",
        "smtp": {"sender": "optout-bridge@example.edu"},
        "twilio": {"main": {"account_sid": ACCOUNT_SID, "auth_token": "env:TEST_AUTH_TOKEN"}},
        "projects": {"asthma": project_table()} if projects is None else dict(projects),
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def config(projects: Mapping[str, Mapping[str, Any]] | None = None, **changes: Any) -> Config:
    """A checked configuration."""
    return parse_config(document(projects, **changes))


def at(text: str) -> datetime:
    """A moment from its ISO 8601 text; UTC unless it says otherwise."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def opt_out_event(
    phone: str = "+16505550100",
    change: str | Change = Change.STOP,
    *,
    when: datetime | None = None,
    event_id: str | None = None,
    project: str = "asthma",
    source: Source = Source.WEBHOOK,
    phone_hash: str | None = None,
    scope: str = SERVICE_SID,
    blocked: bool = True,
) -> OptOutEvent:
    """An event; its phone is given as E.164, and hashed."""
    return OptOutEvent(
        project=project,
        event_id=event_id or sid(),
        change=Change(change),
        occurred_at=when or datetime.now(UTC),
        source=source,
        phone_hash=hashed(phone) if phone_hash is None else phone_hash,
        scope=scope,
        blocked=blocked,
    )


def inbound_form(**changes: str | None) -> dict[str, str]:
    """The parameters of an inbound-message webhook; a change to None leaves one out."""
    form: dict[str, str | None] = {
        "MessageSid": sid(),
        "AccountSid": ACCOUNT_SID,
        "MessagingServiceSid": SERVICE_SID,
        "From": "+16505550100",
        "To": SENDER,
        "Body": "STOP",
        "OptOutType": "STOP",
        "NumMedia": "0",
        "FromCity": "",
    }
    return {name: value for name, value in {**form, **changes}.items() if value is not None}


def cloud_event(**changes: Any) -> dict[str, Any]:
    """An inbound-message CloudEvent; changes are to its data, and None leaves one out."""
    data = {
        "messageSid": sid(),
        "accountSid": ACCOUNT_SID,
        "messagingServiceSid": SERVICE_SID,
        "from": "+16505550100",
        "to": SENDER,
        "body": "STOP",
        "optOutType": "STOP",
        "timestamp": "2026-05-04T10:20:30.456Z",
        "numMedia": 0,
    }
    return {
        "specversion": "1.0",
        "type": "com.twilio.messaging.inbound-message.received",
        "id": "EZ" + "0" * 32,
        "time": "2026-05-04T10:20:31.000Z",
        "data": {name: value for name, value in {**data, **changes}.items() if value is not None},
    }


def batch(*events: Mapping[str, Any]) -> bytes:
    """The body of an Event Streams delivery."""
    return json.dumps(list(events)).encode()


def repeated(form: Mapping[str, str], **more: Sequence[str]) -> list[tuple[str, str]]:
    """A form as pairs, with some parameters given several times."""
    pairs = [(name, value) for name, value in form.items() if name not in more]
    return pairs + [(name, value) for name, values in more.items() for value in values]
