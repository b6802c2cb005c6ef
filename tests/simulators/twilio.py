"""A stand-in for Twilio: participants who text, signed webhooks, Event Streams, and the REST API.

It knows nothing of the program under test, and nothing here reaches the internet: a public URL is
delivered to whatever address its route names. What it does follows Twilio's public documentation and
API description (github.com/twilio/twilio-oai); where those are silent a comment says what was chosen.

    sim = TwilioSimulator(public_url="https://optout.example.edu", deliver_to="http://127.0.0.1:8000")
    with sim.serve() as server:          # the REST API, at server.url
        texted = sim.text(from_="+16505550100", body="STOP")
        texted.status, texted.body       # what the webhook answered

Run alone: python -m tests.simulators.twilio --port 9001 --deliver-to http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import hashlib
import itertools
import json
import re
import secrets
import signal
import socket
import struct
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from enum import StrEnum
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit, urlunsplit

import requests
from flask import Flask, Response, g, jsonify, request
from flask.typing import ResponseReturnValue
from twilio.request_validator import RequestValidator
from urllib3.exceptions import MaxRetryError, NewConnectionError
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server

ACCOUNT_SID = "AC" + "0" * 30 + "a1"
AUTH_TOKEN = "0123456789abcdef0123456789abcdef"
SERVICE_SID = "MG" + "0" * 30 + "b1"
SENDER = "+16505550199"
PUBLIC_URL = "https://optout.example.edu"
INBOUND_PATH = "/twilio/inbound"
EVENTS_PATH = "/twilio/events"

# Twilio docs: Webhook connection overrides. Without this fragment a 5xx is not retried at all.
RETRY_FRAGMENT = "#rc=5&rp=5xx,ct,rt"

# Twilio docs: Advanced Opt-Out (default keywords; REVOKE and OPTOUT since 14 May 2025).
STOP_WORDS = frozenset({"STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT"})
START_WORDS = frozenset({"START", "YES", "UNSTOP"})
HELP_WORDS = frozenset({"HELP", "INFO"})
TOLL_FREE = ("+1800", "+1833", "+1844", "+1855", "+1866", "+1877", "+1888")

INBOUND_EVENT = "com.twilio.messaging.inbound-message.received"
TEST_EVENT = "com.twilio.eventstreams.test-event"
EVENT_TYPES = {
    INBOUND_EVENT: "Messaging.InboundMessageV1",
    "com.twilio.messaging.message.queued": "Messaging.MessageStatus",
    "com.twilio.messaging.message.sent": "Messaging.MessageStatus",
    "com.twilio.messaging.message.delivered": "Messaging.MessageStatus",
    "com.twilio.messaging.message.failed": "Messaging.MessageStatus",
    "com.twilio.messaging.message.undelivered": "Messaging.MessageStatus",
    "com.twilio.messaging.message.read": "Messaging.MessageStatus",
}
UNSUBSCRIBED = 21610  # Twilio error 21610: the recipient has opted out of this sender or service

Via = Literal["webhook", "events", "both"]
JsonObject = dict[str, Any]


def new_sid(prefix: str) -> str:
    """A SID as Twilio makes them: two letters and 32 hexadecimal digits."""
    return prefix + secrets.token_hex(16)


# ------------------------------------------------------------------ what an account holds


@dataclass(slots=True)
class Account:
    """An account or subaccount. Only the primary token signs; the secondary opens the REST API too."""

    sid: str = ACCOUNT_SID
    auth_token: str = AUTH_TOKEN
    secondary_auth_token: str | None = None
    api_keys: dict[str, str] = field(default_factory=dict)
    friendly_name: str = "Fictional University"
    status: str = "active"
    owner_sid: str | None = None
    redact_bodies: bool = False
    redact_numbers: bool = False

    def promote_secondary_token(self) -> None:
        """The secondary token becomes primary, and the old primary is dead at once."""
        if self.secondary_auth_token is None:
            raise ValueError("this account has no secondary auth token")
        self.auth_token, self.secondary_auth_token = self.secondary_auth_token, None

    def accepts(self, user: str, password: str) -> bool:
        if user == self.sid:
            return password in {self.auth_token, self.secondary_auth_token}
        return self.api_keys.get(user) == password

    def record(self) -> JsonObject:
        uri = f"/2010-04-01/Accounts/{self.sid}"
        return {
            "sid": self.sid,
            "auth_token": self.auth_token,
            "friendly_name": self.friendly_name,
            "owner_account_sid": self.owner_sid or self.sid,
            "status": self.status,
            "type": "Full",
            "date_created": "Fri, 02 Jan 2026 10:00:00 +0000",
            "date_updated": "Fri, 02 Jan 2026 10:00:00 +0000",
            "subresource_uris": {"messages": f"{uri}/Messages.json"},
            "uri": f"{uri}.json",
        }


class SenderKind(StrEnum):
    PHONE_NUMBER = "phone_number"
    SHORT_CODE = "short_code"
    ALPHA = "alpha_sender"
    CHANNEL = "sender"


SENDER_SID_PREFIX = {
    SenderKind.PHONE_NUMBER: "PN",
    SenderKind.SHORT_CODE: "SC",
    SenderKind.ALPHA: "AI",
    SenderKind.CHANNEL: "XE",
}


@dataclass(slots=True)
class Sender:
    """A number, short code, alphanumeric name or channel address; the sms_* fields are a number's own."""

    address: str
    account_sid: str = ACCOUNT_SID
    sid: str = ""
    service_sid: str | None = None
    friendly_name: str = ""
    sms_url: str = ""
    sms_method: str = "POST"
    sms_fallback_url: str = ""
    sms_fallback_method: str = "POST"
    sms_application_sid: str = ""
    status_callback: str = ""
    status_callback_method: str = "POST"

    def __post_init__(self) -> None:
        self.sid = self.sid or new_sid(SENDER_SID_PREFIX[self.kind])
        self.friendly_name = self.friendly_name or self.address

    @property
    def kind(self) -> SenderKind:
        if ":" in self.address:
            return SenderKind.CHANNEL
        if self.address.startswith("+"):
            return SenderKind.PHONE_NUMBER
        return SenderKind.SHORT_CODE if self.address.isdigit() else SenderKind.ALPHA

    def in_service(self, base: str) -> JsonObject:
        """The record of messaging v1, under /Services/{MG}."""
        row: JsonObject = {
            "sid": self.sid,
            "account_sid": self.account_sid,
            self.kind.value: self.address,
            "date_created": "2026-01-02T10:00:00Z",
            "date_updated": "2026-01-02T10:00:00Z",
            "url": f"{base}/{self.sid}",
        }
        if self.kind is SenderKind.CHANNEL:
            channel = self.address.partition(":")[0]
            kind = {"whatsapp": "WhatsApp", "rcs": "RCS"}.get(channel, channel)
            return row | {
                "messaging_service_sid": self.service_sid,
                "sender_type": kind,
                "country_code": "US",
            }
        row |= {"service_sid": self.service_sid, "capabilities": ["MMS", "SMS", "Voice"]}
        return row if self.kind is SenderKind.ALPHA else row | {"country_code": "US"}

    def as_incoming_number(self) -> JsonObject:
        """The record of IncomingPhoneNumbers; an empty field comes as "" (twilio-oai api_v2010)."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        own.pop("service_sid")
        return own | {
            "phone_number": own.pop("address"),
            "api_version": "2010-04-01",
            "beta": False,
            "capabilities": {"voice": True, "sms": True, "mms": True, "fax": False},
            "origin": "twilio",
            "status": "in-use",
            "type": "local",
            "date_created": "Fri, 02 Jan 2026 10:00:00 +0000",
            "date_updated": "Fri, 02 Jan 2026 10:00:00 +0000",
            "voice_url": "",
            "voice_method": "POST",
            "voice_fallback_url": "",
            "voice_fallback_method": "POST",
            "voice_caller_id_lookup": False,
            "voice_application_sid": "",
            "voice_receive_mode": "voice",
            "trunk_sid": None,
            "address_sid": None,
            "address_requirements": "none",
            "bundle_sid": None,
            "identity_sid": None,
            "emergency_status": "Active",
            "emergency_address_sid": None,
            "emergency_address_status": "unregistered",
            "uri": f"/2010-04-01/Accounts/{self.account_sid}/IncomingPhoneNumbers/{self.sid}.json",
        }


@dataclass(slots=True)
class Service:
    """A Messaging Service. The last four fields are Console switches that no API shows (Advanced Opt-Out)."""

    sid: str = ""
    account_sid: str = ACCOUNT_SID
    friendly_name: str = "Study texts"
    inbound_request_url: str | None = None
    inbound_method: str = "POST"
    fallback_url: str | None = None
    fallback_method: str = "POST"
    status_callback: str | None = None
    sticky_sender: bool = True
    mms_converter: bool = True
    smart_encoding: bool = True
    scan_message_content: str = "inherit"
    fallback_to_long_code: bool = True
    area_code_geomatch: bool = True
    synchronous_validation: bool = False
    validity_period: int = 14400
    usecase: str = "undeclared"
    us_app_to_person_registered: bool = False
    # Twilio docs: Messaging Services, "Defer to sender's webhook" is the default.
    use_inbound_webhook_on_number: bool = True
    advanced_opt_out: bool = True
    more_stop_words: frozenset[str] = frozenset()
    more_start_words: frozenset[str] = frozenset()
    campaigns: list[JsonObject] = field(default_factory=list)

    HIDDEN = ("advanced_opt_out", "more_stop_words", "more_start_words", "campaigns")

    def __post_init__(self) -> None:
        self.sid = self.sid or new_sid("MG")

    def record(self, base: str) -> JsonObject:
        """The record of messaging v1 Service; `base` is the address of /v1/Services."""
        url = f"{base}/{self.sid}"
        parts = {
            "phone_numbers": "PhoneNumbers",
            "short_codes": "ShortCodes",
            "alpha_senders": "AlphaSenders",
        }
        links = {name: f"{url}/{part}" for name, part in parts.items()}
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in self.HIDDEN}
        return own | {
            "date_created": "2026-01-02T10:00:00Z",
            "date_updated": "2026-01-02T10:00:00Z",
            "url": url,
            "links": links | {"us_app_to_person": f"{url}/Compliance/Usa2p"},
        }


@dataclass(slots=True)
class Sink:
    """An Event Streams sink.

    Whether a webhook sink delivers before it is validated is not documented: here it does.
    """

    account_sid: str
    description: str
    configuration: JsonObject
    kind: str
    sid: str = field(default_factory=lambda: new_sid("DG"))
    status: str = "initialized"
    test_id: str = ""

    def record(self, base: str) -> JsonObject:
        url = f"{base}/{self.sid}"
        return {
            "sid": self.sid,
            "description": self.description,
            "sink_configuration": self.configuration,
            "sink_type": self.kind,
            "status": self.status,
            "date_created": "2026-01-02T10:00:00Z",
            "date_updated": "2026-01-02T10:00:00Z",
            "url": url,
            "links": {"sink_test": f"{url}/Test", "sink_validate": f"{url}/Validate"},
        }


@dataclass(slots=True)
class Subscription:
    """What an Event Streams sink receives: event type -> schema version."""

    account_sid: str
    description: str
    sink_sid: str
    types: dict[str, int]
    sid: str = field(default_factory=lambda: new_sid("DF"))

    def record(self, base: str) -> JsonObject:
        url = f"{base}/{self.sid}"
        return {
            "sid": self.sid,
            "account_sid": self.account_sid,
            "description": self.description,
            "sink_sid": self.sink_sid,
            "date_created": "2026-01-02T10:00:00Z",
            "date_updated": "2026-01-02T10:00:00Z",
            "url": url,
            "links": {"subscribed_events": f"{url}/SubscribedEvents"},
        }

    def event_record(self, kind: str, base: str) -> JsonObject:
        return {
            "account_sid": self.account_sid,
            "subscription_sid": self.sid,
            "type": kind,
            "schema_version": self.types[kind],
            "url": f"{base}/{self.sid}/SubscribedEvents/{kind}",
        }


# ------------------------------------------------------------------ messages and their log

_sequence = itertools.count()


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Message:
    """One message. `at` is aware; the REST API shows it in whole seconds, Event Streams in milliseconds."""

    from_: str
    to: str
    body: str = "STOP"
    at: datetime = field(default_factory=utc_now)
    account_sid: str = ACCOUNT_SID
    messaging_service_sid: str | None = None
    opt_out_type: str | None = None
    direction: str = "inbound"
    status: str = "received"
    error_code: int | None = None
    error_message: str | None = None
    num_media: int = 0
    sid: str = ""
    event_id: str = field(default_factory=lambda: new_sid("EZ"))
    sequence: int = field(default_factory=lambda: next(_sequence))

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ValueError("at must be aware, e.g. datetime(2026, 1, 31, 12, tzinfo=UTC)")
        self.at = self.at.astimezone(UTC)
        self.sid = self.sid or new_sid("MM" if self.num_media else "SM")

    def order(self) -> tuple[datetime, int]:
        """Twilio sorts by DateSent; within one second by arrival."""
        return self.at.replace(microsecond=0), self.sequence

    @property
    def participant(self) -> str:
        return self.from_ if self.direction == "inbound" else self.to

    def record(self, account: Account) -> JsonObject:
        """The record of api v2010 Messages: no opt-out type, RFC 2822 dates, redacted if so set."""
        when = format_datetime(self.at.replace(microsecond=0))
        uri = f"/2010-04-01/Accounts/{self.account_sid}/Messages/{self.sid}"
        return {
            "account_sid": self.account_sid,
            "api_version": "2010-04-01",
            "body": "" if account.redact_bodies else self.body,
            "date_created": when,
            "date_sent": when,
            "date_updated": when,
            "direction": self.direction,
            "error_code": self.error_code,
            "error_message": self.error_message,
            "from": self._shown(self.from_, account),
            "messaging_service_sid": self.messaging_service_sid,
            "num_media": str(self.num_media),
            "num_segments": "1",
            "price": None,
            "price_unit": "USD",
            "sid": self.sid,
            "status": self.status,
            "subresource_uris": {"media": f"{uri}/Media.json"},
            "to": self._shown(self.to, account),
            "uri": f"{uri}.json",
        }

    def _shown(self, address: str, account: Account) -> str:
        # Twilio docs: message redaction. The last four digits of the person's number become XXXX.
        hide = account.redact_numbers and address == self.participant
        return address[:-4] + "XXXX" if hide else address


class MessageLog:
    """The messages of one account, oldest first inside, newest first outside."""

    def __init__(self) -> None:
        self._rows: list[Message] = []
        self._by_sid: dict[str, Message] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, messages: Iterable[Message]) -> None:
        with self._lock:
            for message in messages:
                self._by_sid[message.sid] = message
                bisect.insort(self._rows, message, key=Message.order)

    def find(self, sid: str) -> Message | None:
        return self._by_sid.get(sid)

    def newest_first(self) -> list[Message]:
        with self._lock:
            return self._rows[::-1]

    def page(
        self, matches: Callable[[Message], bool], *, size: int, after: Message | None
    ) -> tuple[list[Message], bool]:
        """Up to `size` matching messages older than `after`, and whether more follow."""
        with self._lock:
            end = len(self._rows)
            if after is not None:
                end = bisect.bisect_left(self._rows, after.order(), key=Message.order)
            older = (self._rows[i] for i in range(end - 1, -1, -1))
            found = list(itertools.islice(filter(matches, older), size + 1))
        return found[:size], len(found) > size


# ------------------------------------------------------------------ what Twilio sends, and its signatures


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request as Twilio would send it to the public URL; alter it with dataclasses.replace to forge one."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def params(self) -> dict[str, str]:
        """The form's fields, for a form; of a repeated one the last."""
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))


