"""The Twilio simulator, judged by Twilio's own Python library: its REST client and its RequestValidator."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

import pytest
import requests
from twilio.base.exceptions import TwilioException, TwilioRestException
from twilio.http.http_client import TwilioHttpClient
from twilio.request_validator import RequestValidator
from twilio.rest import Client

from tests.simulators.twilio import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    INBOUND_EVENT,
    PUBLIC_URL,
    SENDER,
    SERVICE_SID,
    Account,
    Hook,
    Message,
    MessageRefused,
    RunningServer,
    TwilioSimulator,
    form_request,
    inbound_parameters,
    json_request,
    keyword_of,
    parse_overrides,
    sign_form,
    sign_json,
)

PAT = "+16505550100"
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
EMPTY_TWIML = "<Response/>"


@dataclass
class Seen:
    """One request that the program's stand-in received."""

    method: str
    path: str
    headers: dict[str, str]
    body: str

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body, keep_blank_values=True))

    def is_signed(self, public_url: str = PUBLIC_URL, token: str = AUTH_TOKEN) -> bool:
        signature = self.headers["X-Twilio-Signature"]
        content: Any = self.body if "json" in self.headers.get("Content-Type", "") else self.form
        return bool(RequestValidator(token).validate(public_url + self.path, content, signature))


@dataclass
class Receiver:
    """The program's stand-in: keeps what it gets and answers from a script, then with empty TwiML."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    delay: float = 0.0

    def then(self, status: int, body: str = EMPTY_TWIML, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((status, {"Content-Type": "text/xml"} | named, body))

    def answer(self) -> tuple[int, dict[str, str], str]:
        return self.answers.pop(0) if self.answers else (200, {"Content-Type": "text/xml"}, EMPTY_TWIML)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
            receiver.seen.append(Seen(self.command, self.path, dict(self.headers.items()), body))
            time.sleep(receiver.delay)
            status, headers, text = receiver.answer()
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # a client that gave up
                self.wfile.write(text.encode())

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        yield receiver
        server.shutdown()
        thread.join()


@pytest.fixture
def sim() -> TwilioSimulator:
    return TwilioSimulator()


@pytest.fixture
def web(sim: TwilioSimulator) -> Iterator[Receiver]:
    """The program's stand-in, at the public URL."""
    with receiving() as receiver:
        sim.deliver_to(receiver.url)
        yield receiver


@pytest.fixture
def server(sim: TwilioSimulator) -> Iterator[RunningServer]:
    with sim.serve() as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Client:
    return client_of(server)


def client_of(
    server: RunningServer, user: str = ACCOUNT_SID, password: str = AUTH_TOKEN, **more: Any
) -> Client:
    client = Client(user, password, http_client=TwilioHttpClient(timeout=5), **more)
    client.api.base_url = client.messaging.base_url = client.events.base_url = server.url
    return client


def many(count: int) -> Iterator[Message]:
    return (
        Message(
            f"+1650555{i % 10000:04d}", SENDER, f"text {i}", NOON + timedelta(seconds=i), sid=f"SM{i:032x}"
        )
        for i in range(count)
    )


def raw(server: RunningServer, **query: str) -> requests.Response:
    """A Messages request as no library would send it."""
    url = f"{server.url}/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json"
    return requests.get(url, params=query, auth=(ACCOUNT_SID, AUTH_TOKEN), timeout=5)


# -- signatures


def test_signatures_equal_the_published_ones() -> None:
    # Twilio docs: Security, and the tests of twilio-python; the numbers are part of the vectors.
    params = {"CallSid": "CA1234567890ABCDE", "Digits": "1234", "To": "+18005551212"}
    docs = params | {"From": "+14158675310", "Caller": "+14158675310"}
    library = params | {"From": "+14158675309", "Caller": "+14158675309"}
    body = '{"property": "value", "boolean": true}'
    base = "myapp.php?foo=1&bar=2"

    assert sign_form(f"https://example.com/{base}", docs, "12345") == "L/OH5YylLD5NRKLltdqwSvS0BnU="
    assert sign_form(f"https://mycompany.com/{base}", library, "12345") == "RSOYDt4T1cUTdK1PDd93/VVr8B8="
    assert sign_json(f"https://mycompany.com/{base}", body, "12345")[1] == "a9nBmqA0ju/hNViExpshrM61xv4="


def test_the_webhook_is_signed_for_the_public_url_without_its_fragment(
    sim: TwilioSimulator, web: Receiver
) -> None:
    texted = sim.text(from_=PAT)

    assert texted.status == 200
    assert "#" in str(sim.services[SERVICE_SID].inbound_request_url)
    assert texted.request.url == f"{PUBLIC_URL}/twilio/inbound"
    assert web.seen[0].path == "/twilio/inbound"
    assert web.seen[0].is_signed()
    assert not web.seen[0].is_signed(token="another")


