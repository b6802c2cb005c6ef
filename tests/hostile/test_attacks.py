"""Attacks by name: what somebody would try who knows how Twilio signs, and what each of them gets."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from twilio.request_validator import HMAC_SHA256, RequestValidator
from werkzeug.datastructures import MultiDict

from shared.domain.events import Change
from shared.ledger import Ledger, keys
from tests.builders import batch, cloud_event, hashed, inbound_form, repeated, sid
from tests.hostile.asgi import NEVER, ask
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, SENDER, SERVICE_SID
from tests.unit.test_web_app import FORM, Ingress, is_silence
from web.request_buffering import LARGE_BODIES, THREADS, RequestBuffering
from web.twilio.limits import EVENTS_LIMIT_BYTES, INBOUND_LIMIT_BYTES
from web.twilio.signature import SignatureVerifier

INBOUND, EVENTS = "/twilio/inbound", "/twilio/events"
VICTIM = "+16505550199"


@pytest.fixture
def ingress() -> Ingress:
    return Ingress()


def sign(path: str, form: Any, **more: Any) -> str:
    return str(RequestValidator(AUTH_TOKEN).compute_signature(PUBLIC_URL + path, form, **more))


def with_hash(body: bytes, path: str = EVENTS) -> str:
    return f"{path}?bodySHA256={hashlib.sha256(body).hexdigest()}"


def latest(ingress: Ingress, phone: str = "+16505550100") -> Change | None:
    statuses = Ledger(ingress.redis).status("asthma", hashed(phone))
    return statuses[0].change if statuses else None


class TestCuttingTheSignedTextDifferently:
    """A form's signature covers address, names and values in a row, without anything between them."""

    def test_parameters_moved_into_the_address_are_no_parameters(self, ingress: Ingress) -> None:
        form = inbound_form()
        genuine = sign(f"{INBOUND}?study=a", form)
        first = min(form)
        moved = {name: value for name, value in form.items() if name != first}
        response = ingress.inbound(moved, path=f"{INBOUND}?study=a{first}{form[first]}", signature=genuine)
        assert response.status_code == 400  # it is Twilio's, and no message: its AccountSid is gone
        assert ingress.nothing_happened()

    def test_the_address_s_tail_moved_into_the_parameters_is_another_address(self, ingress: Ingress) -> None:
        form = inbound_form()
        genuine = sign(f"{INBOUND}A=b", form)
        assert ingress.inbound({**form, "A": "b"}, signature=genuine).status_code == 403
        assert ingress.nothing_happened()

    def test_a_number_that_swallows_its_neighbour_is_no_number(self, ingress: Ingress) -> None:
        form = inbound_form(Body=None, FromCity="")
        genuine = sign(INBOUND, form)
        cut = {name: value for name, value in form.items() if name not in {"From", "FromCity"}}
        response = ingress.inbound({**cut, "From": form["From"] + "FromCity"}, signature=genuine)
        assert response.status_code == 200
        assert ingress.event(form["MessageSid"])["phone"] == ""

    def test_what_remains_needs_a_signed_request_from_inside_tls(self, ingress: Ingress) -> None:
        """Who texts the right words, and then reads Twilio's own request for them, can cut it into another.

        No check of ours can tell the two apart: the signed text is the same. It takes a request and its
        signature from inside the TLS connection, or from a proxy that logs bodies and headers (ours do not).
        Event Streams, whose signature covers a hash of the body, leave nothing to cut: see the next test.
        """
        hidden = {"From": VICTIM, "MessageSid": sid(), "MessagingServiceSid": SERVICE_SID, "OptOutType": "STOP",
                  "To": SENDER, "Zzz": ""}  # fmt: skip
        words = "hi" + "".join(name + hidden[name] for name in sorted(hidden))
        form = inbound_form(Body=words, OptOutType=None)
        rest = "".join(name + form[name] for name in sorted(form) if name > "Body")
        cut = {"AccountSid": ACCOUNT_SID, "Body": "hi", **hidden, "Zzz": rest}
        assert ingress.inbound(cut, signature=sign(INBOUND, form)).status_code == 200
        assert latest(ingress, VICTIM) is Change.STOP

    def test_a_batch_of_events_cannot_be_cut(self, ingress: Ingress) -> None:
        body = batch(cloud_event(body=json.dumps(cloud_event(**{"from": VICTIM}))))
        path = with_hash(body)
        for other in (batch(cloud_event(**{"from": VICTIM})), body + b" ", body[:-1]):
            response = ingress.post(path, other, "application/json", sign(path, {}))
            assert response.status_code == 403
        assert ingress.nothing_happened()