def signed_url(url: str) -> str:
    """The URL that is signed: as configured, without fragment and user:password (Twilio docs: Security)."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


def sign_form(url: str, params: Mapping[str, str], token: str) -> str:
    """X-Twilio-Signature of a form POST; of a GET when `params` is empty."""
    return str(RequestValidator(token).compute_signature(signed_url(url), dict(params)))


def sign_json(url: str, body: str, token: str) -> tuple[str, str]:
    """The URL with ?bodySHA256=… as Twilio requests it, and X-Twilio-Signature, which covers that URL alone.

    Twilio docs: Security.
    """
    plain = signed_url(url)
    digest = hashlib.sha256(body.encode()).hexdigest()
    hashed = f"{plain}{'&' if urlsplit(plain).query else '?'}bodySHA256={digest}"
    return hashed, sign_form(hashed, {}, token)


def _headers(signature: str, content_type: str | None) -> dict[str, str]:
    sent = {
        "X-Twilio-Signature": signature,
        "I-Twilio-Idempotency-Token": str(uuid.uuid4()),
        "User-Agent": "TwilioProxy/1.1",
        "Accept": "*/*",
        "X-Home-Region": "us1",
    }
    return sent if content_type is None else sent | {"Content-Type": content_type}


def form_request(url: str, params: Mapping[str, str], token: str, *, method: str = "POST") -> SignedRequest:
    """A signed webhook request; with GET the parameters go into the query and the URL alone is signed."""
    target = signed_url(url)
    encoded = urlencode(params)
    if method == "GET":
        full = f"{target}{'&' if urlsplit(target).query else '?'}{encoded}" if encoded else target
        return SignedRequest("GET", full, _headers(sign_form(full, {}, token), None))
    signature = sign_form(target, params, token)
    kind = "application/x-www-form-urlencoded; charset=utf-8"
    return SignedRequest("POST", target, _headers(signature, kind), encoded.encode())


def json_request(url: str, body: str, token: str) -> SignedRequest:
    """A signed Event Streams request."""
    target, signature = sign_json(url, body, token)
    return SignedRequest("POST", target, _headers(signature, "application/json"), body.encode())


def inbound_parameters(message: Message, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The form of the incoming-message webhook; there is no timestamp, and geo fields may be blank."""
    params = {
        "MessageSid": message.sid,
        "SmsSid": message.sid,
        "SmsMessageSid": message.sid,
        "AccountSid": message.account_sid,
        "From": message.from_,
        "To": message.to,
        "Body": message.body,
        "NumMedia": str(message.num_media),
        "NumSegments": "1",
        "SmsStatus": "received",
        "ApiVersion": "2010-04-01",
        "ReferralNumMedia": "0",
    }
    if message.messaging_service_sid:
        params["MessagingServiceSid"] = message.messaging_service_sid
    if message.opt_out_type:
        params["OptOutType"] = message.opt_out_type
    if message.from_.startswith("whatsapp:"):
        params |= {"ProfileName": "Pat Example", "WaId": message.from_.removeprefix("whatsapp:+")}
    elif ":" not in message.from_:
        params |= geo_parameters(message)
    for number in range(message.num_media):
        params[f"MediaUrl{number}"] = f"https://media.example.edu/{message.sid}/{number}"
        params[f"MediaContentType{number}"] = "image/jpeg"
    return params | dict(extra or {})


def geo_parameters(message: Message) -> dict[str, str]:
    """Where both numbers are at home: partly blank, as for many real numbers."""
    known = {"Country": "US", "State": "CA", "City": "", "Zip": ""}
    blank = dict.fromkeys(known, "")
    return {
        side + name: value
        for side, address in (("From", message.from_), ("To", message.to))
        for name, value in (known if address.startswith("+1") else blank).items()
    }


def inbound_event(message: Message) -> JsonObject:
    """One CloudEvent, schema Messaging.InboundMessageV1/6 (Twilio docs: Event types, Inbound Message)."""
    when = message.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    data: JsonObject = {
        "messageSid": message.sid,
        "timestamp": when,
        "accountSid": message.account_sid,
        "eventName": INBOUND_EVENT,
        "from": message.from_,
        "to": message.to,
        "numMedia": message.num_media,
        "numSegments": 1,
        "body": message.body,
        "recipients": [],
    }
    if ":" not in message.from_:
        data |= {
            name[0].lower() + name[1:]: value for name, value in geo_parameters(message).items() if value
        }
    if message.messaging_service_sid:
        data["messagingServiceSid"] = message.messaging_service_sid
    if message.opt_out_type:
        data["optOutType"] = message.opt_out_type
    source = f"/2010-04-01/Accounts/{message.account_sid}/Messages/{message.sid}.json"
    schema = "https://events-schemas.twilio.com/Messaging.InboundMessageV1/6"
    return cloud_event(INBOUND_EVENT, data, source=source, schema=schema, id_=message.event_id, when=when)


def cloud_event(kind: str, data: JsonObject, *, source: str, schema: str, id_: str, when: str) -> JsonObject:
    return {
        "specversion": "1.0",
        "type": kind,
        "source": source,
        "id": id_,
        "dataschema": schema,
        "datacontenttype": "application/json",
        "time": when,
        "data": data,
    }


def event_stream_body(*messages: Message | JsonObject) -> str:
    """The body of one delivery: a JSON array, today always of one event (Twilio docs: webhook quickstart)."""
    events = [inbound_event(item) if isinstance(item, Message) else item for item in messages]
    return json.dumps(events, separators=(",", ":"))


def keyword_of(body: str, service: Service | None = None) -> str | None:
    """STOP, START, HELP or None: the whole message is one word, whatever its case.

    Blanks around the word are trimmed here; Twilio does not document whether it does.
    """
    word = body.strip().upper()
    if word in STOP_WORDS or (service and word in service.more_stop_words):
        return "STOP"
    if word in START_WORDS or (service and word in service.more_start_words):
        return "START"
    return "HELP" if word in HELP_WORDS else None


