"""Signatures: Twilio's own published vectors, and the traps of its validator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict

from shared.errors import Forged
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
