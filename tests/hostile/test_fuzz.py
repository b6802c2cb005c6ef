"""Anything at all on both endpoints: never a 500, never a page, and nothing stored without a signature."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict
from werkzeug.test import EnvironBuilder, run_wsgi_app
from werkzeug.wrappers import Response

from tests.builders import batch, cloud_event, inbound_form, sid
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL
from tests.unit.test_web_app import FORM, Ingress

fuzzed = settings(deadline=None, max_examples=300, derandomize=True, suppress_health_check=list(HealthCheck))

PATHS = ("/twilio/inbound", "/twilio/events")
TOLD = frozenset({200, 400, 403, 404, 405, 413})  # 503 would be a store that chokes on what was stored

# Text that can be sent: no halves of surrogate pairs, which UTF-8 cannot carry.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
header_texts = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60
)
content_types = st.one_of(
    st.sampled_from(
        [FORM, f"{FORM}; charset=utf-16", f"{FORM.upper()};;", "application/json", "multipart/form-data",
         "multipart/form-data; boundary=x", "text/xml", "text/plain", "application/json; charset=latin-1", ""]
    ),
    header_texts,
)  # fmt: skip
signatures = st.one_of(
    st.none(), header_texts, st.just(""), st.binary(min_size=20, max_size=20).map(lambda b: b.hex()[:28])
)
names = st.sampled_from([*inbound_form(), "bodySHA256", "SmsSid", "MediaUrl0", ""]) | texts
pairs = st.lists(st.tuples(names, texts), max_size=8)
bodies = st.one_of(
    st.binary(max_size=300),
    pairs.map(lambda some: urlencode(some).encode()),
    st.sampled_from(
        [b"%ff=%fe&AccountSid=%00", b"&&&===", b"a" * 2000, b"[" * 5000, b"--x\r\n\r\n", b"\xff\xfe["]
    ),
)
queries = st.one_of(
    st.just(""),
    st.sampled_from(
        ["bodySHA256=", "bodySHA256=x&bodySHA256=y", "%62odySHA256=", "a;b=c", "%", "=&=&", "x=%ff"]
    ),
    texts.map(quote),
    pairs.map(urlencode),
)
headers = st.dictionaries(
    st.sampled_from(
        ["Host", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "Forwarded",
         "X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "Content-Encoding", "Transfer-Encoding",
         "Expect", "Cookie", "Range", "Accept", "If-Match", "I-Twilio-Idempotency-Token",
         "X-Twilio-Webhooks-Signature-Settings"]
    ),
    header_texts,
    max_size=5,
)  # fmt: skip
methods = st.sampled_from(
    ["POST"] * 6 + ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
# Times on and beyond the edges of what datetimes and the ledger can hold.
times = st.datetimes().map(lambda moment: moment.isoformat()) | st.sampled_from(
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1969-12-31T23:59:59Z", "2026-W01-1", "20260504", ""]
)  # fmt: skip
event_data = st.fixed_dictionaries(
    {},
    optional={
        name: json_values
        | texts
        | st.sampled_from([ACCOUNT_SID, "STOP", "START", "+16505550101", "rcs:", "a:b:c"])
        for name in cloud_event()["data"]
    }
    | {"timestamp": times | json_values},
)


@pytest.fixture(scope="module")
def ingress() -> Ingress:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTOUT_HASH_KEY", "a-key-for-tests-only")
        patch.setenv("TEST_AUTH_TOKEN", AUTH_TOKEN)
        return Ingress()


def fresh(ingress: Ingress) -> Ingress:
    ingress.redis.flushall()
    ingress.published.messages.clear()
    return ingress


def assert_told_nothing(response: Response) -> None:
    """Neither a page nor a trace, whatever the status; what Twilio gets is TwiML without words."""
    assert response.status_code in TOLD, response.status
    assert response.content_type == "text/xml; charset=utf-8"
    text = response.get_data(as_text=True)
    assert text in {"", '<?xml version="1.0" encoding="UTF-8"?><Response />'}
    assert "Server" not in response.headers
    assert "Location" not in response.headers


def sign(url: str, form: Any) -> str:
    return str(RequestValidator(AUTH_TOKEN).compute_signature(url, form))


class TestUnsigned:
    @fuzzed
    @given(
        path=st.sampled_from([*PATHS, "/twilio/inbound/", "/twilio/events/", "/twilio//inbound", "/twilio"]),
        method=methods, query=queries, body=bodies, kind=content_types, signature=signatures, more=headers,
    )  # fmt: skip
    @example(
        path="/twilio/events", method="POST", query="bodySHA256=", body=b"x", kind="", signature="x", more={}
    )
    def test_whatever_is_sent_nothing_is_stored_and_nothing_is_told(
        self, ingress: Ingress, path: str, method: str, query: str, body: bytes, kind: str,
        signature: str | None, more: dict[str, str],
    ) -> None:  # fmt: skip
        fresh(ingress)
        environ = EnvironBuilder(path=path, query_string=query, method=method, data=body).get_environ()
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in more.items()}
        environ["CONTENT_TYPE"] = kind
        if signature is not None:
            environ["HTTP_X_TWILIO_SIGNATURE"] = signature
        response = Response(*run_wsgi_app(ingress.app, environ))
        assert_told_nothing(response)
        assert response.status_code != 200
        assert ingress.nothing_happened()

    @fuzzed
    @given(path=texts.map(lambda text: "/" + quote(text)), method=methods)
    def test_unknown_paths_are_answered_alike(self, ingress: Ingress, path: str, method: str) -> None:
        response = fresh(ingress).client.open(path, method=method)
        assert_told_nothing(response)
        assert response.status_code in {404, 405}

    @fuzzed
    @given(
        length=st.sampled_from(["", "-1", "x", "1e3", "999999999999999999999", "0", "5", " 5 ", "+5", "٥"])
    )
    def test_a_false_content_length_changes_nothing(self, ingress: Ingress, length: str) -> None:
        fresh(ingress)
        for path in PATHS:
            environ = EnvironBuilder(
                path=path, method="POST", data=b"AccountSid=x", content_type=FORM
            ).get_environ()
            environ["CONTENT_LENGTH"] = length
            environ["HTTP_X_TWILIO_SIGNATURE"] = "0/KCTR6DLpKmkAf8muzZqo1nDgQ="
            assert_told_nothing(Response(*run_wsgi_app(ingress.app, environ)))
        assert ingress.nothing_happened()


class TestSignedForms:
    @fuzzed
    @given(form=st.dictionaries(names, texts, max_size=8), more=pairs, query=queries)
    def test_any_parameters_beside_and_in_place_of_the_usual_ones(
        self, ingress: Ingress, form: dict[str, str], more: list[tuple[str, str]], query: str
    ) -> None:
        sent = [*{**inbound_form(), **form}.items(), *more]
        self.post(fresh(ingress), sent, query)

    @fuzzed
    @given(sent=pairs, query=queries)
    def test_any_parameters_alone(self, ingress: Ingress, sent: list[tuple[str, str]], query: str) -> None:
        self.post(fresh(ingress), sent, query)

    @staticmethod
    def post(ingress: Ingress, sent: list[tuple[str, str]], query: str) -> None:
        path = f"/twilio/inbound?{query}" if query else "/twilio/inbound"
        response = ingress.inbound(sent, path=path, signature=sign(PUBLIC_URL + path, MultiDict(sent)))
        assert_told_nothing(response)
        if response.status_code != 200:
            assert ingress.nothing_happened()

    @fuzzed
    @given(
        sender=texts
        | st.sampled_from(["+" + "9" * 500, "rcs:whatsapp:+16505550100", "+1650555０１００", "::", "+"])
    )
    def test_any_sender_ends_in_an_answer(self, ingress: Ingress, sender: str) -> None:
        form = inbound_form(From=sender)
        response = fresh(ingress).inbound(form)
        assert response.status_code == (200 if sender.strip() else 400)
        assert_told_nothing(response)


class TestSignedBatches:
    @fuzzed
    @given(value=json_values)
    @example(value={"type": "com.twilio.messaging.inbound-message.received"})
    def test_json_of_any_shape(self, ingress: Ingress, value: Any) -> None:
        response = fresh(ingress).events(json.dumps(value).encode())
        assert_told_nothing(response)
        assert response.status_code in {200, 400}
        assert ingress.nothing_happened()

    @fuzzed
    @given(data=event_data, others=st.lists(json_values, max_size=2))
    def test_events_with_anything_in_place_of_anything(
        self, ingress: Ingress, data: dict[str, Any], others: list[Any]
    ) -> None:
        event = cloud_event()
        event["data"] |= data
        response = fresh(ingress).events(json.dumps([event, *others]).encode())
        assert_told_nothing(response)
        assert response.status_code in {200, 400, 403}
        if response.status_code != 200:
            assert ingress.nothing_happened()

    @fuzzed
    @given(first=times, second=times)
    def test_a_strange_time_keeps_no_later_change_out(
        self, ingress: Ingress, first: str, second: str
    ) -> None:
        """A time before 1970 once made a status that the ledger could not read: 503 for that phone from then on."""
        fresh(ingress)
        for moment in (first, second):
            assert ingress.events(batch(cloud_event(timestamp=moment))).status_code in {200, 400}
        assert ingress.inbound(inbound_form()).status_code == 200

    @fuzzed
    @given(
        body=st.binary(max_size=200)
        | st.sampled_from(
            [
                b"[" * 200_000,
                b'{"a":' * 100_000,
                b"[" + b"9" * 9000 + b"]",
                b"[]" + b" " * 9000,
                '["\ud800"]'.encode("utf-8", "surrogatepass"),
            ]
        )
    )
    def test_bytes_of_any_kind(self, ingress: Ingress, body: bytes) -> None:
        response = fresh(ingress).events(body)
        assert_told_nothing(response)
        assert response.status_code in {200, 400, 403}
        assert ingress.nothing_happened()

    @fuzzed
    @given(text=st.text(max_size=20))
    def test_halves_of_surrogate_pairs_in_escapes(self, ingress: Ingress, text: str) -> None:
        """JSON can name them; nothing can encode them."""
        event = json.dumps([cloud_event(**{"from": text + "\ud800", "body": text}, messageSid=sid())])
        assert fresh(ingress).events(event.encode()).status_code in {200, 400}

    def test_the_hash_in_the_url_is_that_of_the_bytes(self, ingress: Ingress) -> None:
        body = batch(cloud_event())
        digest = hashlib.sha256(body).hexdigest()
        for wrong in (digest.upper(), digest[:-1], digest + "0", ""):
            path = f"/twilio/events?bodySHA256={wrong}"
            signature = sign(PUBLIC_URL + path, {})
            assert fresh(ingress).post(path, body, "application/json", signature).status_code == 403
            assert ingress.nothing_happened()