# ------------------------------------------------------------------ delivery over HTTP


OVERRIDE_RANGES = {"ct": (100, 10000), "rt": (100, 15000), "tt": (100, 15000), "rc": (0, 5)}
RETRY_POLICIES = frozenset({"ct", "rt", "4xx", "5xx", "all"})
IGNORED_OVERRIDES = ("sni", "e")


@dataclass(frozen=True, slots=True)
class Overrides:
    """Twilio docs: Webhook connection overrides. Times in milliseconds."""

    ct: int = 5000
    rt: int = 15000
    tt: int = 15000
    rc: int = 1
    rp: frozenset[str] = frozenset({"ct"})


def parse_overrides(url: str) -> Overrides:
    """Read the fragment of a webhook URL; ValueError where Twilio would log 11243."""
    given = dict(parse_qsl(urlsplit(url).fragment, keep_blank_values=True))
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key in OVERRIDE_RANGES:
            low, high = OVERRIDE_RANGES[key]
            if not value.isdigit() or not low <= int(value) <= high:
                raise ValueError(f"connection override {key}={value} is not within {low}..{high}")
            found[key] = int(value)
        elif key == "rp":
            found[key] = _policies(value)
        elif key not in IGNORED_OVERRIDES:
            raise ValueError(f"unknown connection override {key}")
    return Overrides(**found)


def _policies(value: str) -> frozenset[str]:
    policies = frozenset(value.split(","))
    if not policies <= RETRY_POLICIES:
        raise ValueError(f"connection override rp={value} is unknown")
    return policies


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what came back; status 0 and a `failure` when nothing did."""

    request: SignedRequest
    status: int = 0
    content_type: str = ""
    body: str = ""
    location: str = ""
    failure: str = ""  # connect, timeout, aborted, no route

    def retried_by(self, policies: frozenset[str]) -> bool:
        """Whether these `rp` policies ask for another try; a connection cut in the middle is under none but `all`."""
        if self.status and self.status < 400:
            return False
        name = {"connect": "ct", "timeout": "rt"}.get(self.failure) or f"{self.status // 100}xx"
        return "all" in policies or name in policies

    @property
    def error(self) -> int | None:
        """The error that Twilio's debugger would show, before any TwiML is read."""
        if not self.status:
            return 11205
        if self.status >= 400:
            return 11217
        if self.status >= 300:
            return 11216
        return None if self.content_type or self.status == 204 else 11200


@dataclass(frozen=True, slots=True)
class Twiml:
    """What an answer makes Twilio do next."""

    replies: tuple[str, ...] = ()
    redirect: str | None = None
    redirect_method: str = "POST"
    error: int | None = None


def read_twiml(exchange: Exchange) -> Twiml:
    """Read an answer as Twilio does: XML is TwiML, text/plain is a reply to the participant.

    Twilio docs: TwiML for Programmable Messaging; error 12100 stands for what cannot be parsed.
    """
    if exchange.error:
        return Twiml(error=exchange.error)
    kind = exchange.content_type.partition(";")[0].strip().lower()
    if kind == "text/plain":
        return Twiml(replies=(exchange.body,) if exchange.body else ())
    try:
        root = ET.fromstring(exchange.body)
    except ET.ParseError:
        return Twiml(error=12100)
    return _verbs(root) if root.tag == "Response" else Twiml(error=12100)


def _verbs(root: ET.Element) -> Twiml:
    replies: list[str] = []
    for verb in root:
        if verb.tag == "Redirect":  # verbs after it are never reached
            target = (verb.text or "").strip()
            return Twiml(tuple(replies), target, verb.get("method", "POST").upper())
        if verb.tag in {"Message", "Sms"}:
            replies.append("".join(verb.itertext()).strip())
    return Twiml(tuple(replies))


class Network:
    """Delivers public URLs to the addresses where the servers under test really listen."""

    def __init__(self) -> None:
        self.routes: dict[str, str] = {}

    def real_url(self, url: str) -> str | None:
        """The address to connect to; None when no route is known and the host is not this machine."""
        for public in sorted(self.routes, key=len, reverse=True):
            rest = url.removeprefix(public)
            if rest != url and (not rest or rest[0] in "/?"):
                return self.routes[public].rstrip("/") + rest
        return url if urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"} else None

    def send(self, signed: SignedRequest, *, connect_s: float = 5, read_s: float = 15) -> Exchange:
        """Send once; never raises for what the other side does. Timeouts in seconds."""
        target = self.real_url(signed.url)
        if target is None:
            return Exchange(signed, failure="no route")
        try:
            return self._send(signed, target, (connect_s, read_s))
        except requests.ConnectTimeout:
            return Exchange(signed, failure="connect")
        except requests.Timeout:
            return Exchange(signed, failure="timeout")
        except requests.ConnectionError as error:
            return Exchange(signed, failure="connect" if _never_connected(error) else "aborted")
        except requests.RequestException:
            return Exchange(signed, failure="aborted")

    @staticmethod
    def _send(signed: SignedRequest, target: str, timeout: tuple[float, float]) -> Exchange:
        with requests.Session() as session:
            session.trust_env = False  # no proxy of the environment may carry loopback traffic
            answer = session.request(
                signed.method,
                target,
                data=signed.body or None,
                headers=dict(signed.headers),
                timeout=timeout,
                allow_redirects=False,
            )
        headers = answer.headers
        return Exchange(
            signed,
            answer.status_code,
            headers.get("Content-Type", ""),
            answer.content.decode(errors="replace"),
            headers.get("Location", ""),
        )


def _never_connected(error: requests.ConnectionError) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


@dataclass(frozen=True, slots=True)
class Texted:
    """What became of one text: its message, and every HTTP exchange it caused, in order."""

    message: Message
    logged: bool = True
    attempts: tuple[Exchange, ...] = ()  # the webhook: first try, retries, HTTP redirects, fallback URL
    events: tuple[Exchange, ...] = ()  # Event Streams
    forwarded: Texted | None = None  # what a <Redirect> led to
    twiml: Twiml = Twiml()

    @property
    def answer(self) -> Exchange:
        """The exchange that decided: the last of the webhook's, else of Event Streams'."""
        exchanges = self.attempts or self.events
        if not exchanges:
            raise LookupError("this text was not delivered anywhere")
        return exchanges[-1]

    @property
    def request(self) -> SignedRequest:
        return self.answer.request

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def body(self) -> str:
        return self.answer.body

    @property
    def content_type(self) -> str:
        return self.answer.content_type

    @property
    def replies(self) -> tuple[str, ...]:
        """The texts that the participant received because of the answer."""
        return self.twiml.replies + (self.forwarded.replies if self.forwarded else ())

    def summary(self) -> JsonObject:
        """For the control API."""
        shown: JsonObject = {"message_sid": self.message.sid, "logged": self.logged, "replies": self.replies}
        shown["opt_out_type"] = self.message.opt_out_type
        shown["attempts"] = len(self.attempts) + len(self.events)
        if shown["attempts"]:
            shown |= {"status": self.status, "body": self.body, "content_type": self.content_type}
            shown |= {"failure": self.answer.failure, "error": self.twiml.error}
        shown["forwarded"] = self.forwarded.summary() if self.forwarded else None
        return shown


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a sender's inbound messages go."""

    url: str
    method: str = "POST"
    fallback_url: str = ""
    fallback_method: str = "POST"