class TestParameters:
    @pytest.mark.parametrize("name", ["AccountSid", "From", "To", "MessageSid", "OptOutType", "Body"])
    @pytest.mark.parametrize("other", ["", "STOP", VICTIM, ACCOUNT_SID])
    def test_a_second_value_is_never_chosen_from(self, ingress: Ingress, name: str, other: str) -> None:
        form = inbound_form(OptOutType="HELP")
        for values in ([form[name], other], [other, form[name]]):
            if len(set(values)) == 2:
                assert ingress.inbound(repeated(form, **{name: values})).status_code in {400, 403}
        assert ingress.nothing_happened()

    @pytest.mark.parametrize("name", ["AccountSid", "From", "To", "MessageSid"])
    @pytest.mark.parametrize("blank", ["", " ", "\t", "\u00a0"])
    def test_a_blank_value_is_none(self, ingress: Ingress, name: str, blank: str) -> None:
        assert ingress.inbound(inbound_form(**{name: blank})).status_code in {400, 403}
        assert ingress.nothing_happened()

    def test_names_are_told_apart_by_their_case(self, ingress: Ingress) -> None:
        form = inbound_form()
        assert ingress.inbound({**form, "from": VICTIM, "FROM": VICTIM}).status_code == 200
        assert latest(ingress) is Change.STOP
        assert latest(ingress, VICTIM) is None

    def test_parameters_in_the_address_are_not_the_form_s(self, ingress: Ingress) -> None:
        path = f"{INBOUND}?{urlencode({'From': VICTIM, 'OptOutType': 'START'})}"
        assert ingress.inbound(inbound_form(), path=path).status_code == 200
        assert latest(ingress) is Change.STOP
        assert latest(ingress, VICTIM) is None

    def test_a_forged_request_cannot_add_or_take_a_parameter(self, ingress: Ingress) -> None:
        form = inbound_form(OptOutType="HELP")
        genuine = sign(INBOUND, form)
        added, taken = {**form, "Extra": ""}, {k: v for k, v in form.items() if k != "FromCity"}
        for changed in (added, taken, {**form, "OptOutType": "STOP"}):
            assert ingress.inbound(changed, signature=genuine).status_code == 403
        assert ingress.nothing_happened()


class TestBodyHash:
    @pytest.mark.parametrize("name", ["bodySHA256", "%62odySHA256", "body%53HA256"])
    @pytest.mark.parametrize("value", ["", "0" * 64])
    def test_beside_a_form_it_is_refused_however_it_is_written(
        self, ingress: Ingress, name: str, value: str
    ) -> None:
        """The library then checks neither form nor hash. Source: twilio-python 9.13, request_validator.py."""
        path = f"{INBOUND}?{name}={value}"
        for signed in ({}, inbound_form()):
            assert ingress.inbound(inbound_form(), path=path, signature=sign(path, signed)).status_code == 403
        assert ingress.nothing_happened()

    @pytest.mark.parametrize(
        "query", ["", "bodySHA256=", "bodySHA256", "BODYSHA256=x", "bodySHA256=a&bodySHA256=b"]
    )
    def test_a_batch_without_exactly_one_is_refused(self, ingress: Ingress, query: str) -> None:
        path = f"{EVENTS}?{query}"
        body = batch(cloud_event())
        assert ingress.post(path, body, "application/json", sign(path, {})).status_code == 403
        assert ingress.nothing_happened()

    def test_a_second_hash_beside_the_true_one_is_refused(self, ingress: Ingress) -> None:
        body = batch(cloud_event())
        for path in (f"{with_hash(body)}&bodySHA256=", f"{with_hash(body)}&bodySHA256={'0' * 64}"):
            assert ingress.post(path, body, "application/json", sign(path, {})).status_code == 403
        assert ingress.nothing_happened()

    def test_a_signed_address_of_a_webhook_does_not_open_the_sink(self, ingress: Ingress) -> None:
        """Without its hash, a GET's signature of the bare address would be good for any body."""
        body = batch(cloud_event())
        assert ingress.post(EVENTS, body, "application/json", sign(EVENTS, {})).status_code == 403
        assert ingress.nothing_happened()

    @pytest.mark.parametrize("kind", [FORM, "application/json", "text/plain", ""])
    def test_a_form_in_place_of_a_batch_is_no_batch(self, ingress: Ingress, kind: str) -> None:
        body = urlencode(inbound_form()).encode()
        path = with_hash(body)
        assert ingress.post(path, body, kind, sign(path, {})).status_code == 400
        assert ingress.nothing_happened()


