"""The ingress through Flask's test client: what is answered, what is stored, what is published."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any
from urllib.parse import urlencode

import pytest
from flask.testing import FlaskClient
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisDown
from structlog.testing import capture_logs
from twilio.request_validator import RequestValidator
from werkzeug.datastructures import MultiDict
from werkzeug.test import TestResponse

from shared.ledger import keys
from shared.ledger.platform.loaded_configurations import Trouble, publish
from shared.ledger.projects.check_results import CheckResult, StoredFinding, store_result
from shared.messaging.tasks import TaskName
from tests.builders import at, batch, cloud_event, config, hashed, inbound_form, project_table, repeated, sid
from tests.fakes import RecordingPublisher, fake_redis
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, SENDER, SERVICE_SID
from web.app import build_services, create_app
from web.twilio.limits import EVENTS_LIMIT_BYTES, INBOUND_LIMIT_BYTES, MAX_PARAMETERS, QUERY_LIMIT_BYTES

EMPTY_RESPONSE = '<?xml version="1.0" encoding="UTF-8"?><Response />'
FORM = "application/x-www-form-urlencoded"
Pairs = Sequence[tuple[str, str]]


class Ingress:
    """The application over fake Redis, and requests as Twilio signs them."""

    def __init__(self, projects: dict[str, dict[str, Any]] | None = None, **changes: Any) -> None:
        self.redis = fake_redis()
        self.published = RecordingPublisher()
        services = build_services(
            config(projects, **changes), self.redis, self.published, schedule=lambda flush: flush()
        )
        self.app = create_app(services)
        self.client: FlaskClient = self.app.test_client()

    def inbound(
        self,
        form: dict[str, str] | Pairs,
        *,
        path: str = "/twilio/inbound",
        token: str = AUTH_TOKEN,
        signature: str | None = None,
        **more: Any,
    ) -> TestResponse:
        """Post a form, signed over the public URL unless a signature is given ('' sends none)."""
        pairs = list(form.items()) if isinstance(form, dict) else list(form)
        if signature is None:
            signature = RequestValidator(token).compute_signature(PUBLIC_URL + path, MultiDict(pairs))
        return self.post(path, urlencode(pairs).encode(), FORM, signature, **more)

    def events(
        self, body: bytes, *, token: str = AUTH_TOKEN, path: str = "/twilio/events", **more: Any
    ) -> TestResponse:
        """Post an Event Streams batch, signed as Twilio does: over the URL with the body's hash."""
        path = f"{path}?bodySHA256={hashlib.sha256(body).hexdigest()}"
        signature = RequestValidator(token).compute_signature(PUBLIC_URL + path, {})
        return self.post(path, body, "application/json", signature, **more)

    def post(self, path: str, body: bytes, content_type: str, signature: str, **more: Any) -> TestResponse:
        headers = more.pop("headers", {}) | ({"X-Twilio-Signature": signature} if signature else {})
        return self.client.post(path, data=body, content_type=content_type, headers=headers, **more)

    def stored(self, project: str = "asthma") -> list[str]:
        ids: list[str] = self.redis.zrange(keys.events(project), 0, -1)
        return ids

    def event(self, event_id: str, project: str = "asthma") -> dict[str, str]:
        stored: dict[str, str] = self.redis.hgetall(keys.event(project, event_id))
        return stored

    def nothing_happened(self) -> bool:
        """Nothing but a figure was stored, and nothing published."""
        return set(self.redis.keys("*")) <= {keys.METRICS} and not self.published.messages

    def lose_redis(self) -> None:
        def down(*_: Any, **__: Any) -> None:
            raise RedisDown("Error 111 connecting")

        self.redis.execute_command = down
        self.redis.pipeline = down


@pytest.fixture
def ingress() -> Ingress:
    return Ingress()


def is_silence(response: TestResponse) -> bool:
    """Whether Twilio is told to do nothing: it must be text/xml, or the participant gets it as a text."""
    return response.content_type == "text/xml; charset=utf-8" and response.text == EMPTY_RESPONSE


