"""Twilio's Consent Management API: have Twilio block, or deliver again, texts of a sender to a number.

It can only be written to: what Twilio blocks, only sending shows. It covers SMS, MMS and RCS, not WhatsApp.
Source: twilio-oai, accounts_v1 CreateBulkConsents; Twilio docs, "Bulk Upsert Consents API" and error 30646.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from twilio.rest import Client

from shared.domain.addresses import channel_and_address
from shared.errors import TwilioRejected, TwilioUnavailable
from worker.twilio.client import translate_errors

# Twilio's limits per request, and per minute and account; a tenth is left to other programs of the account.
MOST_PER_REQUEST = 25
REQUESTS_PER_MINUTE = 90
# Twilio's own failure, which a retry may pass.
_TRANSIENT = "INTERNAL_SERVER_ERROR"
# The example of an invalid number in Twilio's API description: no consent can be stored for it.
_NO_NUMBER = "+19"
INVALID_NUMBER, INVALID_SENDER = "INVALID_CONTACT_ID", "INVALID_SENDER_ID"


class Wish(StrEnum):
    """What a consent says."""

    OPT_OUT = "opt-out"
    OPT_IN = "opt-in"


class Collected(StrEnum):
    """How the participant said it."""

    OFFLINE = "offline"
    TEXT = "opt-out-message"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Consent:
    """One item of a request. Holds a phone number: it lives as long as the request, and has no repr."""

    number: str
    sender: str  # a Messaging Service's SID, or a number of the study
    wish: Wish
    collected: Collected
    since: datetime
    correlation_id: str  # 32 hexadecimal digits; the same in every retry

    def item(self) -> dict[str, str]:
        """Return the object that Twilio describes."""
        return {
            "contact_id": self.number,
            "correlation_id": self.correlation_id,
            "sender_id": self.sender,
            "status": self.wish.value,
            "source": self.collected.value,
            "date_of_consent": self.since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


@dataclass(frozen=True, slots=True)
class Result:
    """What Twilio says of one consent: stored, rejected for good with a reason, or to be tried again."""

    problem: str = ""
    is_transient: bool = False

    @property
    def stored(self) -> bool:
        """Whether Twilio has stored the consent."""
        return not self.problem

    @classmethod
    def of_all(cls, results: Collection["Result"]) -> "Result":
        """Return one result for several consents: stored if all are, to be tried again if any is."""
        problems = dict.fromkeys(result.problem for result in results if not result.stored)
        return cls("; ".join(problems), is_transient=any(result.is_transient for result in results))


def submit(client: Client, consents: Sequence[Consent]) -> dict[str, Result]:
    """Send consents, at most `MOST_PER_REQUEST`. Returns their results by correlation id.

    Raises TwilioUnavailable, also for 429, or TwilioRejected; nothing is known of the consents then.
    """
    results = {
        str(item.get("correlation_id")): _result(item)
        for item in _post(client, [consent.item() for consent in consents])
    }
    missing = Result("Twilio did not answer for it", is_transient=True)
    return {each.correlation_id: results.get(each.correlation_id, missing) for each in consents}


def probe(client: Client, sender: str) -> list[str]:
    """Return Twilio's error words for a consent that cannot be stored: it names no valid number.

    They include INVALID_CONTACT_ID where the API works, and INVALID_SENDER_ID where the sender is not accepted.
    Raises as `submit`.
    """
    item = {
        "contact_id": _NO_NUMBER,
        "correlation_id": "0" * 32,
        "sender_id": sender,
        "status": Wish.OPT_OUT.value,
        "source": "others",
    }
    return [word for answer in _post(client, [item]) for word in _words(answer)]


def is_covered(sender: str) -> bool:
    """Return whether the API takes a sender: a number or short code, not WhatsApp, RCS by itself, or a name."""
    channel, address = channel_and_address(sender)
    return channel == "sms" and address.removeprefix("+").isdigit()


def _post(client: Client, items: list[dict[str, str]]) -> list[Mapping[str, Any]]:
    with translate_errors():
        answered: Any = client.accounts.v1.bulk_consents.create(items=items).items
    if not isinstance(answered, list) or not all(isinstance(item, dict) for item in answered):
        raise TwilioUnavailable("twilio_strange_answer", "not of the described form")
    return answered


def _result(item: Mapping[str, Any]) -> Result:
    if item.get("error_code") in {0, "0"}:
        return Result()
    words = _words(item)
    code = str(item.get("error_code"))
    problem = f"Twilio error {code if code.isdigit() else 'unknown'}" + (
        f": {', '.join(words)}" if words else ""
    )
    return Result(problem, is_transient=_TRANSIENT in words or not code.isdigit())


def _words(item: Mapping[str, Any]) -> list[str]:
    """The error words. Anything else may hold a number and is dropped."""
    messages = item.get("error_messages")
    found = messages if isinstance(messages, list) else []
    return [word for word in map(str, found) if re.fullmatch(r"[A-Z][A-Z_]{2,60}", word)]


def why_not(error: TwilioRejected) -> str:
    """Return what a rejected request means for the API."""
    if error.status in {403, 404} or error.code == "twilio_not_permitted":
        return f"the Consent Management API is not enabled, or the API key may not use it ({error.detail})"
    return str(error)