class TestContentTypes:
    @pytest.mark.parametrize(
        "kind",
        ["", "text/plain", "application/json", "multipart/form-data; boundary=x", "application/x-www-form"],
    )
    def test_a_webhook_is_a_form_or_nothing(self, ingress: Ingress, kind: str) -> None:
        form = inbound_form()
        response = ingress.post(INBOUND, urlencode(form).encode(), kind, sign(INBOUND, form))
        assert (response.status_code, is_silence(response)) == (400, True)
        assert ingress.nothing_happened()

    @pytest.mark.parametrize("kind", [f"{FORM}; charset=utf-8", f"{FORM}; charset=utf-16", FORM.upper()])
    def test_a_charset_does_not_change_what_was_signed(self, ingress: Ingress, kind: str) -> None:
        form = inbound_form()
        response = ingress.post(INBOUND, urlencode(form).encode(), kind, sign(INBOUND, form))
        assert response.status_code == 200
        assert latest(ingress) is Change.STOP

    def test_a_batch_counts_by_its_bytes_whatever_they_are_called(self, ingress: Ingress) -> None:
        body = batch(cloud_event())
        path = with_hash(body)
        assert ingress.post(path, body, FORM, sign(path, {})).status_code == 200

    def test_a_compressed_body_is_not_unpacked(self, ingress: Ingress) -> None:
        form = inbound_form()
        head = {"X-Twilio-Signature": sign(INBOUND, form), "Content-Encoding": "gzip"}
        response = ingress.client.post(
            INBOUND, data=b"\x1f\x8b" + b"0" * 100, content_type=FORM, headers=head
        )
        assert response.status_code == 403


class TestReplays:
    def test_a_genuine_request_counts_once_however_often_it_comes(self, ingress: Ingress) -> None:
        form, event = inbound_form(), batch(cloud_event(**{"from": VICTIM}))
        for _ in range(5):
            assert ingress.inbound(form).status_code == 200
            assert ingress.events(event).status_code == 200
        assert len(ingress.stored()) == 2
        assert len(ingress.redis.lrange(keys.arrived("asthma"), 0, -1)) == 2
        assert len(ingress.published.messages) == 1  # one lookup includes both

    def test_an_old_stop_that_is_played_again_does_not_undo_the_start_after_it(
        self, ingress: Ingress
    ) -> None:
        stop = inbound_form()
        ingress.inbound(stop)
        later = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
        ingress.events(batch(cloud_event(optOutType="START", timestamp=later)))
        ingress.inbound(stop)
        assert latest(ingress) is Change.START

    def test_a_request_for_another_address_is_not_one_for_this(self, ingress: Ingress) -> None:
        form = inbound_form()
        ours = PUBLIC_URL + INBOUND
        others = [f"{ours}/", f"{PUBLIC_URL}/twilio/fallback", ours.replace("https", "http"), f"{ours}?"]
        for url in ["https://redcap.example.edu/surveys/", *others]:
            signature = RequestValidator(AUTH_TOKEN).compute_signature(url, form)
            assert ingress.inbound(form, signature=signature).status_code == 403
        assert ingress.nothing_happened()


