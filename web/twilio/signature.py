"""Verifies that Twilio sent a request. Independent of Flask.

Works around `twilio.request_validator` 9.13: there a missing header raises TypeError, a body hash in the URL beside
a form is not checked at all, and a non-text body or a blank hash raises. Its comparison takes constant time for
signatures of the right length (28 characters), so it reveals nothing about the expected one.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs

from twilio.request_validator import HMAC_SHA1, HMAC_SHA256, RequestValidator, get_signature_algorithm

from shared.errors import Forged

BODY_HASH = "bodySHA256"
# Twilio sends it with webhooks that a shared key has signed. It only chooses between the secrets: without one of them
# nothing passes. Source: twilio-python 9.13, request_validator.py.
SETTINGS_HEADER = "X-Twilio-Webhooks-Signature-Settings"

Secrets = Mapping[str, Iterable[str]]


class SignatureVerifier:
    """Holds auth tokens and shared keys of every configured account; several per account during a rotation."""

    def __init__(self, tokens: Secrets, shared_keys: Secrets | None = None) -> None:
        self._accounts = set(tokens)
        self._validators = {HMAC_SHA1: _validators(tokens), HMAC_SHA256: _validators(shared_keys or {})}

    def verify_form(
        self,
        url: str,
        form: object,
        signature: str | None,
        account_sid: str | None,
        settings: str | None = None,
    ) -> None:
        """Check a form POST; `form` is a werkzeug MultiDict that kept its blank values. Raises Forged.

        `settings` is the content of SETTINGS_HEADER.

        A signed request without an AccountSid may be any account's: the parser rejects it.
        """
        if BODY_HASH in parse_qs(url.partition("?")[2], keep_blank_values=True):
            raise Forged("body_hash_beside_form")
        accounts = [account_sid] if account_sid else list(self._accounts)
        if not self._signers(accounts, url, form, signature, settings):
            raise Forged("wrong_signature")

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
        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError:
            raise Forged("body_not_utf8") from None
        signers = self._signers(self._accounts, url, text, signature, settings)
        if not signers:
            raise Forged("wrong_signature")
        return signers

    def _signers(
        self, accounts: Iterable[str], url: str, params: object, signature: str | None, settings: str | None
    ) -> set[str]:
        if not signature:
            raise Forged("no_signature")
        known = self._accounts.intersection(accounts)
        if not known:
            raise Forged("unknown_account")
        algorithm = get_signature_algorithm(settings).upper()
        if algorithm not in self._validators:
            raise Forged("unknown_signature_algorithm")
        validators = self._validators[algorithm]
        if not known & validators.keys():
            raise Forged("no_shared_key")
        return {
            account
            for account in known
            for validator in validators.get(account, [])
            if validator.validate(url, params, signature, algorithm)
        }


def _validators(secrets: Secrets) -> dict[str, list[RequestValidator]]:
    made = {account: [RequestValidator(secret) for secret in some] for account, some in secrets.items()}
    return {account: validators for account, validators in made.items() if validators}