class TestInbound:
    def test_a_stop_is_stored_then_published_then_answered(self, ingress: Ingress) -> None:
        form = inbound_form()
        response = ingress.inbound(form)
        assert response.status_code == 200
        assert is_silence(response)
        event = ingress.event(form["MessageSid"])
        assert (event["change"], event["state"], event["source"]) == ("STOP", "received", "webhook")
        assert event["phone"] == hashed("+16505550100")
        assert ingress.published.of(TaskName.LOOKUP) == [("asthma", form["MessageSid"])]

    def test_a_start_is_stored(self, ingress: Ingress) -> None:
        form = inbound_form(Body="START", OptOutType="START")
        assert ingress.inbound(form).status_code == 200
        assert ingress.event(form["MessageSid"])["change"] == "START"

    @pytest.mark.parametrize("word", ["HELP", "", "SOMETHING"])
    def test_other_messages_are_answered_and_ignored(self, ingress: Ingress, word: str) -> None:
        response = ingress.inbound(inbound_form(Body="see you tomorrow", OptOutType=word))
        assert response.status_code == 200
        assert is_silence(response)
        assert ingress.nothing_happened()

    def test_help_with_a_body_of_stop_is_what_twilio_says_it_is(self) -> None:
        ingress = Ingress({"asthma": project_table(keyword_fallback=True)})
        ingress.inbound(inbound_form(Body="STOP", OptOutType="HELP"))
        assert ingress.nothing_happened()

    def test_a_text_that_may_ask_to_stop_is_recorded_without_its_text(self, ingress: Ingress) -> None:
        form = inbound_form(Body="please take me off your list", OptOutType="")
        with capture_logs() as logs:
            assert ingress.inbound(form).status_code == 200
        assert ingress.event(form["MessageSid"])["change"] == ""
        assert "list" not in str(logs) + str(ingress.event(form["MessageSid"]))

    def test_a_keyword_of_advanced_opt_out_is_learned_and_not_who_sent_it(self, ingress: Ingress) -> None:
        for body in ("Parar", "no me escriban 6505550100"):
            ingress.inbound(inbound_form(Body=body, OptOutType="STOP"))
        assert ingress.redis.hgetall(keys.words(SERVICE_SID)) == {"parar": "STOP"}

    def test_a_redelivered_webhook_is_answered_and_counts_once(self, ingress: Ingress) -> None:
        form = inbound_form()
        assert [ingress.inbound(form).status_code for _ in range(3)] == [200, 200, 200]
        assert ingress.stored() == [form["MessageSid"]]
        assert len(ingress.published.messages) == 1

    def test_a_message_to_no_project_is_answered_and_ignored(self, ingress: Ingress) -> None:
        response = ingress.inbound(inbound_form(MessagingServiceSid="MG" + "9" * 32, To="+16505550999"))
        assert (response.status_code, is_silence(response)) == (200, True)
        assert ingress.nothing_happened()

    def test_a_message_of_two_projects_is_recorded_for_both(self) -> None:
        ingress = Ingress({"asthma": project_table(), "sleep": project_table()})
        form = inbound_form()
        ingress.inbound(form)
        assert ingress.stored("asthma") == ingress.stored("sleep") == [form["MessageSid"]]

    def test_a_short_code_sender_is_recorded_without_a_number(self, ingress: Ingress) -> None:
        form = inbound_form(From="266739")
        assert ingress.inbound(form).status_code == 200
        assert ingress.event(form["MessageSid"])["phone"] == ""

    def test_a_blank_parameter_and_one_that_is_repeated_are_part_of_the_signature(
        self, ingress: Ingress
    ) -> None:
        form = inbound_form(FromCity="")
        assert ingress.inbound(repeated(form, MediaUrl=["b", "a"])).status_code == 200
        assert ingress.stored() == [form["MessageSid"]]

    @pytest.mark.parametrize("name", ["From", "MessageSid", "OptOutType", "Body", "AccountSid"])
    def test_a_repeated_parameter_that_matters_is_refused(self, ingress: Ingress, name: str) -> None:
        form = inbound_form()
        response = ingress.inbound(repeated(form, **{name: [form[name], form[name] + "1"]}))
        assert response.status_code in {400, 403}
        assert ingress.nothing_happened()

    def test_letters_beyond_ascii_are_signed_as_utf8(self, ingress: Ingress) -> None:
        form = inbound_form(Body="ARRÊT 🛑", FromCity="Cañon City")
        assert ingress.inbound(form).status_code == 200
        assert ingress.stored() == [form["MessageSid"]]

    def test_a_query_of_the_configured_url_is_part_of_the_signature(self, ingress: Ingress) -> None:
        assert ingress.inbound(inbound_form(), path="/twilio/inbound?study=a&b=%20c").status_code == 200