class TestAddresses:
    HEADERS = (
        {"Host": "attacker.example"},
        {"X-Forwarded-Host": "attacker.example", "X-Forwarded-Proto": "http", "X-Forwarded-Prefix": "/x"},
        {"Forwarded": "for=127.0.0.1;host=attacker.example;proto=http"},
        {"X-Original-URL": "/metrics", "X-Rewrite-URL": "/metrics"},
        {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "X-Twilio-Account": ACCOUNT_SID},
    )

    @pytest.mark.parametrize("headers", HEADERS)
    def test_headers_neither_break_nor_make_a_signature(
        self, ingress: Ingress, headers: dict[str, str]
    ) -> None:
        form = inbound_form()
        body = urlencode(form).encode()
        genuine = sign(INBOUND, form)
        elsewhere = RequestValidator(AUTH_TOKEN).compute_signature(f"https://attacker.example{INBOUND}", form)
        for signature, status in ((elsewhere, 403), (genuine, 200)):
            sent = {**headers, "X-Twilio-Signature": signature}
            response = ingress.client.post(INBOUND, data=body, content_type=FORM, headers=sent)
            assert response.status_code == status

    @pytest.mark.parametrize(
        "path", ["/twilio//inbound", "//twilio/inbound", "/./twilio/inbound", "/x/../twilio/inbound",
                 "/twilio/inbound;a",
                 "/twilio/inbound%00", "/twilio/inbound%2f", "/TWILIO/inbound", "/twilio/inbound//"]
    )  # fmt: skip
    def test_another_spelling_of_the_path_is_another_path(self, ingress: Ingress, path: str) -> None:
        response = ingress.inbound(inbound_form(), path=path, signature=sign(INBOUND, inbound_form()))
        assert response.status_code in {403, 404}
        assert "Location" not in response.headers
        assert ingress.nothing_happened()

    def test_an_escaped_path_is_verified_as_the_path_that_it_means(self, ingress: Ingress) -> None:
        form = inbound_form()
        assert (
            ingress.inbound(form, path="/twilio/%69nbound", signature=sign(INBOUND, form)).status_code == 200
        )
        assert ingress.inbound(form, path="/twilio/%69nbound").status_code == 403

    @pytest.mark.parametrize("path", [INBOUND, EVENTS])
    @pytest.mark.parametrize(
        "method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "POSTS"]
    )
    def test_other_methods_do_nothing(self, ingress: Ingress, path: str, method: str) -> None:
        form = inbound_form()
        response = ingress.client.open(
            f"{path}?{urlencode(form)}", method=method, data=urlencode(form), content_type=FORM,
            headers={"X-Twilio-Signature": sign(path, form), "X-HTTP-Method-Override": "POST"},
        )  # fmt: skip
        assert response.status_code == 405
        assert ingress.nothing_happened()


class TestSignatures:
    OTHER = "AC" + "0" * 30 + "ff"

    @pytest.fixture
    def two_accounts(self, monkeypatch: pytest.MonkeyPatch) -> Ingress:
        monkeypatch.setenv("OTHER_TOKEN", "other-token")
        return Ingress(
            twilio={
                "main": {"account_sid": ACCOUNT_SID, "auth_token": "env:TEST_AUTH_TOKEN"},
                "other": {"account_sid": self.OTHER, "auth_token": "env:OTHER_TOKEN"},
            }
        )

    def test_one_account_cannot_speak_for_another(self, two_accounts: Ingress) -> None:
        mixed = batch(cloud_event(accountSid=self.OTHER), cloud_event())
        assert two_accounts.inbound(inbound_form(), token="other-token").status_code == 403
        assert two_accounts.events(batch(cloud_event()), token="other-token").status_code == 403
        # Of a mixed batch only what is the signer's own counts; this one is of no project.
        assert two_accounts.events(mixed, token="other-token").status_code == 200
        assert two_accounts.nothing_happened()

    def test_an_account_that_is_named_twice_or_not_at_all_is_none(self, two_accounts: Ingress) -> None:
        both = repeated(inbound_form(), AccountSid=[self.OTHER, ACCOUNT_SID])
        for pairs in (both, list(inbound_form(AccountSid=None).items())):
            assert two_accounts.inbound(pairs, token="other-token").status_code == 400
        assert two_accounts.nothing_happened()

    def test_a_stronger_algorithm_is_still_the_wrong_one(self, ingress: Ingress) -> None:
        form = inbound_form()
        signature = sign(INBOUND, form, algorithm=HMAC_SHA256)
        head = {
            "X-Twilio-Signature": signature,
            "X-Twilio-Webhooks-Signature-Settings": "key=x,algorithm=HMAC_SHA256",
        }
        response = ingress.client.post(INBOUND, data=urlencode(form), content_type=FORM, headers=head)
        assert response.status_code == 403

    def test_an_empty_token_signs_nothing(self, ingress: Ingress) -> None:
        assert ingress.inbound(inbound_form(), token="").status_code == 403

    def test_a_signature_by_any_other_name_is_none(self) -> None:
        """A server that turned "_" into "-" would let it pass a proxy that filters the true header."""
        ingress, form = Ingress(), inbound_form()
        head = {"Content-Type": FORM, "X_Twilio_Signature": sign(INBOUND, form)}
        app = RequestBuffering(ingress.app)
        assert ask(app, [urlencode(form).encode()], headers=head).status == 403
        assert ingress.nothing_happened()

    def test_two_signatures_are_none(self) -> None:
        ingress, form = Ingress(), inbound_form()
        head = {"Content-Type": FORM, "X-Twilio-Signature": "x", "x-twilio-signature": sign(INBOUND, form)}
        assert ask(RequestBuffering(ingress.app), [urlencode(form).encode()], headers=head).status == 403

    @pytest.mark.parametrize("wrong_at", [0, 13, 26])
    def test_every_character_is_compared_wherever_the_first_difference_is(self, wrong_at: int) -> None:
        """Else the time of the answer would tell how much of a guess is right."""
        form = inbound_form()
        genuine = sign(INBOUND, form)
        guess = Watched(genuine[:wrong_at] + "!" + genuine[wrong_at + 1 :])
        verifier = SignatureVerifier({ACCOUNT_SID: [AUTH_TOKEN]})
        with pytest.raises(Exception, match="wrong_signature"):
            verifier.verify_form(PUBLIC_URL + INBOUND, MultiDict(form), guess, ACCOUNT_SID)
        assert guess.looked_at == [28, 28]  # once for the address with, once without its port