def test_the_webhook_carries_the_documented_parameters_and_headers(
    sim: TwilioSimulator, web: Receiver
) -> None:
    texted = sim.text(from_=PAT, body=" Stop\u00a0é+& ", extra={"NewParameter": ""})

    form, headers = web.seen[0].form, web.seen[0].headers
    assert form["MessageSid"] == form["SmsSid"] == form["SmsMessageSid"] == texted.message.sid
    assert form["Body"] == " Stop\u00a0é+& "
    assert (form["From"], form["To"], form["MessagingServiceSid"]) == (PAT, SENDER, SERVICE_SID)
    assert form["FromCity"] == form["NewParameter"] == ""
    assert not any("time" in name.lower() or "date" in name.lower() for name in form)
    assert headers["User-Agent"] == "TwilioProxy/1.1"
    assert re.fullmatch(r"[0-9a-f-]{36}", headers["I-Twilio-Idempotency-Token"])
    assert web.seen[0].is_signed()


def test_a_webhook_by_get_signs_the_url_with_its_query(sim: TwilioSimulator, web: Receiver) -> None:
    sim.services[SERVICE_SID].inbound_method = "GET"

    sim.text(from_=PAT)

    assert web.seen[0].method == "GET"
    assert "Body=STOP" in web.seen[0].path
    assert web.seen[0].is_signed()


def test_an_event_stream_batch_is_signed_over_its_url_and_body_hash(
    sim: TwilioSimulator, web: Receiver
) -> None:
    texted = sim.text(from_=PAT, via="events", at=NOON + timedelta(milliseconds=250))

    assert re.fullmatch(r"/twilio/events\?bodySHA256=[0-9a-f]{64}", web.seen[0].path)
    assert web.seen[0].is_signed()
    (event,) = json.loads(web.seen[0].body)
    assert (event["type"], event["id"]) == (INBOUND_EVENT, texted.message.event_id)
    assert event["data"]["timestamp"] == "2026-03-01T12:00:00.250Z"
    assert event["data"]["optOutType"] == "STOP"


def test_an_event_has_no_opt_out_type_without_advanced_opt_out(sim: TwilioSimulator, web: Receiver) -> None:
    sim.text(from_=PAT, via="events", advanced_opt_out=False)

    data = json.loads(web.seen[0].body)[0]["data"]
    assert data["body"] == "STOP"
    assert "optOutType" not in data


def test_a_forged_a_tampered_and_a_replayed_request_can_be_sent(sim: TwilioSimulator, web: Receiver) -> None:
    genuine = sim.text(from_=PAT).request
    tampered = replace(genuine, body=genuine.body.replace(b"STOP", b"START"))
    forged = form_request(genuine.url, genuine.params, "not the token")
    events = json_request(f"{PUBLIC_URL}/twilio/events", "[]", AUTH_TOKEN)

    for request in (genuine, tampered, forged, replace(events, body=b"[1]")):
        sim.send(request)

    assert [seen.is_signed() for seen in web.seen] == [True, True, False, False, False]
    assert web.seen[0] == web.seen[1]


# -- keywords and channels


@pytest.mark.parametrize(
    ("body", "keyword"),
    [
        ("STOP", "STOP"),
        ("revoke", "STOP"),
        ("OptOut", "STOP"),
        ("Yes", "START"),
        ("info", "HELP"),
        ("STOP PLEASE", None),
        ("hello", None),
        ("", None),
    ],
)
def test_only_a_whole_message_is_a_keyword(body: str, keyword: str | None) -> None:
    assert keyword_of(body) == keyword


def test_opt_out_type_comes_only_with_advanced_opt_out_on_a_service(
    sim: TwilioSimulator, web: Receiver
) -> None:
    sim.add_sender("+16505550198", sms_url=f"{PUBLIC_URL}/twilio/inbound")

    sim.text(from_=PAT)
    sim.text(from_=PAT, advanced_opt_out=False)
    sim.text(from_=PAT, to="+16505550198", advanced_opt_out=True)

    assert [seen.form.get("OptOutType") for seen in web.seen] == ["STOP", None, None]
    assert "MessagingServiceSid" not in web.seen[2].form


@pytest.mark.parametrize(
    ("sender", "participant"),
    [
        ("whatsapp:+16505550198", "whatsapp:+16505550100"),
        ("rcs:study_agent", "rcs:+16505550100"),
        ("55501", PAT),
        ("55502", "12345"),
        ("+16505550197", "anonymous"),
    ],
)
def test_every_kind_of_address_can_text(
    sim: TwilioSimulator, web: Receiver, sender: str, participant: str
) -> None:
    sim.add_sender(sender, service=sim.services[SERVICE_SID])

    texted = sim.text(from_=participant, to=sender)

    assert texted.status == 200
    assert (web.seen[0].form["From"], web.seen[0].form["To"]) == (participant, sender)
    assert web.seen[0].is_signed()