class TestForwarding:
    SURVEY = "https://redcap.example.edu/surveys/?s=ABC&t=1"

    def test_the_message_is_handed_on_to_the_configured_address(self) -> None:
        ingress = Ingress({"asthma": project_table(forward_url=self.SURVEY)})
        for form in (inbound_form(), inbound_form(Body="7", OptOutType=None)):
            response = ingress.inbound(form)
            assert response.content_type == "text/xml; charset=utf-8"
            assert response.text.endswith(
                '<Response><Redirect method="POST">https://redcap.example.edu/surveys/?s=ABC&amp;t=1'
                "</Redirect></Response>"
            )

    def test_event_streams_are_never_handed_on(self) -> None:
        ingress = Ingress({"asthma": project_table(forward_url=self.SURVEY)})
        assert is_silence(ingress.events(batch(cloud_event())))


class TestRefusals:
    def test_a_forged_signature_stores_nothing(self, ingress: Ingress) -> None:
        response = ingress.inbound(inbound_form(), token="another-token")
        assert response.status_code == 403
        assert response.content_type == "text/xml; charset=utf-8"
        assert ingress.nothing_happened()

    def test_a_request_without_signature_stores_nothing(self, ingress: Ingress) -> None:
        assert ingress.inbound(inbound_form(), signature="").status_code == 403
        assert ingress.events(batch(cloud_event()), token="another-token").status_code == 403
        assert ingress.nothing_happened()

    @pytest.mark.parametrize("signature", ["x", "ünsigned", "A" * 10_000, "0/KCTR6DLpKmkAf8muzZqo1nDgQ="])
    def test_a_signature_that_is_nonsense_stores_nothing(self, ingress: Ingress, signature: str) -> None:
        assert ingress.inbound(inbound_form(), signature=signature).status_code == 403
        assert ingress.nothing_happened()

    def test_a_body_that_was_changed_on_the_way_stores_nothing(self, ingress: Ingress) -> None:
        form = inbound_form()
        signature = RequestValidator(AUTH_TOKEN).compute_signature(PUBLIC_URL + "/twilio/inbound", form)
        changed = form | {"From": "+16505550177"}
        assert ingress.inbound(changed, signature=signature).status_code == 403
        assert ingress.nothing_happened()

    @pytest.mark.parametrize("configured", [True, False])
    def test_a_form_that_a_shared_key_signed(self, monkeypatch: pytest.MonkeyPatch, configured: bool) -> None:
        monkeypatch.setenv("TEST_SHARED_KEY", "shared-key")
        account: dict[str, Any] = {"account_sid": ACCOUNT_SID, "auth_token": "env:TEST_AUTH_TOKEN"}
        more = {"shared_key": "env:TEST_SHARED_KEY"} if configured else {}
        ingress = Ingress(twilio={"main": account | more})
        form = inbound_form()
        url = PUBLIC_URL + "/twilio/inbound"
        signature = RequestValidator("shared-key").compute_signature(url, form, "HMAC_SHA256")
        settings = {"X-Twilio-Webhooks-Signature-Settings": "key=k1,algorithm=HMAC_SHA256"}
        response = ingress.inbound(form, signature=signature, headers=settings)
        assert response.status_code == (200 if configured else 403)
        assert ingress.nothing_happened() is not configured

    def test_an_unknown_account_stores_nothing(self, ingress: Ingress) -> None:
        assert ingress.inbound(inbound_form(AccountSid="AC" + "9" * 32)).status_code == 403
        assert ingress.nothing_happened()

    def test_a_body_hash_beside_a_form_stores_nothing(self, ingress: Ingress) -> None:
        form = inbound_form()
        path = f"/twilio/inbound?bodySHA256={hashlib.sha256(urlencode(form).encode()).hexdigest()}"
        signature = RequestValidator(AUTH_TOKEN).compute_signature(PUBLIC_URL + path, {})
        assert ingress.inbound(form, path=path, signature=signature).status_code == 403
        assert ingress.nothing_happened()

    def test_headers_cannot_choose_the_url_that_is_verified(self, ingress: Ingress) -> None:
        elsewhere = "https://attacker.example/twilio/inbound"
        form = inbound_form()
        signature = RequestValidator(AUTH_TOKEN).compute_signature(elsewhere, form)
        response = ingress.inbound(
            form, signature=signature, base_url="https://attacker.example",
        )  # fmt: skip
        assert response.status_code == 403

    @pytest.mark.parametrize("name", ["MessageSid", "AccountSid", "From", "To"])
    def test_a_signed_form_without_a_needed_parameter_is_malformed(self, ingress: Ingress, name: str) -> None:
        assert ingress.inbound(inbound_form(**{name: None})).status_code == 400
        assert ingress.nothing_happened()

    @pytest.mark.parametrize(
        "message_sid", ["", "x", "SM", "SM" + "a" * 80, "SM|asthma|SM12345678", "sm" + "0" * 32]
    )
    def test_what_is_no_sid_is_malformed(self, ingress: Ingress, message_sid: str) -> None:
        assert ingress.inbound(inbound_form(MessageSid=message_sid)).status_code == 400
        assert ingress.nothing_happened()

    def test_without_a_signature_it_is_forged_whatever_it_holds(self, ingress: Ingress) -> None:
        assert ingress.post("/twilio/inbound", b"{}", "application/json", "").status_code == 403
        assert ingress.nothing_happened()

    def test_another_content_type_is_malformed(self, ingress: Ingress) -> None:
        response = ingress.post("/twilio/inbound", b'{"From": "+16505550100"}', "application/json", "x")
        assert (response.status_code, is_silence(response)) == (400, True)

    def test_more_than_any_message_is_too_large(self, ingress: Ingress) -> None:
        response = ingress.inbound(inbound_form(Body="x" * INBOUND_LIMIT_BYTES))
        assert (response.status_code, is_silence(response)) == (413, True)
        response = ingress.events(b"x" * (EVENTS_LIMIT_BYTES + 1))
        assert (response.status_code, is_silence(response)) == (413, True)
        assert ingress.nothing_happened()

    @pytest.mark.parametrize("path", ["/twilio/inbound", "/twilio/events"])
    @pytest.mark.parametrize("method", ["get", "put", "delete", "patch"])
    def test_another_method_is_not_allowed(self, ingress: Ingress, path: str, method: str) -> None:
        response = getattr(ingress.client, method)(path)
        assert response.status_code == 405
        assert "POST" in response.headers["Allow"]
        assert response.content_type == "text/xml; charset=utf-8"

    def test_more_parameters_than_any_message_has_are_refused_before_they_are_sorted(
        self, ingress: Ingress
    ) -> None:
        many = {f"p{number}": "" for number in range(MAX_PARAMETERS)}
        assert ingress.inbound(inbound_form(**many)).status_code == 400
        assert set(ingress.redis.hgetall(keys.METRICS)) == {"webhooks|inbound|too_many_parameters"}

    @pytest.mark.parametrize("path", ["/twilio/inbound", "/twilio/events"])
    def test_a_longer_query_than_any_address_has_is_refused(self, ingress: Ingress, path: str) -> None:
        long = f"{path}?x={'y' * QUERY_LIMIT_BYTES}"
        assert ingress.post(long, b"", "application/x-www-form-urlencoded", "x").status_code == 400
        assert ingress.nothing_happened()

    def test_refusals_are_counted_by_their_reason(self, ingress: Ingress) -> None:
        ingress.inbound(inbound_form(), token="another-token")
        ingress.inbound(inbound_form(From=None))
        ingress.inbound(inbound_form())
        assert ingress.redis.hgetall(keys.METRICS) == {
            "webhooks|inbound|wrong_signature": "1",
            "webhooks|inbound|no_From": "1",
            "webhooks|inbound|accepted": "1",
        }


