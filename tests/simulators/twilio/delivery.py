"""Delivery over HTTP: connection overrides, retries, redirects, and what Twilio reads in the answer."""

from __future__ import annotations

import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import requests
from urllib3.exceptions import MaxRetryError, NewConnectionError

from tests.simulators.twilio.accounts import JsonObject
from tests.simulators.twilio.messages import Message
from tests.simulators.twilio.signing import SignedRequest, form_request

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

    def attempt(
        self, url: str, params: Mapping[str, str], token: str, *, method: str
    ) -> tuple[list[Exchange], int | None]:
        """Call a webhook: first try, retries and HTTP redirects; the second value is 11243 for a bad fragment."""
        try:
            overrides = parse_overrides(url)
        except ValueError:
            return [], 11243
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
            exchanges.append(self.send(signed, connect_s=connect, read_s=read))
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
            last = self.send(form_request(url, params if keep else {}, token, method=method))
            followed.append(last)
        return followed


def _never_connected(error: requests.ConnectionError) -> bool:
    cause = error.args[0] if error.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a sender's inbound messages go."""

    url: str
    method: str = "POST"
    fallback_url: str = ""
    fallback_method: str = "POST"


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