def test_a_media_message_has_a_sid_and_parameters_of_its_own(sim: TwilioSimulator, web: Receiver) -> None:
    texted = sim.text(from_=PAT, num_media=1)

    assert texted.message.sid.startswith("MM")
    assert web.seen[0].form["MediaContentType0"] == "image/jpeg"


# -- retries, fallback, answers


def test_by_default_a_server_error_is_not_retried(sim: TwilioSimulator, web: Receiver) -> None:
    sim.services[SERVICE_SID].inbound_request_url = f"{PUBLIC_URL}/twilio/inbound"
    web.then(503)

    texted = sim.text(from_=PAT)

    assert (texted.status, len(web.seen), texted.twiml.error) == (503, 1, 11217)


def test_the_url_fragment_asks_for_retries_with_one_idempotency_token(
    sim: TwilioSimulator, web: Receiver
) -> None:
    web.then(503)
    web.then(500)

    texted = sim.text(from_=PAT)

    assert (texted.status, len(web.seen)) == (200, 3)
    assert len({seen.headers["I-Twilio-Idempotency-Token"] for seen in web.seen}) == 1


def test_a_client_error_is_not_retried_by_5xx(sim: TwilioSimulator, web: Receiver) -> None:
    web.then(403)

    assert sim.text(from_=PAT).status == 403
    assert len(web.seen) == 1


def test_a_slow_answer_is_retried_only_within_the_total_time(sim: TwilioSimulator, web: Receiver) -> None:
    web.delay = 0.3
    sim.services[SERVICE_SID].inbound_request_url = f"{PUBLIC_URL}/twilio/inbound#rc=5&rp=rt&rt=100&tt=250"

    texted = sim.text(from_=PAT)

    assert texted.answer.failure == "timeout"
    assert 2 <= len(texted.attempts) <= 3


def test_a_refused_connection_is_retried_once_by_default(sim: TwilioSimulator) -> None:
    sim.deliver_to("http://127.0.0.1:9")  # discard: nobody listens
    sim.services[SERVICE_SID].inbound_request_url = f"{PUBLIC_URL}/twilio/inbound"

    texted = sim.text(from_=PAT)

    assert [exchange.failure for exchange in texted.attempts] == ["connect", "connect"]
    assert texted.twiml.error == 11205


@pytest.mark.parametrize("fragment", ["rc=6", "rp=6xx", "ct=99", "rt=15001", "retries=3"])
def test_a_bad_connection_override_is_refused(fragment: str) -> None:
    with pytest.raises(ValueError, match="connection override"):
        parse_overrides(f"{PUBLIC_URL}/#{fragment}")


def test_the_fallback_url_gets_the_error_and_a_signature_of_its_own(
    sim: TwilioSimulator, web: Receiver
) -> None:
    service = sim.services[SERVICE_SID]
    service.inbound_request_url = f"{PUBLIC_URL}/twilio/inbound"
    service.fallback_url = f"{PUBLIC_URL}/twilio/fallback"
    web.then(500)

    texted = sim.text(from_=PAT)

    assert (texted.status, web.seen[1].path) == (200, "/twilio/fallback")
    assert web.seen[1].form["ErrorCode"] == "11217"
    assert web.seen[1].form["ErrorUrl"] == f"{PUBLIC_URL}/twilio/inbound"
    assert web.seen[1].is_signed()


@pytest.mark.parametrize(("status", "method", "form_kept"), [(302, "GET", False), (307, "POST", True)])
def test_http_redirects_keep_the_form_only_with_307(
    sim: TwilioSimulator, web: Receiver, status: int, method: str, form_kept: bool
) -> None:
    web.then(status, Location="/elsewhere")

    assert sim.text(from_=PAT).status == 200
    assert (web.seen[1].method, web.seen[1].path) == (method, "/elsewhere")
    assert bool(web.seen[1].body) is form_kept


def test_308_is_not_followed(sim: TwilioSimulator, web: Receiver) -> None:
    web.then(308, Location="/twilio/inbound/")

    assert sim.text(from_=PAT).twiml.error == 11216
    assert len(web.seen) == 1


