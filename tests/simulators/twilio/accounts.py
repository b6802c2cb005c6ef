"""What an account holds: its tokens, senders, Messaging Services and A2P campaigns."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

ACCOUNT_SID = "AC" + "0" * 30 + "a1"
AUTH_TOKEN = "0123456789abcdef0123456789abcdef"
SERVICE_SID = "MG" + "0" * 30 + "b1"
SENDER = "+16505550199"

JsonObject = dict[str, Any]


def new_sid(prefix: str) -> str:
    """A SID as Twilio makes them: two letters and 32 hexadecimal digits."""
    return prefix + secrets.token_hex(16)


@dataclass(slots=True)
class Account:
    """An account or subaccount. Only the primary token signs; the secondary opens the REST API too."""

    sid: str = ACCOUNT_SID
    auth_token: str = AUTH_TOKEN
    secondary_auth_token: str | None = None
    api_keys: dict[str, str] = field(default_factory=dict)
    # Restricted API keys: what each may request, as "METHOD Resource" of the request log. Others may request all.
    permissions: dict[str, frozenset[str]] = field(default_factory=dict)
    consents_enabled: bool = True  # by Twilio's support: the Consent Management API
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

    def permits(self, user: str, request: str) -> bool:
        """Whether a login may make a request. An API key never reads accounts (Twilio docs, API keys)."""
        if user == self.sid:
            return True
        return not request.endswith((" Account", " Accounts")) and request in self.permissions.get(
            user, {request}
        )

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
