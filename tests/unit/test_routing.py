"""Which projects a message concerns, and what it changes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from shared.domain.events import OptOutEvent, Source
from shared.ledger.platform.service_senders import ServiceSenders
from tests.builders import at, config, hashed, project_table
from tests.simulators.twilio import ACCOUNT_SID, SENDER, SERVICE_SID
from web.twilio.parsing import InboundMessage
from web.twilio.routing import Router
from web.twilio.twiml import EMPTY_RESPONSE

NOW = at("2026-05-04T12:00:00")
OTHER_SERVICE = "MG" + "9" * 32


def router(**projects: dict[str, Any]) -> Router:
    return Router(config(projects or {"asthma": project_table()}), hashed)


def message(**changes: Any) -> InboundMessage:
    whole: dict[str, Any] = {
        "message_sid": "SM" + "0" * 32, "account_sid": ACCOUNT_SID, "messaging_service_sid": SERVICE_SID,
        "sender": "+16505550100", "recipient": SENDER, "body": "STOP", "opt_out_type": "STOP",
        "source": Source.WEBHOOK, "occurred_at": None,
    }  # fmt: skip
    return InboundMessage(**(whole | changes))


def events(some: Router, sent: InboundMessage) -> list[OptOutEvent]:
    return list(some.events(sent, some.projects(sent), NOW))


def changes(some: Router, **of_message: Any) -> list[str]:
    return [event.change.value for event in events(some, message(**of_message))]


@pytest.fixture
def senders(redis: Any) -> ServiceSenders:
    """The worker has listed two services."""
    store = ServiceSenders(redis, hashed)
    store.save(SERVICE_SID, [SENDER, "266739", "whatsapp:+16505550177", "rcs:brand_agent"])
    store.save(OTHER_SERVICE, ["+16505550188"])
    return store


class TestMessagesWithoutAService:
    """Event Streams may omit messagingServiceSid: the recipient shows the service."""

    @pytest.fixture
    def some(self, redis: Any, senders: ServiceSenders) -> Router:
        tables = {
            "asthma": project_table(channels=["sms", "whatsapp", "rcs"]),
            "sleep": project_table(messaging_service_sid=OTHER_SERVICE),
        }
        return Router(config(tables), hashed, ServiceSenders(redis, hashed))

    @pytest.mark.parametrize(
        ("recipient", "expected"),
        [
            (SENDER, ["asthma"]),
            ("266739", ["asthma"]),
            ("whatsapp:+16505550177", ["asthma"]),
            ("rcs:brand_agent", ["asthma"]),
            ("+16505550188", ["sleep"]),
            ("+16505550144", []),
            ("+16505550177", []),  # the service has it on another channel only
        ],
    )
    def test_it_is_routed_by_its_recipient(self, some: Router, recipient: str, expected: list[str]) -> None:
        sent = message(messaging_service_sid="", recipient=recipient, source=Source.EVENT_STREAM)
        assert some.projects(sent) == expected

    def test_the_sid_of_a_service_takes_precedence(self, some: Router) -> None:
        assert some.projects(message(messaging_service_sid=OTHER_SERVICE, recipient=SENDER)) == ["sleep"]
        assert some.projects(message(messaging_service_sid="MG" + "8" * 32, recipient=SENDER)) == []

    def test_another_account_has_other_numbers(self, some: Router) -> None:
        assert some.projects(message(account_sid="AC" + "9" * 32, messaging_service_sid="")) == []

    def test_new_senders_count_within_a_minute_and_are_read_once_until_then(
        self, redis: Any, senders: ServiceSenders
    ) -> None:
        now = [1000.0]
        some = Router(
            config({"asthma": project_table()}), hashed, ServiceSenders(redis, hashed, clock=lambda: now[0])
        )
        sent = message(messaging_service_sid="", recipient="+16505550166")
        assert some.projects(sent) == []
        senders.save(SERVICE_SID, ["+16505550166"])
        assert some.projects(sent) == []
        now[0] += 61
        assert some.projects(sent) == ["asthma"]

    def test_no_number_is_stored(self, redis: Any, senders: ServiceSenders) -> None:
        stored = str([redis.smembers(key) for key in redis.keys("*")])
        assert "555" not in stored
        assert "266739" not in stored
        assert all(redis.ttl(key) > 0 for key in redis.keys("*"))


class TestProjects:
    def test_a_messaging_service_names_its_project(self) -> None:
        some = router(asthma=project_table(), sleep=project_table(messaging_service_sid=OTHER_SERVICE))
        assert some.projects(message()) == ["asthma"]
        assert some.projects(message(messaging_service_sid=OTHER_SERVICE)) == ["sleep"]

    def test_a_number_names_its_project_where_there_is_no_service(self) -> None:
        some = router(asthma=project_table(messaging_service_sid=None, senders=[SENDER, "266739"]))
        assert some.projects(message(messaging_service_sid="")) == ["asthma"]
        assert some.projects(message(messaging_service_sid="", recipient="266739")) == ["asthma"]
        assert some.projects(message(messaging_service_sid="", recipient="+16505550111")) == []

    def test_projects_that_share_a_service_all_get_the_change(self) -> None:
        some = router(asthma=project_table(), sleep=project_table())
        assert [event.project for event in events(some, message())] == ["asthma", "sleep"]

    def test_a_project_that_lists_the_number_of_a_service_is_concerned_too_and_none_twice(self) -> None:
        some = router(
            asthma=project_table(senders=[SENDER]),
            sleep=project_table(messaging_service_sid=None, senders=[SENDER]),
        )
        assert some.projects(message()) == ["asthma", "sleep"]

    def test_the_same_service_in_another_account_is_another_service(self) -> None:
        assert router().projects(message(account_sid="AC" + "9" * 32)) == []


class TestChanges:
    @pytest.mark.parametrize(
        ("opt_out_type", "expected"),
        [("STOP", ["STOP"]), ("START", ["START"]), ("HELP", []), ("OTHER", []), ("", [])],
    )
    def test_twilio_s_judgement_counts(self, opt_out_type: str, expected: list[str]) -> None:
        assert changes(router(), opt_out_type=opt_out_type, body="whatever") == expected

    def test_twilio_s_judgement_counts_before_the_words(self) -> None:
        some = router(asthma=project_table(keyword_fallback=True))
        assert changes(some, opt_out_type="START", body="STOP") == ["START"]
        assert changes(some, opt_out_type="HELP", body="STOP") == []

    def test_the_words_count_where_twilio_does_not_judge(self) -> None:
        for body, expected in (
            (" Stop, please. ", ["STOP"]), ("Start", ["START"]), ("yes", []), ("please stop texting me", [""]),
            ("wrong number", [""]), ("see you tomorrow", []),
        ):  # fmt: skip
            assert changes(router(), opt_out_type="", body=body) == expected

    def test_unclear_texts_are_left_alone_if_the_project_says_so(self) -> None:
        some = router(asthma=project_table(suspected_opt_outs="off"))
        assert changes(some, opt_out_type="", body="please stop texting me") == []

    def test_the_scope_is_the_service_or_the_number_and_each_whatsapp_sender(self) -> None:
        table = project_table(senders=["+16505550177"], channels=["sms", "rcs", "whatsapp"])
        for sent, scope in (
            (message(), SERVICE_SID),
            (message(messaging_service_sid="", recipient="+16505550177"), f"number:{hashed('+16505550177')}"),
            (message(sender="whatsapp:+16505550100", recipient="whatsapp:+16505550177"),
             f"whatsapp:{hashed('+16505550177')}"),
        ):  # fmt: skip
            assert [event.scope for event in events(router(asthma=table), sent)] == [scope]

    def test_twilio_blocks_only_what_it_judged_itself(self) -> None:
        for kind, blocked in (("STOP", True), ("", False)):
            [event] = events(router(), message(opt_out_type=kind, body="STOP"))
            assert event.blocked is blocked

    def test_each_project_has_words_of_its_own(self) -> None:
        some = router(
            asthma=project_table(keyword_fallback=True, opt_out_keywords=["ALTO"]),
            sleep=project_table(keyword_fallback=True, opt_in_keywords=["ALTA"]),
        )
        for body, expected in (("alto", ["asthma"]), ("ALTA", ["sleep"]), ("stop", ["asthma", "sleep"])):
            found = events(some, message(opt_out_type="", body=body))
            assert [event.project for event in found if event.change] == expected

    def test_in_event_streams_the_words_always_count(self) -> None:
        assert changes(router(), opt_out_type="", body="stop", source=Source.EVENT_STREAM) == ["STOP"]


class TestChannels:
    @pytest.mark.parametrize("sender", ["+16505550100", "rcs:+16505550100"])
    def test_sms_and_rcs_share_one_opt_out(self, sender: str) -> None:
        [event] = events(router(), message(sender=sender))
        assert event.phone_hash == hashed("+16505550100")

    def test_a_number_that_is_listed_without_prefix_is_meant_on_every_channel_that_counts(self) -> None:
        table = project_table(messaging_service_sid=None, senders=[SENDER])
        sent = message(
            messaging_service_sid="", sender="whatsapp:+16505550100", recipient=f"whatsapp:{SENDER}"
        )
        assert events(router(asthma=table), sent) == []
        assert router(asthma=table).projects(sent) == []
        [event] = events(router(asthma={**table, "channels": ["sms", "whatsapp"]}), sent)
        assert event.phone_hash == hashed("+16505550100")

    def test_whatsapp_counts_only_where_the_project_lists_it(self) -> None:
        listing = router(asthma=project_table(channels=["sms", "whatsapp"]))
        assert changes(router(), sender="whatsapp:+16505550100", opt_out_type="START") == []
        assert changes(listing, sender="whatsapp:+16505550100", opt_out_type="START") == ["START"]
        assert changes(listing, sender="rcs:+16505550100") == []

    @pytest.mark.parametrize("sender", ["266739", "16505550100", "Anonymous"])
    def test_a_sender_that_is_no_number_has_no_hash(self, sender: str) -> None:
        assert [event.phone_hash for event in events(router(), message(sender=sender))] == [""]


class TestTimes:
    def test_a_webhook_s_change_happened_when_it_came(self) -> None:
        assert [event.occurred_at for event in events(router(), message())] == [NOW]

    def test_an_event_s_change_happened_when_twilio_says(self) -> None:
        earlier = NOW - timedelta(hours=3)
        assert [event.occurred_at for event in events(router(), message(occurred_at=earlier))] == [earlier]


class TestAnswer:
    URL = "https://redcap.example.edu/surveys/?s=A&b=<1>"

    def test_silence_is_an_empty_document(self) -> None:
        assert (
            router().answer(["asthma"])
            == EMPTY_RESPONSE
            == '<?xml version="1.0" encoding="UTF-8"?><Response />'
        )

    def test_the_first_project_with_an_address_hands_the_message_on(self) -> None:
        some = router(asthma=project_table(), sleep=project_table(forward_url=self.URL))
        assert some.answer(["asthma", "sleep"]).endswith(
            '<Response><Redirect method="POST">https://redcap.example.edu/surveys/?s=A&amp;b=&lt;1&gt;'
            "</Redirect></Response>"
        )

    def test_a_message_of_no_project_is_met_with_silence(self) -> None:
        assert router().answer([]) == EMPTY_RESPONSE