class Watched(str):
    """A text that notes how many of its characters each comparison looked at."""

    looked_at: list[int]

    def __new__(cls, text: str) -> Watched:
        made = super().__new__(cls, text)
        made.looked_at = []
        return made

    def __iter__(self) -> Iterator[str]:
        self.looked_at.append(0)
        for character in super().__iter__():
            self.looked_at[-1] += 1
            yield character


class TestBodies:
    """Bodies come to the application whole, in bounded time and size, announced or not."""

    def test_a_body_in_pieces_is_one_body(self, ingress: Ingress) -> None:
        form = inbound_form()
        body = urlencode(form).encode()
        head = {
            "Content-Type": FORM,
            "X-Twilio-Signature": sign(INBOUND, form),
            "Transfer-Encoding": "chunked",
        }
        pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
        assert ask(RequestBuffering(ingress.app), pieces, headers=head).status == 200
        assert latest(ingress) is Change.STOP

    @pytest.mark.parametrize(
        "chunks", [[NEVER], [b"Body=", NEVER], [b"x" * (INBOUND_LIMIT_BYTES + 1), NEVER]]
    )
    def test_a_body_that_does_not_come_is_not_waited_for(self, ingress: Ingress, chunks: list[Any]) -> None:
        answer = ask(RequestBuffering(ingress.app, body_seconds=0.05), chunks)
        assert (answer.status, answer.content_type) == (503, "text/xml; charset=utf-8")
        assert ingress.nothing_happened()

    def test_the_process_says_that_it_is_up_while_all_threads_wait_for_a_store_that_hangs(
        self, ingress: Ingress
    ) -> None:
        app, over = RequestBuffering(ingress.app), threading.Event()
        app._writer._thread.submit(over.wait)
        for _ in range(THREADS):
            app._threads.submit(over.wait)
        try:
            assert [ask(app, path=path, method="GET").status for path in ("/healthz", "/healthz/")] == [
                200,
                200,
            ]
        finally:
            over.set()

    @pytest.mark.parametrize("path", [INBOUND, EVENTS, "/metrics", "/nowhere"])
    def test_a_body_without_end_is_cut_off(self, ingress: Ingress, path: str) -> None:
        piece = b"x" * 60_000
        answer = ask(
            RequestBuffering(ingress.app), [piece] * (EVENTS_LIMIT_BYTES // len(piece) + 2), path=path
        )
        assert answer.status == 413
        assert ingress.nothing_happened()

    def test_a_false_length_does_not_count(self, ingress: Ingress) -> None:
        form = inbound_form()
        head = {"Content-Type": FORM, "X-Twilio-Signature": sign(INBOUND, form), "Content-Length": "7"}
        assert ask(RequestBuffering(ingress.app), [urlencode(form).encode()], headers=head).status == 200

    def test_a_large_batch_passes(self, ingress: Ingress) -> None:
        body = batch(cloud_event(body="x" * (EVENTS_LIMIT_BYTES - 2_000)))
        path, _, query = with_hash(body).partition("?")
        head = {"Content-Type": "application/json", "X-Twilio-Signature": sign(f"{path}?{query}", {})}
        app = RequestBuffering(ingress.app)
        for _ in range(LARGE_BODIES + 1):  # a place for large ones is given back
            pieces = [body[:100_000], body[100_000:]]
            assert ask(app, pieces, path=path, query=query.encode(), headers=head).status == 200

    def test_nothing_is_kept_of_a_refused_body(self, ingress: Ingress) -> None:
        ingress.inbound(inbound_form(Body="a secret text"), token="another-token")
        assert set(ingress.redis.hgetall(keys.METRICS)) == {"webhooks|inbound|wrong_signature"}