def test_a_twiml_redirect_brings_the_same_message_to_its_url_signed_for_it(
    sim: TwilioSimulator, web: Receiver
) -> None:
    survey = "https://redcap.example.edu/surveys/?s=ABC&x=1"
    web.then(200, f"<Response><Redirect>{survey.replace('&', '&amp;')}</Redirect></Response>")
    with receiving() as redcap:
        sim.deliver_to(redcap.url, public_url="https://redcap.example.edu")
        texted = sim.text(from_=PAT)

    assert texted.forwarded is not None
    assert texted.forwarded.request.url == survey
    assert redcap.seen[0].form["MessageSid"] == texted.message.sid
    assert redcap.seen[0].is_signed("https://redcap.example.edu")


def test_plain_text_is_a_reply_to_the_participant_and_empty_twiml_is_silence(
    sim: TwilioSimulator, web: Receiver
) -> None:
    web.then(200, "OK", Content_Type="text/plain")

    assert sim.text(from_=PAT).replies == ("OK",)
    assert sim.text(from_=PAT).replies == ()


@pytest.mark.parametrize(("kind", "body", "error"), [("", "OK", 11200), ("text/xml", "", 12100)])
def test_an_answer_that_is_no_twiml_is_an_error(
    sim: TwilioSimulator, web: Receiver, kind: str, body: str, error: int
) -> None:
    web.then(200, body, Content_Type=kind)

    assert sim.text(from_=PAT).twiml.error == error


def test_an_unknown_public_host_is_never_called(sim: TwilioSimulator) -> None:
    assert sim.text(from_=PAT).answer.failure == "no route"


def test_a_service_without_url_drops_what_comes_in(sim: TwilioSimulator, web: Receiver) -> None:
    sim.services[SERVICE_SID].inbound_request_url = None

    texted = sim.text(from_=PAT)

    assert not texted.logged
    assert not sim.messages()
    assert not web.seen
    assert sim.is_blocked(SERVICE_SID, PAT)


def test_a_service_that_defers_leaves_inbound_to_the_number(sim: TwilioSimulator, web: Receiver) -> None:
    sim.services[SERVICE_SID].use_inbound_webhook_on_number = True
    sim.sender_at(SENDER).sms_url = f"{PUBLIC_URL}/number"

    sim.text(from_=PAT)

    assert web.seen[0].path == "/number"


def test_an_sms_application_makes_the_numbers_urls_void(sim: TwilioSimulator, web: Receiver) -> None:
    number = sim.add_sender(
        "+16505550198", sms_url=f"{PUBLIC_URL}/number", sms_application_sid="AP" + "0" * 32
    )

    texted = sim.text(from_=PAT, to=number.address)

    assert texted.logged
    assert not web.seen


# -- the block list


def test_a_blocked_participant_makes_sending_fail_with_21610(sim: TwilioSimulator) -> None:
    sim.text(from_=PAT, deliver=False)

    failed = sim.send_outbound(to=PAT, service=SERVICE_SID)

    assert (failed.status, failed.error_code, failed.direction) == ("failed", 21610, "outbound-api")
    assert sim.messages()[0] is failed
    with pytest.raises(MessageRefused, match="21610"):
        sim.send_outbound(to=PAT, from_=SENDER)


def test_start_unblocks_and_blocks_need_no_message(sim: TwilioSimulator) -> None:
    sim.block(SERVICE_SID, PAT)
    sim.text(from_=PAT, body="unstop", deliver=False)

    assert sim.send_outbound(to=PAT, service=SERVICE_SID).error_code is None


def test_yes_does_not_unblock_a_toll_free_number(sim: TwilioSimulator) -> None:
    sim.add_sender("+18885550123")
    for body in ("STOP", "YES"):
        sim.text(from_=PAT, to="+18885550123", body=body, deliver=False)

    assert sim.is_blocked("+18885550123", PAT)


def test_a_lone_short_code_keeps_no_block_list(sim: TwilioSimulator) -> None:
    sim.add_sender("55501")

    sim.text(from_=PAT, to="55501", deliver=False)

    assert not sim.blocks


# -- the message log by the REST API


def test_2500_messages_are_three_requests_newest_first(sim: TwilioSimulator, server: RunningServer) -> None:
    sim.add_messages(many(2500))

    sids = [message.sid for message in client_of(server).messages.stream(page_size=1000)]

    assert sids == [f"SM{i:032x}" for i in reversed(range(2500))]
    assert sim.request_counts() == {"Messages": 3}
    assert [entry.page for entry in sim.requests_to("Messages")] == [0, 1, 2]


def test_pages_do_not_shift_while_messages_arrive(sim: TwilioSimulator, client: Client) -> None:
    sim.add_messages(many(30))
    found = []
    for message in client.messages.stream(page_size=10):
        found.append(message.sid)
        sim.text(from_=PAT, deliver=False, at=NOON + timedelta(days=1))

    assert len(found) == len(set(found)) == 30


