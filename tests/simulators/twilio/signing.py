"""Requests as Twilio signs them: forms over URL and parameters, JSON over a URL with the body's digest."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from twilio.request_validator import RequestValidator


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