class MessageRefused(Exception):
    """Twilio refused to send at once: HTTP 400 with `code`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


# ------------------------------------------------------------------ faults and the request log


class FaultKind(StrEnum):
    TOO_MANY = "429"
    UNAVAILABLE = "503"
    SERVER_ERROR = "500"
    HANG = "hang"
    RESET = "reset"
    TRUNCATED = "truncated"


@dataclass(slots=True)
class Fault:
    """A failure on demand. `resource` "" means any; `page` counts from 0; `times` None means for ever."""

    kind: FaultKind
    resource: str = ""
    method: str = ""
    page: int | None = None
    times: int | None = 1
    seconds: float = 30.0  # how long a hang lasts

    def meets(self, seen: LoggedRequest) -> bool:
        return (
            self.times != 0
            and self.resource in {"", seen.resource}
            and self.method in {"", seen.method}
            and self.page in {None, seen.page}
        )


@dataclass(slots=True)
class LoggedRequest:
    """A REST request that the simulator received; `status` 0 when the connection was cut."""

    method: str
    resource: str
    path: str
    query: dict[str, str]
    form: dict[str, str]
    status: int = 0

    @property
    def page(self) -> int:
        value = self.query.get("Page", "0")
        return int(value) if value.isdigit() else 0


@dataclass(frozen=True, slots=True)
class RunningServer:
    url: str
    port: int


# ------------------------------------------------------------------ the simulator


class TwilioSimulator:
    """Twilio, as far as opt-outs are concerned.

    Without `accounts` it holds one account with one Messaging Service and one number.
    """

    def __init__(
        self,
        accounts: Iterable[Account] | None = None,
        *,
        public_url: str = PUBLIC_URL,
        deliver_to: str | None = None,
    ) -> None:
        self.public_url = public_url.rstrip("/")
        self.accounts: dict[str, Account] = {}
        self.services: dict[str, Service] = {}
        self.senders: dict[str, Sender] = {}  # by SID
        self.sinks: dict[str, Sink] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.logs: dict[str, MessageLog] = {}
        self.blocks: set[tuple[str, str]] = set()
        self.faults: list[Fault] = []
        self.request_log: list[LoggedRequest] = []
        self.network = Network()
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        if deliver_to:
            self.deliver_to(deliver_to)
        for account in [Account()] if accounts is None else accounts:
            self.add_account(account)
        if accounts is None:
            self.add_service(sid=SERVICE_SID, senders=[SENDER])

    # -- setting the scene

    def deliver_to(self, real_url: str, *, public_url: str | None = None) -> None:
        """From now on requests to `public_url` (default: the program's own) are sent to `real_url`."""
        self.network.routes[(public_url or self.public_url).rstrip("/")] = real_url

    def add_account(self, account: Account) -> Account:
        self.accounts[account.sid] = account
        self.logs[account.sid] = MessageLog()
        return account

    def add_service(
        self,
        *,
        sid: str = "",
        account_sid: str | None = None,
        senders: Iterable[str] = (),
        inbound_request_url: str | None = "",
        use_inbound_webhook_on_number: bool = False,
        **settings: Any,
    ) -> Service:
        """Create a Messaging Service with these senders.

        inbound_request_url "" stands for the program's own webhook with retries; None makes the service
        drop what comes in.
        """
        url = (
            self.public_url + INBOUND_PATH + RETRY_FRAGMENT
            if inbound_request_url == ""
            else inbound_request_url
        )
        service = Service(
            sid=sid,
            account_sid=account_sid or self.first_account.sid,
            inbound_request_url=url,
            use_inbound_webhook_on_number=use_inbound_webhook_on_number,
            **settings,
        )
        self.services[service.sid] = service
        for address in senders:
            self.add_sender(address, service=service)
        return service

    def add_sender(
        self, address: str, *, service: Service | None = None, account_sid: str | None = None, **hooks: Any
    ) -> Sender:
        """A number (+…), short code (digits), channel address (whatsapp:+…, rcs:…) or alphanumeric name.

        `hooks` are a number's own fields: sms_url, sms_method, sms_fallback_url, sms_application_sid …
        """
        owner = service.account_sid if service else account_sid or self.first_account.sid
        sender = Sender(address, account_sid=owner, service_sid=service.sid if service else None, **hooks)
        self.senders[sender.sid] = sender
        return sender

    def add_campaign(self, service_sid: str, *, status: str = "VERIFIED", **more: Any) -> JsonObject:
        """An A2P 10DLC campaign (Usa2p) of a service; its status is free text (twilio-oai messaging_v1)."""
        service = self.services[service_sid]
        campaign = new_campaign(service, status) | more
        service.campaigns.append(campaign)
        service.us_app_to_person_registered = True
        return campaign

    def add_sink(
        self, url: str | None = None, *, account_sid: str | None = None, status: str = "active"
    ) -> Sink:
        """A webhook sink subscribed to inbound messages; by default the program's own."""
        owner = account_sid or self.first_account.sid
        destination = {
            "destination": url or self.public_url + EVENTS_PATH,
            "method": "POST",
            "batch_events": False,
        }
        sink = Sink(owner, "Opt-outs", destination, "webhook", status=status)
        self.sinks[sink.sid] = sink
        subscription = Subscription(owner, "Inbound messages", sink.sid, {INBOUND_EVENT: 6})
        self.subscriptions[subscription.sid] = subscription
        return sink

    @property
    def first_account(self) -> Account:
        return next(iter(self.accounts.values()))

    def sender_at(self, address: str) -> Sender:
        for sender in self.senders.values():
            if sender.address == address:
                return sender
        raise LookupError(f"no account has the sender {address}: add_sender or add_service first")

    def senders_of(self, service_sid: str) -> list[Sender]:
        return [sender for sender in self.senders.values() if sender.service_sid == service_sid]

    # -- participants text

    def text(
        self,
        *,
        from_: str,
        body: str = "STOP",
        to: str | None = None,
        service: str | None = None,
        advanced_opt_out: bool | None = None,
        deliver: bool = True,
        via: Via = "webhook",
        at: datetime | None = None,
        follow_redirect: bool = True,
        extra: Mapping[str, str] | None = None,
        num_media: int = 0,
    ) -> Texted:
        """A participant texts a sender, or a service's first sender; the message is logged and delivered.

        advanced_opt_out None: as the service is set; True or False: as if it were so for this message, which
        decides whether OptOutType / data.optOutType comes along. deliver=False: the webhook is "missed".
        """
        message, aoo = self.inbound(
            from_=from_, body=body, to=to, service=service, at=at, num_media=num_media
        )
        if advanced_opt_out is not None and message.messaging_service_sid:
            aoo = advanced_opt_out
        keyword = self._keyword(message)
        message.opt_out_type = keyword if aoo else None
        self._apply_keyword(message, keyword, advanced_opt_out=aoo)
        hook = self.hook_for(message)
        if hook is None:  # Drop: neither delivered nor logged (twilio-oai messaging_v1, InboundRequestUrl)
            return Texted(message, logged=False)
        self.logs[message.account_sid].add([message])
        if not deliver:
            return Texted(message)
        events = self.send_events(message) if via != "webhook" else ()
        if via == "events":
            return Texted(message, events=events)
        texted = self.call_webhook(message, hook, follow_redirect=follow_redirect, extra=extra)
        return replace(texted, events=events)

    def inbound(
        self,
        *,
        from_: str,
        body: str = "STOP",
        to: str | None = None,
        service: str | None = None,
        at: datetime | None = None,
        num_media: int = 0,
    ) -> tuple[Message, bool]:
        """An inbound message, not logged and not sent, and whether its service has Advanced Opt-Out."""
        sender = self.sender_at(to) if to else self._first_sender(service, like=from_)
        owner = self.services.get(sender.service_sid or "")
        message = Message(
            from_,
            sender.address,
            body,
            at or utc_now(),
            account_sid=sender.account_sid,
            messaging_service_sid=sender.service_sid,
            num_media=num_media,
        )
        redacted = self.accounts[sender.account_sid].redact_numbers
        return message, bool(owner and owner.advanced_opt_out and not redacted)

    def _first_sender(self, service_sid: str | None, *, like: str = "") -> Sender:
        """The service's first sender of the same channel as the participant's address."""
        sid = service_sid or next(iter(self.services))
        channel = like.partition(":")[0] if ":" in like else ""
        for sender in self.senders_of(sid):
            own = sender.address.partition(":")[0] if ":" in sender.address else ""
            if own == channel and sender.kind is not SenderKind.ALPHA:
                return sender
        raise LookupError(f"service {sid} has no {channel or 'SMS'} sender")

    def add_messages(self, messages: Iterable[Message]) -> int:
        """Put messages into the log without delivering anything; returns how many."""
        by_account: dict[str, list[Message]] = {}
        for message in messages:
            by_account.setdefault(message.account_sid, []).append(message)
        for sid, rows in by_account.items():
            self.logs[sid].add(rows)
        return sum(map(len, by_account.values()))

    def messages(self, account_sid: str | None = None) -> list[Message]:
        """The account's message log, newest first."""
        return self.logs[account_sid or self.first_account.sid].newest_first()

    # -- opt-outs

    def _keyword(self, message: Message) -> str | None:
        # Twilio errors 23002 and 23004: number redaction excludes Twilio's handling of STOP.
        if self.accounts[message.account_sid].redact_numbers:
            return None
        return keyword_of(message.body, self.services.get(message.messaging_service_sid or ""))

    def _apply_keyword(self, message: Message, keyword: str | None, *, advanced_opt_out: bool) -> None:
        """Keep the block list that only sending can reveal; it has no API (Twilio docs: Advanced Opt-Out)."""
        short_code = message.to.isdigit() and not message.messaging_service_sid
        whatsapp = message.from_.startswith("whatsapp:") and not advanced_opt_out
        if short_code or whatsapp:  # Twilio handles no keywords for these
            return
        yes = message.body.strip().upper() == "YES" and message.to.startswith(TOLL_FREE)
        if keyword == "STOP":
            self.block(message.messaging_service_sid or message.to, message.from_)
        elif keyword == "START" and not yes:  # toll-free: the network's own block ignores YES
            self.unblock(message.messaging_service_sid or message.to, message.from_)

    def block(self, scope: str, participant: str) -> None:
        """Opt a participant out of a service (MG…) or sender, with no message at all (e.g. Consent API)."""
        self.blocks.add((scope, participant.removeprefix("rcs:")))

    def unblock(self, scope: str, participant: str) -> None:
        self.blocks.discard((scope, participant.removeprefix("rcs:")))

    def is_blocked(self, scope: str, participant: str) -> bool:
        return (scope, participant.removeprefix("rcs:")) in self.blocks

    def send_outbound(
        self,
        *,
        to: str,
        body: str = "Your visit is tomorrow.",
        service: str | None = None,
        from_: str | None = None,
        at: datetime | None = None,
    ) -> Message:
        """The study texts a participant, from a sender or through a service; returns the logged message.

        Blocked: MessageRefused at once with from_ alone; through a service it fails later, so that
        the log shows it as failed with error_code 21610 (Twilio error 21610).
        """
        sender = self.sender_at(from_) if from_ else self._first_sender(service, like=to)
        scope = service or sender.service_sid or sender.address
        message = Message(
            sender.address,
            to,
            body,
            at or utc_now(),
            account_sid=sender.account_sid,
            messaging_service_sid=sender.service_sid,
            direction="outbound-api",
            status="delivered",
        )
        if self.is_blocked(scope, to):
            if service is None:
                raise MessageRefused(UNSUBSCRIBED, "Attempt to send to unsubscribed recipient")
            message.status, message.error_code = "failed", UNSUBSCRIBED
        self.logs[message.account_sid].add([message])
        return message

    # -- delivery

    def hook_for(self, message: Message) -> Hook | None:
        """Where Twilio sends an inbound message.

        None: it is dropped. A Hook without url: it is logged, and nobody is told.
        """
        sender = self.sender_at(message.to)
        service = self.services.get(sender.service_sid or "")
        if service and not service.use_inbound_webhook_on_number:
            if not service.inbound_request_url:
                return None
            fallback = service.fallback_url or ""
            return Hook(
                service.inbound_request_url, service.inbound_method, fallback, service.fallback_method
            )
        if sender.sms_application_sid:  # then all sms_*_url are ignored (twilio-oai api_v2010)
            return Hook("")
        return Hook(sender.sms_url, sender.sms_method, sender.sms_fallback_url, sender.sms_fallback_method)

    def call_webhook(
        self,
        message: Message,
        hook: Hook | None = None,
        *,
        follow_redirect: bool = True,
        extra: Mapping[str, str] | None = None,
    ) -> Texted:
        """Deliver (again) a message to its webhook, with retries, fallback URL and <Redirect>."""
        target = hook or self.hook_for(message)
        if target is None or not target.url:
            return Texted(message)
        params = inbound_parameters(message, extra)
        attempts, error = self._attempt(message, target.url, params, method=target.method)
        twiml = Twiml(error=error) if error else read_twiml(attempts[-1])
        if twiml.error and target.fallback_url:
            lost = {"ErrorCode": str(twiml.error), "ErrorUrl": signed_url(target.url)}
            more, error = self._attempt(
                message, target.fallback_url, params | lost, method=target.fallback_method
            )
            attempts += more
            twiml = Twiml(error=error) if error else read_twiml(attempts[-1])
        texted = Texted(message, attempts=tuple(attempts), twiml=twiml)
        if not twiml.redirect or not follow_redirect:
            return texted
        # Twilio docs: TwiML <Redirect>. Which parameters come again is not documented: here all do.
        url = urljoin(attempts[-1].request.url, twiml.redirect)
        onward = self.call_webhook(
            message, Hook(url, twiml.redirect_method), follow_redirect=False, extra=extra
        )
        return replace(texted, forwarded=onward)

    def _attempt(
        self, message: Message, url: str, params: Mapping[str, str], *, method: str
    ) -> tuple[list[Exchange], int | None]:
        """First try, retries and HTTP redirects; the second value is 11243 for a bad fragment."""
        try:
            overrides = parse_overrides(url)
        except ValueError:
            return [], 11243
        token = self.accounts[message.account_sid].auth_token
        exchanges = self._with_retries(form_request(url, params, token, method=method), overrides)
        return exchanges + self._http_redirects(exchanges[-1], params, token), None

    def _with_retries(self, signed: SignedRequest, overrides: Overrides) -> list[Exchange]:
        deadline = time.monotonic() + overrides.tt / 1000
        exchanges: list[Exchange] = []
        for _ in range(1 + overrides.rc):
            left = deadline - time.monotonic()
            if left <= 0 and exchanges:
                break
            connect, read = min(overrides.ct / 1000, left), min(overrides.rt / 1000, left)
            exchanges.append(self.network.send(signed, connect_s=connect, read_s=read))
            if not exchanges[-1].retried_by(overrides.rp):
                break
        return exchanges

    def _http_redirects(self, first: Exchange, params: Mapping[str, str], token: str) -> list[Exchange]:
        # Twilio error 11216: 301, 302, 303 and 307 are followed, 308 is not. All but 307 go on as GET,
        # and the POST parameters are gone.
        followed: list[Exchange] = []
        last = first
        while last.status in {301, 302, 303, 307} and last.location and len(followed) < 5:
            url = urljoin(last.request.url, last.location)
            keep = last.status == 307
            method = last.request.method if keep else "GET"
            last = self.network.send(form_request(url, params if keep else {}, token, method=method))
            followed.append(last)
        return followed

    def send_events(self, *messages: Message) -> tuple[Exchange, ...]:
        """Deliver messages as one Event Streams batch to every subscribed webhook sink of their account.

        Without any such sink the batch goes to the program's own events URL. The answer is due in 5 s. Twilio
        repeats a failed delivery for up to 4 hours (Twilio docs: Event Streams); here a test calls this again.
        """
        account = self.accounts[messages[0].account_sid]
        urls = self.event_urls(account.sid) or [self.public_url + EVENTS_PATH]
        body = event_stream_body(*messages)
        return tuple(self.network.send(json_request(url, body, account.auth_token), read_s=5) for url in urls)

    def event_urls(self, account_sid: str) -> list[str]:
        wanted = {s.sink_sid for s in self.subscriptions.values() if INBOUND_EVENT in s.types}
        sinks = [s for s in self.sinks.values() if s.sid in wanted and s.account_sid == account_sid]
        return [
            str(s.configuration["destination"]) for s in sinks if s.kind == "webhook" and s.status != "failed"
        ]

    def send(self, signed: SignedRequest) -> Exchange:
        """Send any request once: a replay (`texted.request`), or a forgery made with dataclasses.replace."""
        return self.network.send(signed)

    # -- faults and what was asked

    def fail(
        self,
        kind: FaultKind | str,
        *,
        resource: str = "",
        method: str = "",
        page: int | None = None,
        times: int | None = 1,
        seconds: float = 30.0,
    ) -> Fault:
        """Make REST requests fail: kind 429, 503, 500, hang, reset or truncated; times=None: until mend()."""
        fault = Fault(FaultKind(str(kind)), resource, method, page, times, seconds)
        self.faults.append(fault)
        return fault

    def mend(self) -> None:
        """Take back all faults."""
        self.faults.clear()

    def take_fault(self, seen: LoggedRequest) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.meets(seen):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def request_counts(self) -> Counter[str]:
        """REST requests per resource: "Messages", "Services", "Services/PhoneNumbers", "Sinks" …"""
        return Counter(entry.resource for entry in list(self.request_log))

    def requests_to(self, resource: str) -> list[LoggedRequest]:
        return [entry for entry in list(self.request_log) if entry.resource == resource]

    # -- serving

    @contextlib.contextmanager
    def serve(self, port: int = 0, host: str = "127.0.0.1") -> Iterator[RunningServer]:
        """Serve the REST and control APIs until the block ends; port 0 takes any free one."""
        self.stopping.clear()
        server = make_server(host, port, create_app(self), threaded=True, request_handler=_QuietHandler)
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="twilio-simulator", daemon=True
        )
        thread.start()
        try:
            yield RunningServer(f"http://{host}:{server.server_port}", server.server_port)
        finally:
            self.stopping.set()
            server.shutdown()
            thread.join()
            server.server_close()


