"""Signatures: Twilio's own published vectors, and the traps of its validator."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable

import pytest
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict

from shared.config.secrets import Secret
from shared.errors import ConfigError, Forged
from web.twilio.signature import SignatureVerifier

ACCOUNT = "AC" + "0" * 32
OTHER = "AC" + "1" * 32
URL = "https://optout.example.edu/twilio/inbound"
FORM = MultiDict([("AccountSid", ACCOUNT), ("Body", "STOP"), ("FromCity", "")])


def verifier(tokens: dict[str, list[str]] | None = None) -> SignatureVerifier:
    return SignatureVerifier(tokens or {ACCOUNT: ["token"]})


def signed(url: str = URL, form: object = FORM, token: str = "token") -> str:
    return str(RequestValidator(token).compute_signature(url, form))


def hashed_url(body: bytes, url: str = "https://optout.example.edu/twilio/events") -> str:
    return f"{url}?bodySHA256={hashlib.sha256(body).hexdigest()}"


def reason(check: Callable[[], object]) -> str:
    """Why something is taken for forged."""
    with pytest.raises(Forged) as caught:
        check()
    return caught.value.reason


class TestPublishedVectors:
    """Signatures that Twilio has printed, not ones that its library has computed here."""

    @staticmethod
    def call(caller: str) -> MultiDict[str, str]:
        return MultiDict({
            "CallSid": "CA1234567890ABCDE", "Caller": caller, "Digits": "1234",
            "From": caller, "To": "+18005551212",
        })  # fmt: skip

    def test_the_walk_through_of_the_security_page(self) -> None:
        """Source: Twilio docs, "Webhooks security", with the token 12345."""
        verifier({ACCOUNT: ["12345"]}).verify_form(
            "https://example.com/myapp.php?foo=1&bar=2", self.call("+14158675310"),
            "L/OH5YylLD5NRKLltdqwSvS0BnU=", ACCOUNT,
        )  # fmt: skip

    def test_the_vector_of_the_library_s_own_tests(self) -> None:
        """Source: twilio-python, tests/unit/test_request_validator.py."""
        verifier({ACCOUNT: ["12345"]}).verify_form(
            "https://mycompany.com/myapp.php?foo=1&bar=2", self.call("+14158675309"),
            "RSOYDt4T1cUTdK1PDd93/VVr8B8=", ACCOUNT,
        )  # fmt: skip

    def test_a_published_vector_does_not_hold_for_another_number(self) -> None:
        changed = self.call("+14158675300")
        check = verifier({ACCOUNT: ["12345"]})
        url = "https://mycompany.com/myapp.php?foo=1&bar=2"
        assert reason(lambda: check.verify_form(url, changed, "RSOYDt4T1cUTdK1PDd93/VVr8B8=", ACCOUNT)) == (
            "wrong_signature"
        )


class TestSharedKeys:
    """X-Twilio-Webhooks-Signature-Settings: a shared key has signed, with HMAC-SHA256."""

    SETTINGS = "key=webhooks_sharedkey_01,algorithm=HMAC_SHA256"
    BODY = b'[{"id": "1"}]'

    def verifier(self) -> SignatureVerifier:
        return SignatureVerifier(
            {ACCOUNT: ["token"], OTHER: ["other"]}, {ACCOUNT: ["old key", "key"], OTHER: []}
        )

    def signed(self, params: object = FORM, *, url: str = URL, key: str = "key") -> str:
        return str(RequestValidator(key).compute_signature(url, params, "HMAC_SHA256"))

    def test_the_signature_of_the_library(self) -> None:
        """HMAC-SHA256 over URL and sorted parameters, computed here without the library."""
        text = f"{URL}AccountSid{ACCOUNT}BodySTOPFromCity"
        digest = hmac.digest(b"key", text.encode(), "sha256")
        assert self.signed() == base64.b64encode(digest).decode()

    @pytest.mark.parametrize("key", ["key", "old key"])
    def test_a_form_that_it_signed_passes(self, key: str) -> None:
        self.verifier().verify_form(URL, FORM, self.signed(key=key), ACCOUNT, self.SETTINGS)

    @pytest.mark.parametrize("settings", ["key=k,algorithm=hmac_sha256", " algorithm = HMAC_SHA256 "])
    def test_the_header_may_be_spelt_otherwise(self, settings: str) -> None:
        self.verifier().verify_form(URL, FORM, self.signed(), ACCOUNT, settings)

    @pytest.mark.parametrize(
        ("signature_key", "account", "settings", "expected"),
        [
            ("another", ACCOUNT, SETTINGS, "wrong_signature"),
            ("token", ACCOUNT, SETTINGS, "wrong_signature"),  # the auth token is no shared key
            ("key", OTHER, SETTINGS, "no_shared_key"),
            ("key", "AC" + "2" * 32, SETTINGS, "unknown_account"),
            ("key", ACCOUNT, "key=k,algorithm=HMAC_SHA512", "unknown_signature_algorithm"),
            ("key", ACCOUNT, "key=k,algorithm=HMAC_SHA1", "wrong_signature"),
            ("key", ACCOUNT, "", "wrong_signature"),
            ("key", ACCOUNT, None, "wrong_signature"),
        ],
    )
    def test_what_does_not_fit_is_rejected(
        self, signature_key: str, account: str, settings: str | None, expected: str
    ) -> None:
        signature = self.signed(key=signature_key)
        assert (
            reason(lambda: self.verifier().verify_form(URL, FORM, signature, account, settings)) == expected
        )

    def test_without_any_shared_key_the_reason_says_so(self) -> None:
        check = verifier()
        assert (
            reason(lambda: check.verify_form(URL, FORM, self.signed(), ACCOUNT, self.SETTINGS))
            == "no_shared_key"
        )
        url = hashed_url(self.BODY)
        signature = self.signed({}, url=url)
        assert reason(lambda: check.verify_json(url, self.BODY, signature, self.SETTINGS)) == "no_shared_key"

    @pytest.mark.parametrize("settings", [None, "", "key=k"])
    def test_an_auth_token_still_signs_without_the_algorithm(self, settings: str | None) -> None:
        self.verifier().verify_form(URL, FORM, signed(), ACCOUNT, settings)

    def test_a_json_body_names_the_account_whose_key_signed_it(self) -> None:
        url = hashed_url(self.BODY)
        signature = self.signed({}, url=url)
        assert self.verifier().verify_json(url, self.BODY, signature, self.SETTINGS) == {ACCOUNT}
        assert (
            reason(lambda: self.verifier().verify_json(url, b"[]", signature, self.SETTINGS))
            == "wrong_signature"
        )

    def test_an_empty_shared_key_verifies_nothing(self) -> None:
        """A secret may not be empty; but if it were, anybody could sign with it."""
        with pytest.raises(ConfigError):
            Secret("env:NO_SUCH_SECRET").resolve()


class TestForms:
    def test_a_genuine_form_passes(self) -> None:
        verifier().verify_form(URL, FORM, signed(), ACCOUNT)

    @pytest.mark.parametrize("missing", [None, ""])
    def test_a_missing_header_is_forged(self, missing: str | None) -> None:
        assert reason(lambda: verifier().verify_form(URL, FORM, missing, ACCOUNT)) == "no_signature"

    def test_an_unknown_account_is_forged(self) -> None:
        assert reason(lambda: verifier().verify_form(URL, FORM, signed(), OTHER)) == "unknown_account"

    def test_another_account_s_token_does_not_sign_for_this_one(self) -> None:
        both = verifier({ACCOUNT: ["token"], OTHER: ["other"]})
        assert (
            reason(lambda: both.verify_form(URL, FORM, signed(token="other"), ACCOUNT)) == "wrong_signature"
        )

    def test_either_token_of_a_rotation_passes(self) -> None:
        rotating = verifier({ACCOUNT: ["old", "new"]})
        for token in ("old", "new"):
            rotating.verify_form(URL, FORM, signed(token=token), ACCOUNT)
        assert (
            reason(lambda: rotating.verify_form(URL, FORM, signed(token="older"), ACCOUNT))
            == "wrong_signature"
        )

    def test_a_form_without_account_passes_if_any_known_account_signed_it(self) -> None:
        """It is Twilio's; that it is no message is for the parser to say."""
        form = MultiDict([("Body", "STOP")])
        verifier().verify_form(URL, form, signed(form=form), None)
        assert reason(lambda: verifier().verify_form(URL, form, signed(form=form, token="x"), None)) == (
            "wrong_signature"
        )

    def test_a_blank_parameter_is_part_of_the_signature(self) -> None:
        without = MultiDict([(name, value) for name, value in FORM.items() if value])
        verifier().verify_form(URL, FORM, signed(form=FORM), ACCOUNT)
        # The concatenation has no separators; a blank value adds its name.
        assert (
            reason(lambda: verifier().verify_form(URL, without, signed(form=FORM), ACCOUNT))
            == "wrong_signature"
        )

    def test_a_repeated_parameter_is_part_of_the_signature(self) -> None:
        form = MultiDict([*FORM.items(), ("MediaUrl", "b"), ("MediaUrl", "a")])
        verifier().verify_form(URL, form, signed(form=form), ACCOUNT)
        once = MultiDict([*FORM.items(), ("MediaUrl", "b")])
        assert (
            reason(lambda: verifier().verify_form(URL, once, signed(form=form), ACCOUNT)) == "wrong_signature"
        )

    @pytest.mark.parametrize("port", ["", ":443"])
    def test_the_default_port_may_be_left_out(self, port: str) -> None:
        url = f"https://optout.example.edu{port}/twilio/inbound"
        verifier().verify_form(URL, FORM, signed(url=url), ACCOUNT)
        verifier().verify_form(url, FORM, signed(), ACCOUNT)

    @pytest.mark.parametrize(
        "other",
        [URL.replace("https", "http"), URL + "/", URL + "?a=1", URL.replace("twilio/", "twilio//"),
         URL.replace("optout", "OPTOUT"), URL.replace("edu/", "edu:8443/")],
    )  # fmt: skip
    def test_another_url_is_forged(self, other: str) -> None:
        assert (
            reason(lambda: verifier().verify_form(URL, FORM, signed(url=other), ACCOUNT)) == "wrong_signature"
        )

    def test_a_body_hash_beside_a_form_is_refused_whatever_is_signed(self) -> None:
        """The validator would not look at the form at all."""
        url = hashed_url(b"anything", URL)
        genuine = signed(url=url, form={})
        assert RequestValidator("token").validate(url, FORM, genuine) is False
        assert reason(lambda: verifier().verify_form(url, FORM, genuine, ACCOUNT)) == "body_hash_beside_form"
        assert reason(lambda: verifier().verify_form(URL + "?bodySHA256=", FORM, genuine, ACCOUNT)) == (
            "body_hash_beside_form"
        )


