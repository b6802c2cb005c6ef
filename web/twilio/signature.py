"""Verifies that Twilio sent a request. Independent of Flask.

Uses the functions of `twilio.request_validator` 9.13, but not its `validate`: that sorts the parameters twice for
each secret, does not check a body hash in the URL beside a form, and raises for a missing header, a blank hash or a
body that is not text. Its comparison takes constant time for signatures of the right length (28 characters), so it
reveals nothing about the expected one.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import product
from urllib.parse import parse_qs, urlparse

from twilio import request_validator as twilio
from twilio.request_validator import HMAC_SHA1, HMAC_SHA256, RequestValidator, compare
from werkzeug.datastructures import MultiDict

from shared.errors import Forged

BODY_HASH = "bodySHA256"
# Twilio sends it with webhooks that a shared key has signed. It only chooses between the secrets: without one of them
# nothing passes. Source: twilio-python 9.13, request_validator.py.
SETTINGS_HEADER = "X-Twilio-Webhooks-Signature-Settings"

Secrets = Mapping[str, Iterable[str]]
_HASHER = RequestValidator("")


class SignatureVerifier:
    """Holds auth tokens and shared keys of every configured account; several per account during a rotation."""

    def __init__(self, tokens: Secrets, shared_keys: Secrets | None = None) -> None:
        self._accounts = set(tokens)
        self._validators = {HMAC_SHA1: _validators(tokens), HMAC_SHA256: _validators(shared_keys or {})}

    def verify_form(
        self, url: str, form: MultiDict[str, str], signature: str | None, account_sid: str | None,
        settings: str | None = None,
    ) -> None:  # fmt: skip
        """Check a form POST; `form` kept its blank values. Raises Forged.

        `settings` is the content of SETTINGS_HEADER.

        A signed request without an AccountSid may be any account's: the parser rejects it.
        """
        if BODY_HASH in parse_qs(url.partition("?")[2], keep_blank_values=True):
            raise Forged("body_hash_beside_form")
        text = "".join(name + value for name, value in sorted(set(form.items(multi=True))))
        self._signers([account_sid] if account_sid else self._accounts, url, text, signature, settings)

    def verify_json(
        self, url: str, body: bytes, signature: str | None, settings: str | None = None
    ) -> set[str]:
        """Check a JSON POST, whose URL carries the hash of its body. Returns the accounts that signed it.

        Raises Forged. Source: Twilio docs, "Webhooks security" and the Event Streams webhook quickstart.
        """
        hashes = parse_qs(url.partition("?")[2], keep_blank_values=True).get(BODY_HASH, [])
        # The library treats a blank hash as a missing one, and then raises AttributeError because of the body.
        if len(hashes) != 1 or not hashes[0]:
            raise Forged("no_body_hash")
        signers = self._signers(self._accounts, url, "", signature, settings)
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError:
            raise Forged("body_not_utf8") from None
        if not compare(_HASHER.compute_hash(text), hashes[0]):
            raise Forged("wrong_signature")
        return signers

    def _signers(
        self, accounts: Iterable[str], url: str, text: str, signature: str | None, settings: str | None
    ) -> set[str]:
        """The accounts whose secrets signed the URL followed by `text`. Raises Forged if none did."""
        if not signature:
            raise Forged("no_signature")
        known = self._accounts.intersection(accounts)
        if not known:
            raise Forged("unknown_account")
        algorithm = twilio.get_signature_algorithm(settings).upper()
        if algorithm not in self._validators:
            raise Forged("unknown_signature_algorithm")
        validators = self._validators[algorithm]
        known &= validators.keys()
        if not known:
            raise Forged("no_shared_key")
        signers = {
            account for account in known if _have_signed(validators[account], url, text, signature, algorithm)
        }
        if not signers:
            raise Forged("wrong_signature")
        return signers


@lru_cache(maxsize=64)
def _spellings(url: str) -> tuple[str, str]:
    """The URL without and with its port: Twilio signs either. Source: twilio-python, RequestValidator.validate."""
    parsed = urlparse(url)
    return twilio.remove_port(parsed), twilio.add_port(parsed)


def _validators(secrets: Secrets) -> dict[str, list[RequestValidator]]:
    made = {account: [RequestValidator(secret) for secret in some] for account, some in secrets.items()}
    return {account: validators for account, validators in made.items() if validators}


def _have_signed(
    validators: Iterable[RequestValidator], url: str, text: str, signature: str, algorithm: str
) -> bool:
    """Whether one of an account's secrets signed the URL, in either spelling, followed by `text`."""
    return any(
        compare(validator.compute_signature(spelling + text, {}, algorithm), signature)
        for validator, spelling in product(validators, _spellings(url))
    )