class TestPaths:
    @pytest.mark.parametrize("path", ["/twilio/inbound/", "//twilio/inbound", "/twilio//inbound"])
    def test_a_slash_too_many_is_never_redirected(self, ingress: Ingress, path: str) -> None:
        """Twilio does not follow 308. Source: Twilio error 11216."""
        response = ingress.inbound(inbound_form(), path=path)
        assert response.status_code in {200, 404}
        assert "Location" not in response.headers

    def test_a_trailing_slash_is_accepted(self, ingress: Ingress) -> None:
        assert ingress.inbound(inbound_form(), path="/twilio/inbound/").status_code == 200
        assert ingress.events(batch(cloud_event()), path="/twilio/events/").status_code == 200

    def test_an_unknown_path_is_not_found(self, ingress: Ingress) -> None:
        assert ingress.client.get("/").status_code == 404
        response = ingress.client.post("/twilio/voice")
        assert (response.status_code, is_silence(response)) == (404, True)

    def test_a_mistake_of_ours_is_answered_without_a_page(
        self, ingress: Ingress, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("web.twilio.views.submit", broken)
        response = ingress.inbound(inbound_form())
        assert (response.status_code, is_silence(response)) == (500, True)

    @pytest.mark.parametrize("ending", ["", "/"])
    def test_a_public_url_with_a_path_of_its_own_is_signed_with_it(self, ending: str) -> None:
        ingress = Ingress(public_url=f"https://www.example.edu/optout{ending}")
        form = inbound_form()
        url = "https://www.example.edu/optout/twilio/inbound"
        signature = RequestValidator(AUTH_TOKEN).compute_signature(url, form)
        assert ingress.inbound(form, signature=signature).status_code == 200


class TestEvents:
    def test_a_stop_is_stored_with_the_time_that_twilio_gives(self, ingress: Ingress) -> None:
        event = cloud_event()
        response = ingress.events(batch(event))
        assert (response.status_code, is_silence(response)) == (200, True)
        stored = ingress.event(event["data"]["messageSid"])
        assert (stored["change"], stored["source"]) == ("STOP", "event_stream")
        assert stored["occurred_ms"] == "1777890030456"

    def test_every_event_of_a_batch_counts(self, ingress: Ingress) -> None:
        events = [cloud_event(**{"from": f"+165055501{n:02d}"}) for n in range(3)]
        ingress.events(batch(*events))
        assert set(ingress.stored()) == {event["data"]["messageSid"] for event in events}
        assert ingress.redis.lrange(keys.arrived("asthma"), 0, -1) == ingress.stored()
        assert len(ingress.published.of(TaskName.LOOKUP)) == 1  # one lookup includes all that have arrived

    def test_without_opt_out_type_the_words_count_even_where_the_fallback_is_off(
        self, ingress: Ingress
    ) -> None:
        event = cloud_event(optOutType=None, body=" Stop ")
        ingress.events(batch(event))
        assert ingress.event(event["data"]["messageSid"])["change"] == "STOP"

    def test_a_webhook_and_an_event_of_one_message_count_once(self, ingress: Ingress) -> None:
        form = inbound_form()
        ingress.inbound(form)
        ingress.events(batch(cloud_event(messageSid=form["MessageSid"])))
        assert ingress.stored() == [form["MessageSid"]]
        assert len(ingress.published.messages) == 1

    def test_events_of_other_types_are_passed_over(self, ingress: Ingress) -> None:
        test_event = {"type": "com.twilio.eventstreams.test-event", "data": {"test_id": "1"}}
        assert ingress.events(batch(test_event)).status_code == 200
        assert ingress.nothing_happened()

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"null", b'{"type": "x"}', b"[1]", batch(cloud_event(messageSid=None)),
         batch(cloud_event(timestamp="soon")), batch({**cloud_event(), "data": None})],
    )  # fmt: skip
    def test_what_is_no_batch_of_events_is_malformed(self, ingress: Ingress, body: bytes) -> None:
        assert ingress.events(body).status_code == 400
        assert ingress.nothing_happened()

    def test_an_event_that_cannot_be_read_or_is_anothers_does_not_keep_the_others_out(
        self, ingress: Ingress
    ) -> None:
        sound, foreign = cloud_event(), cloud_event(messageSid="SM" + "a" * 32, accountSid="AC" + "9" * 32)
        assert ingress.events(batch(cloud_event(messageSid="x"), sound, foreign)).status_code == 200
        assert ingress.stored() == [sound["data"]["messageSid"]]
        counted = ingress.redis.hgetall(keys.METRICS)
        assert {name.split("|")[2] for name in counted} == {"accepted", "no_sid", "foreign_account"}

    def test_a_body_without_its_hash_in_the_url_is_refused(self, ingress: Ingress) -> None:
        signature = RequestValidator(AUTH_TOKEN).compute_signature(PUBLIC_URL + "/twilio/events", {})
        response = ingress.post("/twilio/events", batch(cloud_event()), "application/json", signature)
        assert response.status_code == 403

    def test_a_body_that_does_not_match_its_hash_is_refused(self, ingress: Ingress) -> None:
        path = f"/twilio/events?bodySHA256={hashlib.sha256(b'[]').hexdigest()}"
        signature = RequestValidator(AUTH_TOKEN).compute_signature(PUBLIC_URL + path, {})
        response = ingress.post(path, batch(cloud_event()), "application/json", signature)
        assert response.status_code == 403
        assert ingress.nothing_happened()

    def test_a_body_that_is_no_utf8_is_refused(self, ingress: Ingress) -> None:
        assert ingress.events(b"\xff\xfe[]").status_code == 403

    def test_one_account_cannot_speak_for_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTHER_TOKEN", "other-token")
        other = {"account_sid": "AC" + "0" * 30 + "ff", "auth_token": "env:OTHER_TOKEN"}
        accounts = {**config().model_dump()["twilio"]}
        accounts = {
            "main": {"account_sid": accounts["main"]["account_sid"], "auth_token": "env:TEST_AUTH_TOKEN"},
            "other": other,
        }
        ingress = Ingress(twilio=accounts)
        assert ingress.events(batch(cloud_event()), token="other-token").status_code == 403
        assert ingress.nothing_happened()
        assert ingress.events(batch(cloud_event())).status_code == 200