class TestJson:
    BODY = b'[{"type": "x"}]'

    def test_a_genuine_batch_names_its_signers(self) -> None:
        url = hashed_url(self.BODY)
        assert verifier().verify_json(url, self.BODY, signed(url=url, form={})) == {ACCOUNT}

    def test_two_accounts_with_one_token_are_both_signers(self) -> None:
        url = hashed_url(self.BODY)
        both = verifier({ACCOUNT: ["token"], OTHER: ["token"]})
        assert both.verify_json(url, self.BODY, signed(url=url, form={})) == {ACCOUNT, OTHER}

    def test_only_the_account_that_signed_is_named(self) -> None:
        url = hashed_url(self.BODY)
        both = verifier({ACCOUNT: ["token"], OTHER: ["other"]})
        assert both.verify_json(url, self.BODY, signed(url=url, form={}, token="other")) == {OTHER}

    def test_a_changed_body_is_forged(self) -> None:
        url = hashed_url(self.BODY)
        genuine = signed(url=url, form={})
        assert reason(lambda: verifier().verify_json(url, self.BODY + b" ", genuine)) == "wrong_signature"

    @pytest.mark.parametrize("query", ["", "?bodySHA256={0}&bodySHA256={0}"])
    def test_a_url_without_or_with_two_body_hashes_is_forged(self, query: str) -> None:
        digest = hashlib.sha256(self.BODY).hexdigest()
        url = "https://optout.example.edu/twilio/events" + query.format(digest)
        genuine = signed(url=url, form={})
        assert reason(lambda: verifier().verify_json(url, self.BODY, genuine)) == "no_body_hash"

    def test_a_body_that_is_no_utf8_is_forged(self) -> None:
        body = b"\xff"
        url = hashed_url(body)
        assert reason(lambda: verifier().verify_json(url, body, signed(url=url, form={}))) == "body_not_utf8"

    @pytest.mark.parametrize("missing", [None, ""])
    def test_a_missing_header_is_forged(self, missing: str | None) -> None:
        assert (
            reason(lambda: verifier().verify_json(hashed_url(self.BODY), self.BODY, missing))
            == "no_signature"
        )