def test_a_message_has_the_documented_fields_and_whole_seconds(sim: TwilioSimulator, client: Client) -> None:
    sim.text(from_=PAT, body="Stop", deliver=False, at=NOON + timedelta(milliseconds=999))

    (message,) = client.messages.list()

    assert (message.direction, message.status, message.body) == ("inbound", "received", "Stop")
    assert (message.from_, message.to, message.messaging_service_sid) == (PAT, SENDER, SERVICE_SID)
    assert message.date_sent == message.date_created == NOON
    assert (message.num_media, message.error_code) == ("0", None)
    assert client.messages(message.sid).fetch().body == "Stop"


def test_messages_are_filtered_by_sender_participant_and_time(sim: TwilioSimulator, client: Client) -> None:
    sim.add_messages(many(100))
    sim.add_messages([Message(PAT, "+16505550198", at=NOON + timedelta(days=2), sid="SM" + "f" * 32)])
    since, until = NOON + timedelta(seconds=10), NOON + timedelta(seconds=20)

    def count(**filters: Any) -> int:
        return len(client.messages.list(page_size=1000, **filters))

    assert count(to=SENDER) == 100
    assert count(from_="+16505550042") == 1
    assert count(to=SENDER, date_sent_after=since, date_sent_before=until) == 11  # both ends count
    assert count(date_sent=NOON) == 100  # that day
    assert count(date_sent_after=(NOON + timedelta(days=1)).date()) == 1


@pytest.mark.parametrize(
    "value",
    ["2026-03-01", "2026-03-01T11:00:00Z", "Sun, 01 Mar 2026 11:00:00 GMT", "Sun, 1 Mar 2026 03:00:00 -0800"],
)
def test_dates_in_twilios_forms_are_read(sim: TwilioSimulator, server: RunningServer, value: str) -> None:
    sim.add_messages(many(3))

    assert len(raw(server, **{"DateSent>": value}).json()["messages"]) == 3


@pytest.mark.parametrize(
    "query",
    [
        {"DateSent>": "01/03/2026"},
        {"DateSent>": "2026-03-01T11:00:00+00:00"},
        {"DateSent>": "2026-03-01 11:00:00"},
        {"DateSent>=": "2026-03-01"},
        {"DateSentAfter": "2026-03-01"},
        {"Direction": "inbound"},
        {"To": " 16505550199"},
        {"PageSize": "5000"},
        {"PageSize": "0"},
        {"Page": "1"},
        {"PageToken": "PASM0", "Page": "1"},
    ],
    ids=str,
)
def test_what_twilios_description_does_not_have_is_refused(
    server: RunningServer, query: dict[str, str]
) -> None:
    answer = raw(server, **query)

    assert answer.status_code == 400
    assert set(answer.json()) == {"code", "message", "more_info", "status"}


def test_the_next_page_is_a_relative_uri_that_keeps_the_filters(
    sim: TwilioSimulator, server: RunningServer
) -> None:
    sim.add_messages(many(3))

    page = raw(server, To=SENDER, PageSize="2", **{"DateSent>": "2026-03-01"}).json()

    start = f"/2010-04-01/Accounts/{ACCOUNT_SID}/Messages.json?To=%2B16505550199&DateSent%3E=2026-03-01"
    assert page["next_page_uri"].startswith(f"{start}&PageSize=2&Page=1&PageToken=PASM")
    assert (page["page"], page["page_size"], page["start"], page["end"]) == (0, 2, 0, 1)


def test_redaction_hides_bodies_and_numbers_in_the_log_but_not_from_the_webhook(
    sim: TwilioSimulator, web: Receiver, client: Client
) -> None:
    account = sim.first_account
    account.redact_bodies = account.redact_numbers = True

    sim.text(from_=PAT)

    (message,) = client.messages.list()
    assert (message.body, message.from_, message.to) == ("", "+1650555XXXX", SENDER)
    assert (web.seen[0].form["Body"], web.seen[0].form["From"]) == ("STOP", PAT)
    assert "OptOutType" not in web.seen[0].form


def test_messages_can_be_sent_by_the_rest_api(sim: TwilioSimulator, client: Client) -> None:
    sim.block(SERVICE_SID, PAT)

    accepted = client.messages.create(to=PAT, messaging_service_sid=SERVICE_SID, body="Hello")

    assert (accepted.status, accepted.error_code) == ("accepted", None)
    assert client.messages(accepted.sid).fetch().error_code == 21610
    with pytest.raises(TwilioRestException) as refused:
        client.messages.create(to=PAT, from_=SENDER, body="Hello")
    assert (refused.value.status, refused.value.code) == (400, 21610)


# -- who may ask


def test_wrong_credentials_are_401_with_twilios_code(server: RunningServer) -> None:
    client = client_of(server, password="wrong")

    with pytest.raises(TwilioRestException) as refused:
        client.messages("SM0").fetch()
    assert (refused.value.status, refused.value.code) == (401, 20003)
    with pytest.raises(TwilioException) as listing:
        client.messages.list()
    assert listing.value.args[1].status_code == 401


