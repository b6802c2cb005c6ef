"""Verifies that Twilio sent a request. Independent of Flask.

Works around `twilio.request_validator` 9.13: there a missing header raises TypeError, a body hash in the URL beside
a form is not checked at all, and a non-text body or a blank hash raises. Its comparison takes constant time for
signatures of the right length (28 characters), so it reveals nothing about the expected one.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs

from twilio.request_validator import RequestValidator

from shared.errors import Forged

BODY_HASH = "bodySHA256"


class SignatureVerifier:
    """Holds the auth tokens of every configured account; several per account during a rotation."""

    def __init__(self, tokens: Mapping[str, Iterable[str]]) -> None:
        self._validators = {
            account_sid: [RequestValidator(token) for token in account_tokens]
            for account_sid, account_tokens in tokens.items()
        }

    def verify_form(self, url: str, form: object, signature: str | None, account_sid: str | None) -> None:
        """Check a form POST; `form` is a werkzeug MultiDict that kept its blank values. Raises Forged.

        A signed request without an AccountSid may be any account's: the parser rejects it.
        """
        if BODY_HASH in parse_qs(url.partition("?")[2], keep_blank_values=True):
            raise Forged("body_hash_beside_form")
        accounts = [account_sid] if account_sid else list(self._validators)
        if not self._signers(accounts, url, form, signature):
            raise Forged("wrong_signature")

    def verify_json(self, url: str, body: bytes, signature: str | None) -> set[str]:
        """Check a JSON POST, whose URL carries the hash of its body. Returns the accounts that signed it.

        Raises Forged. Source: Twilio docs, "Webhooks security" and the Event Streams webhook quickstart.
        """
        hashes = parse_qs(url.partition("?")[2], keep_blank_values=True).get(BODY_HASH, [])
        # The library treats a blank hash as a missing one, and then raises AttributeError because of the body.
        if len(hashes) != 1 or not hashes[0]:
            raise Forged("no_body_hash")
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError:
            raise Forged("body_not_utf8") from None
        signers = self._signers(self._validators, url, text, signature)
        if not signers:
            raise Forged("wrong_signature")
        return signers

    def _signers(self, accounts: Iterable[str], url: str, params: object, signature: str | None) -> set[str]:
        if not signature:
            raise Forged("no_signature")
        known = [account for account in accounts if account in self._validators]
        if not known:
            raise Forged("unknown_account")
        return {
            account
            for account in known
            for validator in self._validators[account]
            if validator.validate(url, params, signature)
        }
