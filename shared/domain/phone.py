"""Phone numbers: any spelling to E.164, and E.164 to the keyed hash that is all we keep (promise P5)."""

import base64
import hmac
import re
from collections.abc import Iterator

import phonenumbers

# 128 bits of HMAC-SHA256: no two of a billion numbers collide, and an index entry stays small.
HASH_BYTES = 16

# North American numbers as they are mostly written; libphonenumber says the same of them (a test compares),
# at a twentieth of the speed, which counts with a hundred thousand records.
_E164_OF_NORTH_AMERICA = re.compile(r"\+1[2-9][0-9]{9}")
_AS_WRITTEN_THERE = re.compile(r"\(?([2-9][0-9]{2})\)?[ .-]{0,2}([0-9]{3})[ .-]?([0-9]{4})")
_THERE = frozenset({"US", "CA"})


class PhoneHasher:
    """Turns E.164 numbers into keyed hashes: 22 characters of base64url."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def __call__(self, e164: str) -> str:
        digest = hmac.digest(self._key, e164.encode(), "sha256")[:HASH_BYTES]
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def sender_number(address: str) -> str | None:
    """E.164 of a message's sender, or None where it is a short code or a raw caller id.

    Twilio gives E.164 "if possible", else the raw caller id, in which a country cannot be told.
    Source: Twilio docs, "TwiML for Programmable Messaging".
    """
    return _e164(address, None) if address.startswith("+") else None


def numbers_in(text: str, region: str) -> Iterator[str]:
    """E.164 of every phone number in a REDCap field's text; numbers without country are of `region`."""
    whole = _e164(text, region)
    if whole is not None:
        yield whole
        return
    leniency = phonenumbers.Leniency.POSSIBLE
    for match in phonenumbers.PhoneNumberMatcher(text, region, leniency=leniency):
        yield phonenumbers.format_number(match.number, phonenumbers.PhoneNumberFormat.E164)


def _e164(text: str, region: str | None) -> str | None:
    if _E164_OF_NORTH_AMERICA.fullmatch(text):
        return text
    if region in _THERE and (parts := _AS_WRITTEN_THERE.fullmatch(text)):
        return "+1" + "".join(parts.groups())
    return _e164_by_library(text, region)


def _e164_by_library(text: str, region: str | None) -> str | None:
    try:
        number = phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
    # "Possible", not "valid": numbering plans grow faster than any library's tables.
    if not phonenumbers.is_possible_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def channel_and_address(address: str) -> tuple[str, str]:
    """Split `whatsapp:+1…`, `rcs:+1…` or a bare `+1…` (channel "sms", which includes MMS)."""
    channel, colon, rest = address.partition(":")
    return (channel.lower(), rest) if colon else ("sms", address)