def test_api_keys_and_secondary_tokens_open_the_rest_api_but_only_the_primary_token_signs() -> None:
    account = Account(api_keys={"SK1": "secret"}, secondary_auth_token="second")
    sim = TwilioSimulator([account])
    sim.add_service(sid=SERVICE_SID, senders=[SENDER])
    with receiving() as web, sim.serve() as server:
        sim.deliver_to(web.url)
        assert client_of(server, "SK1", "secret", account_sid=ACCOUNT_SID).messages.list() == []
        assert client_of(server, password="second").messages.list() == []
        sim.text(from_=PAT)
        account.promote_secondary_token()
        sim.text(from_=PAT)

    assert [seen.is_signed() for seen in web.seen] == [True, False]
    assert web.seen[1].is_signed(token="second")


def test_a_parent_account_reads_its_subaccount_and_strangers_do_not() -> None:
    sub, stranger = Account(sid="AC" + "5" * 32, owner_sid=ACCOUNT_SID), Account(sid="AC" + "6" * 32)
    sim = TwilioSimulator([Account(), replace(sub, auth_token="sub"), replace(stranger, auth_token="other")])
    with sim.serve() as server:
        client = client_of(server)
        assert client.api.accounts(sub.sid).messages.list() == []
        assert {account.sid for account in client.api.accounts.list()} == {ACCOUNT_SID, sub.sid}
        with pytest.raises(TwilioRestException, match="not found") as missing:
            client.api.accounts(stranger.sid).fetch()
    assert (missing.value.status, missing.value.code) == (404, 20404)


# -- faults


@pytest.mark.parametrize(("kind", "code"), [("429", 20429), ("503", 20503), ("500", 20500)])
def test_a_failing_page_raises_an_error_that_only_holds_the_response(
    sim: TwilioSimulator, client: Client, kind: str, code: int
) -> None:
    sim.add_messages(many(3))
    sim.fail(kind, resource="Messages", page=1)

    with pytest.raises(TwilioException, match="Unable to fetch page") as failed:
        client.messages.list(page_size=2)

    assert not isinstance(failed.value, TwilioRestException)
    assert failed.value.args[1].status_code == int(kind)
    assert json.loads(failed.value.args[1].text)["code"] == code
    assert len(client.messages.list(page_size=2)) == 3  # once only


def test_a_reset_connection_and_a_truncated_answer(sim: TwilioSimulator, client: Client) -> None:
    sim.add_messages(many(3))
    sim.fail("reset")
    sim.fail("truncated")

    with pytest.raises(requests.ConnectionError):
        client.messages.list()
    with pytest.raises(json.JSONDecodeError):
        client.messages.list()


def test_a_hang_lasts_until_the_client_gives_up(sim: TwilioSimulator, server: RunningServer) -> None:
    client = Client(ACCOUNT_SID, AUTH_TOKEN, http_client=TwilioHttpClient(timeout=0.2))
    client.api.base_url = server.url
    sim.fail("hang", resource="Messages", seconds=20)

    with pytest.raises(requests.ReadTimeout):
        client.messages.list()


def test_a_persistent_fault_lasts_until_it_is_mended(sim: TwilioSimulator, client: Client) -> None:
    sim.fail("503", times=None)
    for _ in range(3):
        with pytest.raises(TwilioException):
            client.messages.list()

    sim.mend()

    assert client.messages.list() == []


# -- set-up: services, numbers, campaigns


def test_a_service_is_created_gets_a_number_and_receives(
    sim: TwilioSimulator, web: Receiver, client: Client
) -> None:
    number = sim.add_sender("+16505550150")
    service = client.messaging.v1.services.create(
        friendly_name="Asthma",
        inbound_request_url=f"{PUBLIC_URL}/twilio/inbound#rc=5&rp=5xx,ct,rt",
        use_inbound_webhook_on_number=False,
    )
    attached = client.messaging.v1.services(service.sid).phone_numbers.create(phone_number_sid=number.sid)

    assert attached.phone_number == "+16505550150"
    assert sim.text(from_=PAT, to="+16505550150", advanced_opt_out=True).status == 200
    assert web.seen[0].form["MessagingServiceSid"] == service.sid
    with pytest.raises(TwilioRestException) as again:
        client.messaging.v1.services(service.sid).phone_numbers.create(phone_number_sid=number.sid)
    assert again.value.code == 21710


def test_a_new_service_defers_to_the_number_and_has_no_advanced_opt_out(
    sim: TwilioSimulator, client: Client
) -> None:
    service = client.messaging.v1.services.create(friendly_name="New")

    assert service.use_inbound_webhook_on_number is True
    assert service.inbound_request_url is None
    assert not sim.services[service.sid].advanced_opt_out