def new_campaign(service: Service, status: str) -> JsonObject:
    """The record of messaging v1 Usa2p; its keywords are only what was declared at registration."""
    sid = new_sid("QE")
    return {
        "sid": sid,
        "account_sid": service.account_sid,
        "brand_registration_sid": new_sid("BN"),
        "messaging_service_sid": service.sid,
        "description": "Appointment reminders of a fictional study",
        "message_samples": ["Your visit is tomorrow. Reply STOP to end."],
        "us_app_to_person_usecase": "LOW_VOLUME",
        "has_embedded_links": False,
        "has_embedded_phone": False,
        "subscriber_opt_in": True,
        "age_gated": False,
        "direct_lending": False,
        "campaign_status": status,
        "campaign_id": "CFICT10N" if status == "VERIFIED" else None,
        "is_externally_registered": False,
        "rate_limits": {},
        "message_flow": "Participants agree in the consent form.",
        "opt_in_message": "You will get study texts.",
        "opt_out_message": "You will get no more study texts.",
        "help_message": "Call the study team.",
        "opt_in_keywords": ["START"],
        "opt_out_keywords": ["STOP"],
        "help_keywords": ["HELP"],
        "privacy_policy_url": None,
        "terms_and_conditions_url": None,
        "date_created": "2026-01-02T10:00:00Z",
        "date_updated": "2026-01-02T10:00:00Z",
        "url": f"https://messaging.twilio.com/v1/Services/{service.sid}/Compliance/Usa2p/{sid}",
        "mock": False,
        "errors": [],
    }


# ------------------------------------------------------------------ the REST API