class TestStoreDown:
    def test_a_stop_that_cannot_be_stored_is_answered_with_503(self, ingress: Ingress) -> None:
        ingress.lose_redis()
        for response in (ingress.inbound(inbound_form()), ingress.events(batch(cloud_event()))):
            assert (response.status_code, is_silence(response)) == (503, True)
        assert not ingress.published.messages

    def test_a_forged_request_is_refused_all_the_same(self, ingress: Ingress) -> None:
        ingress.lose_redis()
        assert ingress.inbound(inbound_form(), token="another-token").status_code == 403

    def test_a_broker_that_is_away_does_not_lose_what_is_stored(self, ingress: Ingress) -> None:
        ingress.published.error = OperationalError("broker")
        form = inbound_form()
        assert ingress.inbound(form).status_code == 200
        assert ingress.redis.zrange(keys.DUE, 0, -1) == [f"lookup|asthma|{form['MessageSid']}"]

    def test_a_figure_that_cannot_be_counted_does_not_undo_what_is_stored(
        self, ingress: Ingress, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def down(*_: Any, **__: Any) -> None:
            raise RedisDown

        monkeypatch.setattr(ingress.app.extensions["optout"].ledger, "count", down)
        form = inbound_form()
        assert ingress.inbound(form).status_code == 200
        assert ingress.stored() == [form["MessageSid"]]


class TestHealth:
    def test_healthz_needs_no_redis(self, ingress: Ingress) -> None:
        ingress.lose_redis()
        response = ingress.client.get("/healthz")
        assert response.status_code == 200
        assert response.json == {"status": "ok", "version": metadata.version("opt-out-bridge")}

    def test_readyz_is_ready_when_redis_answers_and_nothing_is_wrong(self, ingress: Ingress) -> None:
        response = ingress.client.get("/readyz")
        assert response.status_code == 200
        assert response.json == {"status": "ready", "redis": "ok", "projects": {}}

    def test_readyz_shows_a_project_s_problem_with_its_mend(self, ingress: Ingress) -> None:
        problem = {"problem": "opt_out_field_holds_no_time", "detail": "set it to datetime_seconds_ymd"}
        ingress.redis.hset(keys.PROBLEMS, "asthma", json.dumps(problem))
        response = ingress.client.get("/readyz")
        assert response.status_code == 503
        assert response.json == {"status": "not ready", "redis": "ok", "projects": {"asthma": problem}}

    def test_readyz_passes_over_problems_of_projects_that_are_gone(self, ingress: Ingress) -> None:
        ingress.redis.hset(keys.PROBLEMS, "gone", json.dumps({"problem": "x", "detail": "y"}))
        assert ingress.client.get("/readyz").status_code == 200

    def test_readyz_and_metrics_name_the_file_that_a_process_could_not_load(self, ingress: Ingress) -> None:
        trouble = Trouble(
            "/etc/optout/studies/a.toml", "projects.a.phone_feild: unknown key\nprojects.a: more"
        )
        for field in ("worker|one|7", "beat|one|9"):
            publish(ingress.redis, field, "abc", now_ms=time.time_ns() // 1_000_000, trouble=trouble)
        response = ingress.client.get("/readyz")
        assert response.status_code == 503
        assert response.json
        [named] = response.json["configuration"]
        assert (named["file"], named["key"]) == (trouble.file, "projects.a.phone_feild")
        assert named["problem"] == trouble.problem
        assert named["processes"] == ["beat on one", "worker on one"]
        line = 'optout_configuration_problem{file="/etc/optout/studies/a.toml"} 1.0'
        assert line in ingress.client.get("/metrics").text

    def test_readyz_and_metrics_say_so_when_redis_is_down(self, ingress: Ingress) -> None:
        ingress.lose_redis()
        response = ingress.client.get("/readyz")
        assert (response.status_code, response.json) == (
            503,
            {"status": "not ready", "redis": "ConnectionError"},
        )
        assert ingress.client.get("/metrics").status_code == 503

    def test_a_project_with_a_problem_still_takes_events(self, ingress: Ingress) -> None:
        ingress.redis.hset(keys.PROBLEMS, "asthma", json.dumps({"problem": "x", "detail": "y"}))
        form = inbound_form()
        assert ingress.inbound(form).status_code == 200
        assert ingress.stored() == [form["MessageSid"]]


class TestMetrics:
    def figures(self, ingress: Ingress) -> dict[str, float]:
        response = ingress.client.get("/metrics")
        assert response.status_code == 200
        assert response.content_type.startswith("text/plain")
        lines = (line for line in response.text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def test_the_figures_are_those_of_the_ledger(self, ingress: Ingress) -> None:
        ingress.inbound(inbound_form())
        ingress.inbound(inbound_form(From="266739"))
        ingress.inbound(inbound_form(), token="another-token")
        ingress.redis.hset(keys.PROBLEMS, "asthma", "{}")
        figures = self.figures(ingress)
        expected = {
            'optout_unfinished_events{project="asthma"}': 2,
            'optout_pending_phones{project="asthma"}': 0,
            'optout_due_mails{project="asthma"}': 0,
            'optout_project_problem{project="asthma"}': 1,
            'optout_indexed_phones{project="asthma"}': 0,
            'optout_webhooks_total{endpoint="inbound",outcome="accepted"}': 2,
            'optout_webhooks_total{endpoint="inbound",outcome="wrong_signature"}': 1,
        }
        assert {name: figures.get(name) for name in expected} == expected

    def test_the_age_of_the_oldest_unfinished_event_is_shown(self, ingress: Ingress) -> None:
        form = inbound_form()
        ingress.inbound(form)
        name = 'optout_oldest_unfinished_age_seconds{project="asthma"}'
        ingress.redis.zincrby(keys.unfinished("asthma"), -60_000, form["MessageSid"])
        assert 60 <= self.figures(ingress)[name] < 90

    def test_what_a_project_has_left_that_was_taken_out_is_shown(self, ingress: Ingress) -> None:
        ingress.redis.hset(keys.PROJECTS, mapping={"asthma": "", "gone": "1777890030000"})
        ingress.redis.zadd(keys.pending("gone"), {"a": 1, "b": 2})
        page = ingress.client.get("/metrics").text
        assert 'optout_pending_phones{project="gone"} 2.0' in page
        assert page.count('optout_pending_phones{project="asthma"}') == 1

    def test_nothing_unfinished_has_age_zero(self, ingress: Ingress) -> None:
        assert self.figures(ingress)['optout_oldest_unfinished_age_seconds{project="asthma"}'] == 0

    def test_blocks_are_shown_of_projects_that_block_and_findings_only_of_severities_that_occur(self) -> None:
        tables = {"asthma": project_table(block_at_twilio=True), "diabetes": project_table(senders=[SENDER])}
        ingress = Ingress(tables)
        finding = StoredFinding(id="x", severity="error", subject="", title="", observed="", fix="", docs="")
        result = CheckResult(scope="diabetes", checked_at=at("2026-05-04T12:00:00"), findings=(finding,) * 2)
        store_result(ingress.redis, result)
        figures = self.figures(ingress)
        assert {name for name in figures if name.startswith("optout_blocks_waiting")} == {
            'optout_blocks_waiting{project="asthma"}'
        }
        assert {
            name: value for name, value in figures.items() if name.startswith("optout_check_findings")
        } == {
            'optout_check_findings{scope="diabetes",severity="error"}': 2,
            **{
                f'optout_check_findings{{scope="platform",severity="{severity}"}}': 0
                for severity in ("error", "warning", "note")
            },
        }

    def test_what_a_project_does_not_have_has_no_series(self, ingress: Ingress) -> None:
        names = ("changes_awaiting_digest", "log_covered_ratio", "oldest_review_age_seconds",
                 "texts_after_opt_out", "project_problem")  # fmt: skip
        none = self.figures(ingress)
        ingress.redis.hset(keys.PROBLEMS, "asthma", "{}")
        ingress.redis.zadd(keys.reviews("asthma"), {"SM1": 1})
        ingress.redis.zadd(keys.gathered("asthma"), {"SM1": 1})
        ingress.redis.hset(keys.reconciled("asthma"), mapping={"log_covered": "0.5", "delivered": 2})
        some = self.figures(ingress)
        for name in names:
            assert not [series for series in none if series.startswith(f"optout_{name}{{")]
            assert len([series for series in some if series.startswith(f"optout_{name}{{")]) == 1
        assert none['optout_reviews{project="asthma"}'] == 0
        assert some['optout_log_covered_ratio{project="asthma"}'] == 0.5

    def test_every_figure_has_a_text(self, ingress: Ingress) -> None:
        text = ingress.client.get("/metrics").text
        families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
        assert families
        assert all(f"# HELP {family} " in text for family in families)


def test_a_message_to_a_listed_number_outside_the_service_counts() -> None:
    ingress = Ingress({"asthma": project_table(messaging_service_sid=None, senders=[SENDER])})
    form = inbound_form(MessagingServiceSid=None)
    ingress.inbound(form)
    assert ingress.stored() == [form["MessageSid"]]


def test_an_event_id_is_twilio_s_message_sid(ingress: Ingress) -> None:
    form = inbound_form(MessageSid=sid(prefix="MM"), MessagingServiceSid=SERVICE_SID)
    ingress.inbound(form)
    assert ingress.stored() == [form["MessageSid"]]