def test_a_service_is_read_and_changed(sim: TwilioSimulator, client: Client) -> None:
    service = client.messaging.v1.services(SERVICE_SID)

    changed = service.update(fallback_url=f"{PUBLIC_URL}/twilio/inbound", inbound_method="POST")

    assert changed.fallback_url == service.fetch().fallback_url == f"{PUBLIC_URL}/twilio/inbound"
    with pytest.raises(TwilioRestException, match="not a valid URL"):
        service.update(inbound_request_url="optout.example.edu")
    with pytest.raises(TwilioRestException) as bad:
        service.update(inbound_request_url=f"{PUBLIC_URL}/#rp=all,6xx")
    assert bad.value.code == 11243


def test_the_senders_of_a_service_are_listed_by_kind(sim: TwilioSimulator, client: Client) -> None:
    for address in ("55501", "STUDY", "whatsapp:+16505550198", "rcs:study_agent"):
        sim.add_sender(address, service=sim.services[SERVICE_SID])
    service = client.messaging.v1.services(SERVICE_SID)

    assert [item.phone_number for item in service.phone_numbers.list()] == [SENDER]
    assert [item.short_code for item in service.short_codes.list()] == ["55501"]
    assert [item.alpha_sender for item in service.alpha_senders.list()] == ["STUDY"]
    channels = [(item.sender, item.sender_type) for item in service.channel_senders.list()]
    assert channels == [("whatsapp:+16505550198", "WhatsApp"), ("rcs:study_agent", "RCS")]
    assert sim.request_counts()["Services/ChannelSenders"] == 1


def test_v1_lists_lead_on_by_absolute_urls_of_the_simulators_own_host(
    sim: TwilioSimulator, server: RunningServer
) -> None:
    for i in range(4):
        sim.add_service(friendly_name=f"Study {i}")

    names = [service.friendly_name for service in client_of(server).messaging.v1.services.stream(page_size=2)]

    assert names == ["Study texts", "Study 0", "Study 1", "Study 2", "Study 3"]
    assert sim.request_counts() == {"Services": 3}


def test_a_service_that_is_not_there_is_404(client: Client) -> None:
    with pytest.raises(TwilioRestException) as missing:
        client.messaging.v1.services("MG" + "9" * 32).fetch()
    assert (missing.value.status, missing.value.code) == (404, 20404)


def test_a_number_is_found_by_its_digits_and_changed(sim: TwilioSimulator, client: Client) -> None:
    sim.add_sender("+16505550150")

    (number,) = client.incoming_phone_numbers.list(phone_number="+16505550150")
    assert (number.sms_url, number.sms_application_sid) == ("", "")
    number.update(sms_url=f"{PUBLIC_URL}/twilio/inbound", sms_method="POST")

    assert client.incoming_phone_numbers(number.sid).fetch().sms_url == f"{PUBLIC_URL}/twilio/inbound"
    assert sim.sender_at("+16505550150").sms_url == f"{PUBLIC_URL}/twilio/inbound"


def test_campaigns_show_their_status(sim: TwilioSimulator, client: Client) -> None:
    sim.add_campaign(SERVICE_SID, status="IN_PROGRESS")

    (campaign,) = client.messaging.v1.services(SERVICE_SID).us_app_to_person.list()

    assert (campaign.campaign_status, campaign.opt_out_keywords) == ("IN_PROGRESS", ["STOP"])
    assert client.messaging.v1.services(SERVICE_SID).fetch().us_app_to_person_registered


# -- set-up: Event Streams


def create_sink(client: Client, url: str) -> Any:
    return client.events.v1.sinks.create(
        description="Opt-outs",
        sink_configuration={"destination": url, "method": "POST", "batch_events": False},
        sink_type="webhook",
    )


def test_a_sink_is_created_subscribed_tested_validated_and_receives(
    sim: TwilioSimulator, web: Receiver, client: Client
) -> None:
    sink = create_sink(client, f"{PUBLIC_URL}/twilio/my-events")
    types = [{"type": INBOUND_EVENT, "schema_version": 6}]
    subscription = client.events.v1.subscriptions.create(description="STOP", sink_sid=sink.sid, types=types)
    client.events.v1.sinks(sink.sid).sink_test.create()
    (test_event,) = json.loads(web.seen[0].body)
    client.events.v1.sinks(sink.sid).sink_validate.create(test_id=test_event["data"]["test_id"])
    texted = sim.text(from_=PAT, via="both")

    assert (sink.status, client.events.v1.sinks(sink.sid).fetch().status) == ("initialized", "active")
    assert test_event["type"] == "com.twilio.eventstreams.test-event"
    (subscribed,) = client.events.v1.subscriptions(subscription.sid).subscribed_events.list()
    assert (subscribed.type, subscribed.schema_version) == (INBOUND_EVENT, 6)
    assert [exchange.status for exchange in (*texted.attempts, *texted.events)] == [200, 200]
    assert {seen.path.partition("?")[0] for seen in web.seen} == {"/twilio/my-events", "/twilio/inbound"}
    assert all(seen.is_signed() for seen in web.seen)