class ApiError(Exception):
    """An error in Twilio's own form: HTTP status, Twilio's code, text."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def response(self) -> Response:
        more = f"https://www.twilio.com/docs/errors/{self.code}"
        content = {"code": self.code, "message": self.message, "more_info": more, "status": self.status}
        answer = jsonify(content)
        answer.status_code = self.status
        if self.status == 401:
            answer.headers["WWW-Authenticate"] = 'Basic realm="Twilio API"'
        return answer


def bad_request(message: str, code: int = 20001) -> ApiError:
    return ApiError(400, code, message)


def not_found() -> ApiError:
    return ApiError(404, 20404, f"The requested resource {request.path} was not found")


PAGING = ("PageSize", "Page", "PageToken")
MAX_PAGE_SIZE = 1000  # twilio-oai: PageSize minimum 1, maximum 1000, default 50
ADDRESS = re.compile(r"\+\d{2,15}|\d{3,15}|[a-z]+:\S+|[A-Za-z0-9][A-Za-z0-9 ]{0,10}")


def arguments(
    source: Iterable[tuple[str, str]], allowed: Iterable[str], repeatable: str = ""
) -> dict[str, str]:
    """Parameters by name. Unknown and repeated ones are refused, where Twilio would ignore them: a typing
    error in a filter must not pass for an answer."""
    known = set(allowed)
    found: dict[str, str] = {}
    for name, value in source:
        if name not in known:
            raise bad_request(f"Unknown parameter {name}: Twilio's API description does not have it")
        if name in found and name != repeatable:
            raise bad_request(f"Parameter {name} was given twice")
        found[name] = value
    return found


def query(*allowed: str) -> dict[str, str]:
    return arguments(request.args.items(multi=True), (*allowed, *PAGING))


def form(*allowed: str, repeatable: str = "") -> dict[str, str]:
    if request.args:
        raise bad_request("A POST takes its parameters in the form, not in the query")
    return arguments(request.form.items(multi=True), allowed, repeatable)


def required(values: Mapping[str, str], *names: str) -> None:
    missing = [name for name in names if not values.get(name)]
    if missing:
        raise bad_request(f"Missing required parameter {missing[0]}")


def page_size(values: Mapping[str, str]) -> int:
    value = values.get("PageSize", "50")
    # The API description's limit is refused here rather than clamped: what Twilio does is not documented.
    if not value.isdigit() or not 1 <= int(value) <= MAX_PAGE_SIZE:
        raise bad_request(f"PageSize must be within 1..{MAX_PAGE_SIZE}")
    return int(value)


def page_number(values: Mapping[str, str]) -> int:
    value = values.get("Page", "0")
    if not value.isdigit():
        raise bad_request("Page must be a number from 0")
    if int(value) and "PageToken" not in values:
        raise bad_request("Paged requests must include a PageToken", 70002)
    return int(value)


def read_whole_number(name: str, value: object) -> int:
    if not str(value).isdigit():
        raise bad_request(f"{name} must be a whole number")
    return int(str(value))


def read_boolean(name: str, value: str) -> bool:
    if value.lower() not in {"true", "false"}:
        raise bad_request(f"{name} must be true or false")
    return value.lower() == "true"


def read_time(name: str, value: str) -> datetime:
    """YYYY-MM-DD (midnight GMT), YYYY-MM-DDTHH:MM:SSZ, or RFC 2822 with a zone."""
    for pattern in ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"):
        with contextlib.suppress(ValueError):
            return datetime.strptime(value, pattern).replace(tzinfo=UTC)
    with contextlib.suppress(ValueError):
        when = parsedate_to_datetime(value)
        if when.tzinfo is not None:
            return when.astimezone(UTC)
    raise bad_request(f"{name} is no date that Twilio reads")


def read_address(name: str, value: str) -> str:
    """A + that was not percent-encoded arrives as a blank, and is refused."""
    if not ADDRESS.fullmatch(value):
        raise bad_request(f"{name} is not a valid phone number or channel address", 21211)
    return value


def message_filter(values: Mapping[str, str]) -> Callable[[Message], bool]:
    """To, From, DateSent (that day, GMT), DateSent< and DateSent> (both inclusive, twilio-oai api_v2010)."""
    to = read_address("To", values["To"]) if "To" in values else None
    from_ = read_address("From", values["From"]) if "From" in values else None
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    if "DateSent" in values:
        day = read_time("DateSent", values["DateSent"]).replace(hour=0, minute=0, second=0)
        first, last = day, day + timedelta(days=1, microseconds=-1)
    if "DateSent>" in values:
        first = max(first, read_time("DateSent>", values["DateSent>"]))
    if "DateSent<" in values:
        last = min(last, read_time("DateSent<", values["DateSent<"]))

    def matches(message: Message) -> bool:
        return (
            (to is None or message.to == to)
            and (from_ is None or message.from_ == from_)
            and first <= message.at.replace(microsecond=0) <= last
        )

    return matches


SERVICE_TEXT = {
    "FriendlyName": "friendly_name",
    "InboundRequestUrl": "inbound_request_url",
    "InboundMethod": "inbound_method",
    "FallbackUrl": "fallback_url",
    "FallbackMethod": "fallback_method",
    "StatusCallback": "status_callback",
    "ScanMessageContent": "scan_message_content",
    "ValidityPeriod": "validity_period",
    "Usecase": "usecase",
}
SERVICE_SWITCHES = {
    "StickySender": "sticky_sender",
    "MmsConverter": "mms_converter",
    "SmartEncoding": "smart_encoding",
    "FallbackToLongCode": "fallback_to_long_code",
    "AreaCodeGeomatch": "area_code_geomatch",
    "SynchronousValidation": "synchronous_validation",
    "UseInboundWebhookOnNumber": "use_inbound_webhook_on_number",
}
NUMBER_FIELDS = {
    "FriendlyName": "friendly_name",
    "SmsUrl": "sms_url",
    "SmsMethod": "sms_method",
    "SmsFallbackUrl": "sms_fallback_url",
    "SmsFallbackMethod": "sms_fallback_method",
    "SmsApplicationSid": "sms_application_sid",
    "StatusCallback": "status_callback",
    "StatusCallbackMethod": "status_callback_method",
}
SENDER_LISTS = {
    "PhoneNumbers": ("phone_numbers", SenderKind.PHONE_NUMBER),
    "ShortCodes": ("short_codes", SenderKind.SHORT_CODE),
    "AlphaSenders": ("alpha_senders", SenderKind.ALPHA),
    "ChannelSenders": ("senders", SenderKind.CHANNEL),
}


def service_changes(values: Mapping[str, str]) -> JsonObject:
    changes: JsonObject = {
        SERVICE_TEXT[name]: value for name, value in values.items() if name in SERVICE_TEXT
    }
    for name in SERVICE_SWITCHES.keys() & values.keys():
        changes[SERVICE_SWITCHES[name]] = read_boolean(name, values[name])
    check_hooks(values)
    for name in {"inbound_request_url", "fallback_url", "status_callback"} & changes.keys():
        changes[name] = changes[name] or None
    if "validity_period" in changes:
        changes["validity_period"] = read_whole_number("ValidityPeriod", changes["validity_period"])
    return changes


def check_hooks(values: Mapping[str, str]) -> None:
    """URLs must be http(s), methods GET or POST.

    A wrong connection override is refused here; Twilio may show it (11243) only when it calls the URL.
    """
    for name, value in values.items():
        if name.endswith("Method") and value not in {"GET", "POST"}:
            raise bad_request(f"{name} must be GET or POST")
        if value and name.endswith(("Url", "StatusCallback")):
            if urlsplit(value).scheme not in {"http", "https"}:
                raise bad_request(f"{name} is not a valid URL", 21402)
            try:
                parse_overrides(value)
            except ValueError as error:
                raise bad_request(f"{name}: {error}", 11243) from error


class RestApi:
    """The handlers of the REST API, over one simulator's state. g.account is who asks."""

    def __init__(self, simulator: TwilioSimulator) -> None:
        self.sim = simulator

    def routes(self) -> list[tuple[str, str, str, Callable[..., ResponseReturnValue]]]:
        """(method, path, resource name as in the request log, handler)"""
        account, services = "/2010-04-01/Accounts/<account_sid>", "/v1/Services"
        numbers = f"{account}/IncomingPhoneNumbers"
        return [
            ("GET", "/2010-04-01/Accounts.json", "Accounts", self.list_accounts),
            ("GET", f"{account}.json", "Account", self.fetch_account),
            ("GET", f"{account}/Messages.json", "Messages", self.list_messages),
            ("POST", f"{account}/Messages.json", "Messages", self.create_message),
            ("GET", f"{account}/Messages/<sid>.json", "Message", self.fetch_message),
            ("GET", f"{numbers}.json", "IncomingPhoneNumbers", self.list_numbers),
            ("GET", f"{numbers}/<sid>.json", "IncomingPhoneNumber", self.fetch_number),
            ("POST", f"{numbers}/<sid>.json", "IncomingPhoneNumber", self.update_number),
            ("GET", services, "Services", self.list_services),
            ("POST", services, "Services", self.create_service),
            ("GET", f"{services}/<sid>", "Service", self.fetch_service),
            ("POST", f"{services}/<sid>", "Service", self.update_service),
            *self._sender_routes(services),
            ("GET", f"{services}/<sid>/Compliance/Usa2p", "Services/Usa2p", self.list_campaigns),
            ("GET", "/v1/Sinks", "Sinks", self.list_sinks),
            ("POST", "/v1/Sinks", "Sinks", self.create_sink),
            ("GET", "/v1/Sinks/<sid>", "Sink", self.fetch_sink),
            ("DELETE", "/v1/Sinks/<sid>", "Sink", self.delete_sink),
            ("POST", "/v1/Sinks/<sid>/Test", "Sink/Test", self.test_sink),
            ("POST", "/v1/Sinks/<sid>/Validate", "Sink/Validate", self.validate_sink),
            ("GET", "/v1/Subscriptions", "Subscriptions", self.list_subscriptions),
            ("POST", "/v1/Subscriptions", "Subscriptions", self.create_subscription),
            ("GET", "/v1/Subscriptions/<sid>", "Subscription", self.fetch_subscription),
            ("DELETE", "/v1/Subscriptions/<sid>", "Subscription", self.delete_subscription),
            ("GET", "/v1/Subscriptions/<sid>/SubscribedEvents", "SubscribedEvents", self.list_events),
            ("POST", "/v1/Subscriptions/<sid>/SubscribedEvents", "SubscribedEvents", self.create_event),
            (
                "DELETE",
                "/v1/Subscriptions/<sid>/SubscribedEvents/<kind>",
                "SubscribedEvent",
                self.delete_event,
            ),
            ("GET", "/v1/Types", "Types", self.list_types),
            ("GET", "/v1/Types/<kind>", "Type", self.fetch_type),
        ]

    def _sender_routes(self, services: str) -> list[tuple[str, str, str, Callable[..., ResponseReturnValue]]]:
        one = f"{services}/<service_sid>/PhoneNumbers/<sid>"
        return [
            (
                "GET",
                f"{services}/<service_sid>/<any({','.join(SENDER_LISTS)}):part>",
                "Services/Senders",
                self.list_senders,
            ),
            ("POST", f"{services}/<service_sid>/PhoneNumbers", "Services/PhoneNumbers", self.attach_number),
            ("GET", one, "Services/PhoneNumber", self.fetch_attached_number),
            ("DELETE", one, "Services/PhoneNumber", self.detach_number),
        ]

    # -- who asks

    def authenticate(self) -> Account:
        credentials = request.authorization
        if credentials is None or credentials.type != "basic":
            raise ApiError(401, 20003, "Authenticate")
        for account in self.sim.accounts.values():
            if account.accepts(credentials.username or "", credentials.password or ""):
                return account
        raise ApiError(401, 20003, "Authenticate")

    def _account(self, sid: str) -> Account:
        """The account in the path: one's own, or a subaccount of one's own."""
        account = self.sim.accounts.get(sid)
        if account is None or g.account.sid not in {account.sid, account.owner_sid}:
            raise not_found()
        return account

    # -- api v2010

    def list_accounts(self) -> ResponseReturnValue:
        values = query("FriendlyName", "Status")
        own = [a.record() for a in self.sim.accounts.values() if g.account.sid in {a.sid, a.owner_sid}]
        return self._old_page("accounts", equal(own, values, "FriendlyName", "Status"))

    def fetch_account(self, account_sid: str) -> ResponseReturnValue:
        return jsonify(self._account(account_sid).record())

    def list_messages(self, account_sid: str) -> ResponseReturnValue:
        account = self._account(account_sid)
        values = query("To", "From", "DateSent", "DateSent<", "DateSent>")
        size, number = page_size(values), page_number(values)
        log = self.sim.logs[account_sid]
        rows, more = log.page(message_filter(values), size=size, after=self._after(log, values))
        token = f"PA{rows[-1].sid}" if more else None
        return self._old_frame("messages", [row.record(account) for row in rows], number, size, token)

    @staticmethod
    def _after(log: MessageLog, values: Mapping[str, str]) -> Message | None:
        """The last message of the page before: so pages do not shift while messages arrive."""
        if "PageToken" not in values:
            return None
        message = log.find(values["PageToken"].removeprefix("PA"))
        if message is None:
            raise bad_request("Invalid PageToken")
        return message

    def create_message(self, account_sid: str) -> ResponseReturnValue:
        account = self._account(account_sid)
        values = form("To", "From", "MessagingServiceSid", "Body")
        required(values, "To", "Body")
        service, from_ = values.get("MessagingServiceSid"), values.get("From")
        if not service and not from_:
            raise bad_request("A 'From' phone number is required.", 21603)
        try:
            sent = self.sim.send_outbound(to=values["To"], body=values["Body"], service=service, from_=from_)
        except MessageRefused as refused:
            raise bad_request(refused.message, refused.code) from refused
        except LookupError as error:
            raise bad_request(str(error), 21606) from error
        accepted = {"status": "accepted" if service else "queued", "error_code": None, "date_sent": None}
        return jsonify(sent.record(account) | accepted), 201

    def fetch_message(self, account_sid: str, sid: str) -> ResponseReturnValue:
        account = self._account(account_sid)
        message = self.sim.logs[account_sid].find(sid)
        if message is None:
            raise not_found()
        return jsonify(message.record(account))

    def list_numbers(self, account_sid: str) -> ResponseReturnValue:
        self._account(account_sid)
        values = query("PhoneNumber", "FriendlyName", "Beta", "Origin")
        rows = [number.as_incoming_number() for number in self._numbers(account_sid)]
        part = values.get("PhoneNumber", "").strip("*")  # a part of a number finds it too
        rows = [row for row in equal(rows, values, "FriendlyName", "Origin") if part in row["phone_number"]]
        if "Beta" in values:
            rows = [row for row in rows if row["beta"] is read_boolean("Beta", values["Beta"])]
        return self._old_page("incoming_phone_numbers", rows)

    def _numbers(self, account_sid: str) -> list[Sender]:
        kind = SenderKind.PHONE_NUMBER
        return [s for s in self.sim.senders.values() if s.account_sid == account_sid and s.kind is kind]

    def _number(self, account_sid: str, sid: str) -> Sender:
        for number in self._numbers(account_sid):
            if number.sid == sid:
                return number
        raise not_found()

    def fetch_number(self, account_sid: str, sid: str) -> ResponseReturnValue:
        self._account(account_sid)
        return jsonify(self._number(account_sid, sid).as_incoming_number())

    def update_number(self, account_sid: str, sid: str) -> ResponseReturnValue:
        self._account(account_sid)
        number = self._number(account_sid, sid)
        values = form(*NUMBER_FIELDS)
        check_hooks(values)
        for name, value in values.items():
            setattr(number, NUMBER_FIELDS[name], value)
        return jsonify(number.as_incoming_number())

    @classmethod
    def _old_page(cls, key: str, rows: Sequence[JsonObject]) -> ResponseReturnValue:
        values = {name: request.args[name] for name in PAGING if name in request.args}
        part, number, size, token = window(rows, values, prefix="PA")
        return cls._old_frame(key, part, number, size, token)

    @staticmethod
    def _old_frame(
        key: str, rows: Sequence[JsonObject], number: int, size: int, token: str | None
    ) -> ResponseReturnValue:
        """The paging fields of 2010-04-01; links are relative to the API's host, and lead onward only."""
        start = number * size
        return jsonify(
            {
                key: rows,
                "page": number,
                "page_size": size,
                "start": start,
                "end": max(start + len(rows) - 1, 0),
                "uri": page_link(number, size, request.args.get("PageToken", "")),
                "first_page_uri": page_link(0, size, ""),
                "previous_page_uri": None,
                "next_page_uri": page_link(number + 1, size, token) if token else None,
            }
        )

    # -- messaging v1

    def _service(self, sid: str) -> Service:
        service = self.sim.services.get(sid)
        if service is None or service.account_sid != g.account.sid:
            raise not_found()
        return service

    def list_services(self) -> ResponseReturnValue:
        query()
        own = [s for s in self.sim.services.values() if s.account_sid == g.account.sid]
        return self._page("services", [service.record(self._base("Services")) for service in own])

    def create_service(self) -> ResponseReturnValue:
        values = form(*SERVICE_TEXT, *SERVICE_SWITCHES)
        required(values, "FriendlyName")
        # Advanced Opt-Out is off until somebody enables it in the Console (Twilio docs: Advanced Opt-Out).
        service = Service(account_sid=g.account.sid, advanced_opt_out=False, **service_changes(values))
        self.sim.services[service.sid] = service
        return jsonify(service.record(self._base("Services"))), 201

    def fetch_service(self, sid: str) -> ResponseReturnValue:
        return jsonify(self._service(sid).record(self._base("Services")))

    def update_service(self, sid: str) -> ResponseReturnValue:
        service = self._service(sid)
        for name, value in service_changes(form(*SERVICE_TEXT, *SERVICE_SWITCHES)).items():
            setattr(service, name, value)
        return jsonify(service.record(self._base("Services")))

    def list_senders(self, service_sid: str, part: str) -> ResponseReturnValue:
        self._service(service_sid)
        query()
        key, kind = SENDER_LISTS[part]
        base = self._base(f"Services/{service_sid}/{part}")
        senders = [s for s in self.sim.senders_of(service_sid) if s.kind is kind]
        return self._page(key, [sender.in_service(base) for sender in senders])

    def attach_number(self, service_sid: str) -> ResponseReturnValue:
        service = self._service(service_sid)
        values = form("PhoneNumberSid")
        required(values, "PhoneNumberSid")
        number = self._number(service.account_sid, values["PhoneNumberSid"])
        if number.service_sid == service_sid:
            raise ApiError(409, 21710, "Phone Number or Short Code is already in the Messaging Service.")
        if number.service_sid:
            raise ApiError(409, 21712, "Phone Number or Short Code is in another Messaging Service.")
        number.service_sid = service_sid
        return jsonify(number.in_service(self._base(f"Services/{service_sid}/PhoneNumbers"))), 201

    def _attached(self, service_sid: str, sid: str) -> Sender:
        number = self._number(self._service(service_sid).account_sid, sid)
        if number.service_sid != service_sid:
            raise not_found()
        return number

    def fetch_attached_number(self, service_sid: str, sid: str) -> ResponseReturnValue:
        number = self._attached(service_sid, sid)
        return jsonify(number.in_service(self._base(f"Services/{service_sid}/PhoneNumbers")))

    def detach_number(self, service_sid: str, sid: str) -> ResponseReturnValue:
        self._attached(service_sid, sid).service_sid = None
        return "", 204

    def list_campaigns(self, sid: str) -> ResponseReturnValue:
        query()
        return self._page("compliance", self._service(sid).campaigns)

    # -- events v1

    def _sink(self, sid: str) -> Sink:
        sink = self.sim.sinks.get(sid)
        if sink is None or sink.account_sid != g.account.sid:
            raise not_found()
        return sink

    def list_sinks(self) -> ResponseReturnValue:
        values = query("InUse", "Status")
        used = {s.sink_sid for s in self.sim.subscriptions.values()}
        rows = [s for s in self.sim.sinks.values() if s.account_sid == g.account.sid]
        if "InUse" in values:
            wanted = read_boolean("InUse", values["InUse"])
            rows = [s for s in rows if (s.sid in used) is wanted]
        rows = [s for s in rows if values.get("Status", s.status) == s.status]
        return self._page("sinks", [s.record(self._base("Sinks")) for s in rows])

    def create_sink(self) -> ResponseReturnValue:
        values = form("Description", "SinkConfiguration", "SinkType")
        required(values, "Description", "SinkConfiguration", "SinkType")
        kind = values["SinkType"]
        if kind not in {"webhook", "kinesis", "segment", "email"}:
            raise bad_request("SinkType is unknown")
        configuration = read_json_object("SinkConfiguration", values["SinkConfiguration"])
        if kind == "webhook":
            check_webhook_sink(configuration)
        sink = Sink(g.account.sid, values["Description"], configuration, kind)
        self.sim.sinks[sink.sid] = sink
        return jsonify(sink.record(self._base("Sinks"))), 201

    def fetch_sink(self, sid: str) -> ResponseReturnValue:
        return jsonify(self._sink(sid).record(self._base("Sinks")))

    def delete_sink(self, sid: str) -> ResponseReturnValue:
        sink = self._sink(sid)
        # The subscription must go first; the error's own code is not documented.
        if any(s.sink_sid == sink.sid for s in self.sim.subscriptions.values()):
            raise bad_request("The sink is used by a subscription")
        del self.sim.sinks[sink.sid]
        return "", 204

    def test_sink(self, sid: str) -> ResponseReturnValue:
        """Send the test event, whose data holds the test_id that Validate wants back."""
        sink = self._sink(sid)
        sink.test_id, sink.status = str(uuid.uuid4()), "validating"
        when = utc_now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        schema = "https://events-schemas.twilio.com/EventStreams.TestSinkEvent/1"
        event = cloud_event(
            TEST_EVENT, {"test_id": sink.test_id}, source="Sink", schema=schema, id_=new_sid("EZ"), when=when
        )
        destination = str(sink.configuration.get("destination", ""))
        self.sim.send(json_request(destination, event_stream_body(event), g.account.auth_token))
        return jsonify({"result": "submitted"}), 201

    def validate_sink(self, sid: str) -> ResponseReturnValue:
        sink = self._sink(sid)
        values = form("TestId")
        required(values, "TestId")
        if not sink.test_id or values["TestId"] != sink.test_id:
            raise bad_request("TestId is not the one of the last test event")
        sink.status = "active"
        return jsonify({"result": "valid"}), 201

    def _subscription(self, sid: str) -> Subscription:
        subscription = self.sim.subscriptions.get(sid)
        if subscription is None or subscription.account_sid != g.account.sid:
            raise not_found()
        return subscription

    def list_subscriptions(self) -> ResponseReturnValue:
        sink_sid = query("SinkSid").get("SinkSid")
        own = [s for s in self.sim.subscriptions.values() if s.account_sid == g.account.sid]
        rows = [s for s in own if sink_sid in {None, s.sink_sid}]
        return self._page("subscriptions", [s.record(self._base("Subscriptions")) for s in rows])

    def create_subscription(self) -> ResponseReturnValue:
        values = form("Description", "SinkSid", "Types", repeatable="Types")
        required(values, "Description", "SinkSid", "Types")
        sink = self._sink(values["SinkSid"])
        types: dict[str, int] = {}
        for text in request.form.getlist("Types"):
            wanted = read_json_object("Types", text)
            version = read_whole_number("schema_version", wanted.get("schema_version", 1))
            types[check_type(wanted.get("type"))] = version
        subscription = Subscription(g.account.sid, values["Description"], sink.sid, types)
        self.sim.subscriptions[subscription.sid] = subscription
        return jsonify(subscription.record(self._base("Subscriptions"))), 201

    def fetch_subscription(self, sid: str) -> ResponseReturnValue:
        return jsonify(self._subscription(sid).record(self._base("Subscriptions")))

    def delete_subscription(self, sid: str) -> ResponseReturnValue:
        del self.sim.subscriptions[self._subscription(sid).sid]
        return "", 204

    def list_events(self, sid: str) -> ResponseReturnValue:
        query()
        subscription, base = self._subscription(sid), self._base("Subscriptions")
        return self._page("types", [subscription.event_record(kind, base) for kind in subscription.types])

    def create_event(self, sid: str) -> ResponseReturnValue:
        subscription = self._subscription(sid)
        values = form("Type", "SchemaVersion")
        required(values, "Type")
        kind = check_type(values["Type"])
        subscription.types[kind] = read_whole_number("SchemaVersion", values.get("SchemaVersion", "1"))
        return jsonify(subscription.event_record(kind, self._base("Subscriptions"))), 201

    def delete_event(self, sid: str, kind: str) -> ResponseReturnValue:
        if self._subscription(sid).types.pop(kind, None) is None:
            raise not_found()
        return "", 204

    def list_types(self) -> ResponseReturnValue:
        schema = query("SchemaId").get("SchemaId")
        kinds = [kind for kind, own in EVENT_TYPES.items() if schema in {None, own}]
        return self._page("types", [self._type(kind) for kind in kinds])

    def fetch_type(self, kind: str) -> ResponseReturnValue:
        if kind not in EVENT_TYPES:
            raise not_found()
        return jsonify(self._type(kind))

    def _type(self, kind: str) -> JsonObject:
        schema = EVENT_TYPES[kind]
        return {
            "type": kind,
            "schema_id": schema,
            "description": kind,
            "status": "available",
            "documentation_url": "https://www.twilio.com/docs/events/event-types",
            "date_created": "2020-08-13T13:28:20Z",
            "date_updated": "2020-08-13T13:28:20Z",
            "url": f"{self._base('Types')}/{kind}",
            "links": {"schema": f"{self._base('Schemas')}/{schema}/Versions"},
        }

    # -- paging of the v1 APIs

    @staticmethod
    def _base(path: str) -> str:
        """Absolute, on the simulator's own host: v1 clients follow meta.next_page_url as it stands."""
        return f"{request.host_url}v1/{path}"

    @staticmethod
    def _page(key: str, rows: Sequence[JsonObject]) -> ResponseReturnValue:
        values = {name: request.args[name] for name in PAGING if name in request.args}
        part, number, size, token = window(rows, values, prefix="PT")
        host = request.host_url.rstrip("/")
        meta = {
            "key": key,
            "page": number,
            "page_size": size,
            "url": host + page_link(number, size, values.get("PageToken", "")),
            "first_page_url": host + page_link(0, size, ""),
            "previous_page_url": None,
            "next_page_url": host + page_link(number + 1, size, token) if token else None,
        }
        return jsonify({key: part, "meta": meta})


