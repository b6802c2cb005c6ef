"""Addresses of messages, and the keyed hash under which a number is stored (promise P5).

Apart from `phone`, as most processes do not need libphonenumber (2 MB in each).
"""

import base64
import hmac

# 128 bits of HMAC-SHA256: no two of a billion numbers collide, and an index entry stays small.
HASH_BYTES = 16


class PhoneHasher:
    """Turns E.164 numbers into keyed hashes: 22 characters of base64url."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def __call__(self, e164: str) -> str:
        digest = hmac.digest(self._key, e164.encode(), "sha256")[:HASH_BYTES]
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def channel_and_address(address: str) -> tuple[str, str]:
    """Split `whatsapp:+1…`, `rcs:+1…` or a bare `+1…` (channel "sms", which includes MMS)."""
    channel, colon, rest = address.partition(":")
    return (channel.lower(), rest) if colon else ("sms", address)