def test_a_sink_in_use_cannot_be_deleted_before_its_subscription(
    sim: TwilioSimulator, client: Client
) -> None:
    sink = sim.add_sink()
    (subscription,) = client.events.v1.subscriptions.list(sink_sid=sink.sid)

    with pytest.raises(TwilioRestException):
        client.events.v1.sinks(sink.sid).delete()
    assert client.events.v1.subscriptions(subscription.sid).delete()
    assert [found.sid for found in client.events.v1.sinks.list(in_use=False)] == [sink.sid]
    assert client.events.v1.sinks(sink.sid).delete()
    assert client.events.v1.sinks.list() == []


def test_a_sinks_url_takes_no_connection_overrides(client: Client) -> None:
    with pytest.raises(TwilioRestException, match="connection overrides"):
        create_sink(client, f"{PUBLIC_URL}/twilio/events#rc=5")


def test_a_wrong_test_id_and_an_unknown_event_type_are_refused(sim: TwilioSimulator, client: Client) -> None:
    sink = sim.add_sink()

    with pytest.raises(TwilioRestException, match="TestId"):
        client.events.v1.sinks(sink.sid).sink_validate.create(test_id="guess")
    with pytest.raises(TwilioRestException, match="event type"):
        client.events.v1.subscriptions.create(description="x", sink_sid=sink.sid, types=[{"type": "com.x"}])


def test_event_types_are_listed_by_schema(client: Client) -> None:
    (kind,) = client.events.v1.event_types.list(schema_id="Messaging.InboundMessageV1")

    assert kind.type == INBOUND_EVENT


# -- duplicates and the control API


def test_the_same_message_can_be_delivered_again(sim: TwilioSimulator, web: Receiver) -> None:
    message = sim.text(from_=PAT).message
    sim.call_webhook(message)
    sim.call_webhook(message, Hook(f"{PUBLIC_URL}/other"))
    sim.send_events(message)
    sim.send_events(message)

    assert {seen.form["MessageSid"] for seen in web.seen[:3]} == {message.sid}
    assert json.loads(web.seen[3].body)[0]["id"] == json.loads(web.seen[4].body)[0]["id"]
    assert all(seen.is_signed() for seen in web.seen)
    assert len(sim.messages()) == 1


def test_parameters_of_a_message_can_be_made_without_a_simulator() -> None:
    params = inbound_parameters(Message(PAT, SENDER, "STOP", NOON, opt_out_type="STOP"), {"X": "1"})

    assert (params["From"], params["OptOutType"], params["X"], params["FromZip"]) == (PAT, "STOP", "1", "")


def test_a_message_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="aware"):
        Message(PAT, SENDER, at=datetime(2026, 3, 1))


def test_another_process_can_text_add_messages_and_make_faults(web: Receiver, server: RunningServer) -> None:
    control = f"{server.url}/_sim"
    texted = requests.post(f"{control}/text", json={"from": PAT, "service": SERVICE_SID}, timeout=5).json()
    rows = [{"from": PAT, "to": SENDER, "body": "START", "at": "2026-03-01T12:00:00+00:00"}]
    added = requests.post(f"{control}/messages", json={"messages": rows}, timeout=5).json()
    requests.post(f"{control}/faults", json={"kind": "503", "resource": "Messages"}, timeout=5)
    failed = raw(server).status_code
    log = requests.get(f"{control}/messages", timeout=5).json()["messages"]

    assert (texted["status"], texted["opt_out_type"], added["added"], failed) == (200, "STOP", 1, 503)
    assert [message["body"] for message in log] == ["STOP", "START"]
    assert requests.get(f"{control}/requests", timeout=5).json()["counts"] == {"Messages": 1}
    assert (
        requests.post(f"{control}/text", json={"from": PAT, "to": "+16505550111"}, timeout=5).status_code
        == 400
    )


def test_it_runs_on_its_own(web: Receiver) -> None:
    command = [sys.executable, "-m", "tests.simulators.twilio", "--port", "0", "--deliver-to", web.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        texted = requests.post(f"{url}/_sim/text", json={"from": PAT}, timeout=5).json()
        process.terminate()

    assert (texted["status"], process.returncode) == (200, 0)
    assert web.seen[0].is_signed()