def equal(rows: list[JsonObject], values: Mapping[str, str], *names: str) -> list[JsonObject]:
    """The rows whose fields are what the filters of these names ask for."""
    wanted = {
        re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(): values[name] for name in names if name in values
    }
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def window(
    rows: Sequence[JsonObject], values: Mapping[str, str], *, prefix: str
) -> tuple[Sequence[JsonObject], int, int, str | None]:
    """One page of a short list: its rows, number, size, and the token of the next page."""
    size, number = page_size(values), page_number(values)
    token = values.get("PageToken", f"{prefix}0").removeprefix(prefix)
    if not token.isdigit():
        raise bad_request("Invalid PageToken")
    end = int(token) + size
    return rows[int(token) : end], number, size, f"{prefix}{end}" if end < len(rows) else None


def page_link(number: int, size: int, token: str | None) -> str:
    """The path and query of another page of the request at hand, filters included."""
    filters = [(name, value) for name, value in request.args.items(multi=True) if name not in PAGING]
    paging = [("PageSize", str(size)), ("Page", str(number))]
    if token:
        paging.append(("PageToken", token))
    return f"{quote(request.path)}?{urlencode(filters + paging)}"


def read_json_object(name: str, text: str) -> JsonObject:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise bad_request(f"{name} is not JSON") from error
    if not isinstance(value, dict):
        raise bad_request(f"{name} is not a JSON object")
    return value


def check_webhook_sink(configuration: JsonObject) -> None:
    url = urlsplit(str(configuration.get("destination", "")))
    if url.scheme not in {"http", "https"} or configuration.get("method") not in {"GET", "POST"}:
        raise bad_request("SinkConfiguration needs a destination URL and a method")
    if url.fragment:  # Twilio docs: connection overrides are not for Event Streams
        raise bad_request("A sink's destination takes no connection overrides")


def check_type(kind: object) -> str:
    if not isinstance(kind, str) or kind not in EVENT_TYPES:
        raise bad_request("The event type is unknown")
    return kind


# ------------------------------------------------------------------ the server


class _QuietHandler(WSGIRequestHandler):
    """Keeps the terminal clean, and cuts a connection when a fault asks for it."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: the simulator has its own request log."""

    def connection_dropped(self, error: BaseException, environ: Any = None) -> None:
        """After a cut there is no next request on this connection."""
        self.close_connection = True

    def finish(self) -> None:
        super().finish()
        if getattr(self, "environ", {}).get(CUT):
            # Lingering for zero seconds turns the close into a TCP reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


CUT = "simulator.cut"


def create_app(simulator: TwilioSimulator) -> Flask:
    """The Flask application: REST API, faults, request log, and the control API under /_sim/."""
    app = Flask("twilio_simulator")
    app.json.sort_keys = False  # type: ignore[attr-defined]  # the default provider has it
    api = RestApi(simulator)
    for method, path, resource, handler in api.routes():
        app.add_url_rule(
            path, f"{method} {resource}", handler, methods=[method], provide_automatic_options=False
        )
    for method, path, name, handler in ControlApi(simulator).routes():
        app.add_url_rule(path, f"{method} {name}", handler, methods=[method])
    app.before_request(lambda: _before(simulator, api))
    app.after_request(lambda response: _after(simulator, response))
    app.register_error_handler(ApiError, lambda error: error.response())
    app.register_error_handler(HTTPException, _http_error)
    return app


def _http_error(error: HTTPException) -> Response:
    if error.code == 404:
        return not_found().response()
    code = {405: 20004, 400: 20001}.get(error.code or 500, 20500)
    return ApiError(error.code or 500, code, error.name).response()


def _resource() -> str:
    name = (request.endpoint or "- unknown").partition(" ")[2]
    return name.replace("Senders", str((request.view_args or {}).get("part", "Senders")))


def _before(simulator: TwilioSimulator, api: RestApi) -> ResponseReturnValue | None:
    if request.path.startswith("/_sim"):
        return None
    seen = LoggedRequest(
        request.method, _resource(), request.path, request.args.to_dict(), request.form.to_dict()
    )
    g.seen = seen
    simulator.request_log.append(seen)
    g.fault = simulator.take_fault(seen)
    if g.fault is not None and g.fault.kind is not FaultKind.TRUNCATED:
        return _fail(simulator, g.fault)
    g.account = api.authenticate()
    return None


def _fail(simulator: TwilioSimulator, fault: Fault) -> ResponseReturnValue:
    if fault.kind is FaultKind.HANG:
        simulator.stopping.wait(fault.seconds)
    if fault.kind in {FaultKind.HANG, FaultKind.RESET}:
        return Response(_cut(request.environ))
    code, text = {
        FaultKind.TOO_MANY: (20429, "Too Many Requests"),
        FaultKind.UNAVAILABLE: (20503, "Service Unavailable"),
        FaultKind.SERVER_ERROR: (20500, "Internal Server Error"),
    }[fault.kind]
    raise ApiError(int(fault.kind), code, text)


def _cut(environ: dict[str, Any]) -> Iterator[bytes]:
    """A response body that never begins: werkzeug takes the error for a client that went away."""
    environ[CUT] = True
    raise ConnectionResetError
    yield b""


def _after(simulator: TwilioSimulator, response: Response) -> Response:
    seen: LoggedRequest | None = g.get("seen")
    if seen is None:
        return response
    fault: Fault | None = g.get("fault")
    if fault is not None and fault.kind in {FaultKind.HANG, FaultKind.RESET}:
        return response
    seen.status = response.status_code
    if fault is not None and fault.kind is FaultKind.TRUNCATED:
        data = response.get_data()
        response.set_data(data[: len(data) // 2])
    return response


class ControlApi:
    """What tests and the demo use from another process; no part of Twilio."""

    def __init__(self, simulator: TwilioSimulator) -> None:
        self.sim = simulator

    def routes(self) -> list[tuple[str, str, str, Callable[..., ResponseReturnValue]]]:
        return [
            ("POST", "/_sim/text", "text", self.text),
            ("POST", "/_sim/outbound", "outbound", self.outbound),
            ("POST", "/_sim/messages", "add", self.add_messages),
            ("GET", "/_sim/messages", "messages", self.messages),
            ("POST", "/_sim/faults", "fault", self.add_fault),
            ("DELETE", "/_sim/faults", "mend", self.mend),
            ("GET", "/_sim/requests", "requests", self.requests),
            ("DELETE", "/_sim/requests", "forget", self.forget_requests),
        ]

    def text(self) -> ResponseReturnValue:
        """{"from": …, "to" or "service": …, "body": …, "via": …, "deliver": …, "at": ISO 8601 …}"""
        given = self._given()
        try:
            return jsonify(self.sim.text(**given).summary())
        except (LookupError, TypeError, ValueError) as error:
            return jsonify({"error": str(error)}), 400

    def outbound(self) -> ResponseReturnValue:
        """{"to": …, "body": …, "from" or "service": …}"""
        try:
            message = self.sim.send_outbound(**self._given())
        except MessageRefused as refused:
            return jsonify({"error_code": refused.code}), 400
        return jsonify({"message_sid": message.sid, "error_code": message.error_code})

    def add_messages(self) -> ResponseReturnValue:
        """{"messages": [{"from": …, "to" or "service": …, "body": …, "at": …}, …]}, not delivered."""
        rows = request.get_json()["messages"]
        try:
            messages = [self.sim.inbound(**self._renamed(row))[0] for row in rows]
        except (LookupError, TypeError, ValueError) as error:
            return jsonify({"error": str(error)}), 400
        self.sim.add_messages(messages)
        return jsonify({"added": len(messages), "sids": [message.sid for message in messages]})

    def messages(self) -> ResponseReturnValue:
        sid = request.args.get("account", self.sim.first_account.sid)
        account = self.sim.accounts[sid]
        return jsonify({"messages": [message.record(account) for message in self.sim.messages(sid)]})

    def add_fault(self) -> ResponseReturnValue:
        """{"kind": "503", "resource": "Messages", "page": 1, "times": null}"""
        given = request.get_json()
        self.sim.fail(given.pop("kind"), **given)
        return jsonify({"faults": len(self.sim.faults)})

    def mend(self) -> ResponseReturnValue:
        self.sim.mend()
        return "", 204

    def requests(self) -> ResponseReturnValue:
        log = [
            {"method": r.method, "resource": r.resource, "path": r.path, "query": r.query, "status": r.status}
            for r in list(self.sim.request_log)
        ]
        return jsonify({"counts": self.sim.request_counts(), "requests": log})

    def forget_requests(self) -> ResponseReturnValue:
        self.sim.request_log.clear()
        return "", 204

    def _given(self) -> JsonObject:
        return self._renamed(request.get_json())

    @staticmethod
    def _renamed(row: JsonObject) -> JsonObject:
        given = dict(row)
        if "from" in given:
            given["from_"] = given.pop("from")
        if isinstance(given.get("at"), str):
            given["at"] = datetime.fromisoformat(given["at"])
        return given


# ------------------------------------------------------------------ on its own


def main(arguments_given: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulators.twilio", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--public-url", default=PUBLIC_URL, help="what Twilio calls, and signs")
    parser.add_argument(
        "--deliver-to", help="where the public URL really listens, e.g. http://127.0.0.1:8000"
    )
    parser.add_argument("--route", action="append", default=[], metavar="PUBLIC=REAL", help="a further route")
    parser.add_argument("--account-sid", default=ACCOUNT_SID)
    parser.add_argument("--auth-token", default=AUTH_TOKEN, help="of this simulator only; never a real one")
    parser.add_argument("--service-sid", default=SERVICE_SID)
    parser.add_argument("--sender", action="append", help=f"may be repeated; default {SENDER}")
    chosen = parser.parse_args(arguments_given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with simulator_from(chosen).serve(chosen.port, chosen.host) as server:
        print(f"Twilio simulator: {server.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def simulator_from(chosen: argparse.Namespace) -> TwilioSimulator:
    account = Account(sid=chosen.account_sid, auth_token=chosen.auth_token)
    simulator = TwilioSimulator([account], public_url=chosen.public_url, deliver_to=chosen.deliver_to)
    simulator.add_service(sid=chosen.service_sid, senders=chosen.sender or [SENDER])
    for route in chosen.route:
        public, _, real = cast(str, route).partition("=")
        simulator.deliver_to(real, public_url=public)
    return simulator


if __name__ == "__main__":
    main()
