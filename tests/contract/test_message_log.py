"""The requests that we make of Twilio's REST API, before a simulator that refuses what Twilio does not describe.

What it accepts follows github.com/twilio/twilio-oai: api_v2010 ListMessage takes To, From, DateSent, DateSent<,
DateSent>, PageSize (1..1000), Page and PageToken and nothing else; a page after the first needs the token that
the page before it gave; messaging_v1 lists take the three paging parameters only. Times are GMT.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from shared.errors import TwilioRejected, TwilioUnavailable
from tests.builders import config, hashed, project_table
from tests.simulators.twilio import SENDER, SERVICE_SID, Message, TwilioSimulator
from worker.twilio import message_log, service_senders
from worker.twilio.message_log import PAGE_SIZE, MessageLog, open_message_log

PAT = "+16505550100"
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WHAT_A_LIST_TAKES = {
    "Messages": {"To", "From", "DateSent", "DateSent<", "DateSent>", "PageSize", "Page", "PageToken"},
    "Services/PhoneNumbers": {"PageSize", "Page", "PageToken"},
    "Services/ShortCodes": {"PageSize", "Page", "PageToken"},
    "Services/ChannelSenders": {"PageSize", "Page", "PageToken"},
}


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwilioSimulator]:
    simulator = TwilioSimulator()
    with simulator.serve() as server:
        monkeypatch.setenv("OPTOUT_TWILIO_API_URL", server.url)
        yield simulator
        # Whatever a test did: nothing but described parameters, and no address in a path.
        for request in simulator.request_log:
            assert request.query.keys() <= WHAT_A_LIST_TAKES[request.resource]
            assert "+1" not in request.path


def opened(**changes: Any) -> MessageLog:
    settings = config({"asthma": project_table(**changes)})
    return open_message_log("asthma", settings.projects["asthma"], settings.twilio["main"], hashed)


def read(log: MessageLog, sender: str = SENDER, since: datetime = NOON - timedelta(days=1)) -> list[str]:
    """The SIDs of all events of a sender, in the order in which they come."""
    return [event.event_id for events in log.pages(sender, since) for event in events]


def stops(count: int, *, to: str = SENDER, begin: datetime = NOON) -> list[Message]:
    return [Message(PAT, to, "STOP", begin + timedelta(seconds=number)) for number in range(count)]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages a page."""
    monkeypatch.setattr(message_log, "PAGE_SIZE", 2)


class TestMessages:
    def test_the_log_is_asked_by_sender_in_twilios_largest_pages(self, sim: TwilioSimulator) -> None:
        read(opened(), since=NOON)
        (request,) = sim.requests_to("Messages")
        assert request.query == {"To": SENDER, "PageSize": "1000"}
        assert request.status == 200

    def test_blocked_texts_are_asked_for_by_the_studys_own_number(self, sim: TwilioSimulator) -> None:
        list(opened().sent_pages(SENDER, NOON))
        (request,) = sim.requests_to("Messages")
        assert request.query == {"From": SENDER, "PageSize": "1000"}

    def test_the_time_is_inclusive_and_in_whole_seconds_as_twilios(self, sim: TwilioSimulator) -> None:
        sim.add_messages(stops(1))
        assert len(read(opened(), since=NOON)) == 1
        assert len(read(opened(), since=NOON + timedelta(milliseconds=900))) == 1
        assert len(read(opened(), since=NOON.astimezone(timezone(timedelta(hours=-5))))) == 1
        assert read(opened(), since=NOON + timedelta(seconds=1)) == []

    def test_what_is_older_is_neither_handed_in_nor_counted(self, sim: TwilioSimulator) -> None:
        sim.add_messages(stops(10))
        log = opened()
        assert len(read(log, since=NOON + timedelta(seconds=7))) == 3
        assert (log.counts.messages, log.counts.inbound_texts, log.counts.pages) == (3, 3, 1)

    @pytest.mark.parametrize(("newer", "pages"), [(0, 1), (1, 2), (2, 2), (3, 3), (4, 3)])
    def test_the_log_is_read_to_the_first_page_that_is_wholly_older(
        self, sim: TwilioSimulator, small_pages: None, newer: int, pages: int
    ) -> None:
        sim.add_messages(stops(20))
        log = opened()
        assert len(read(log, since=NOON + timedelta(seconds=20 - newer))) == newer
        assert log.counts.pages == pages

    def test_a_stop_of_which_nobody_was_told_is_found(self, sim: TwilioSimulator) -> None:
        """Twilio called no webhook, so that it has no date_sent, which is what the filter goes by."""
        sim.services[SERVICE_SID].use_inbound_webhook_on_number = True
        texted = sim.text(from_=PAT, body="STOP", at=NOON)
        assert texted.message.sent is False
        ((event,),) = opened().pages(SENDER, NOON)
        assert (event.event_id, event.occurred_at) == (texted.message.sid, NOON)

    def test_a_text_that_failed_before_it_was_sent_is_found(self, sim: TwilioSimulator) -> None:
        sim.block(SERVICE_SID, PAT)
        refused = sim.send_outbound(to=PAT, service=SERVICE_SID, at=NOON)
        assert refused.sent is False
        (((event,), _),) = opened().sent_pages(SENDER, NOON)
        assert (event.event_id, event.occurred_at) == (refused.sid, NOON)

    def test_messages_without_date_sent_are_read_to_the_same_end(
        self, sim: TwilioSimulator, small_pages: None
    ) -> None:
        messages = stops(20)
        for message in messages[::3]:
            message.sent = False
        sim.add_messages(messages)
        log = opened()
        found = read(log, since=NOON + timedelta(seconds=15))
        assert found == [message.sid for message in reversed(messages[15:])]
        assert log.counts.pages == 4

    def test_where_no_message_was_ever_sent_on_the_filter_is_asked_and_the_rest_not_read(
        self, sim: TwilioSimulator, small_pages: None
    ) -> None:
        messages = stops(20)
        for message in messages:
            message.sent = False
        sim.add_messages(messages)
        assert len(read(opened(), since=NOON + timedelta(seconds=18))) == 2
        requests = sim.requests_to("Messages")
        assert [request.query.get("DateSent>") for request in requests] == [
            None,
            None,
            "2026-03-01T12:00:18Z",
        ]

    def test_pages_follow_twilios_own_links_newest_first_and_miss_nothing(
        self, sim: TwilioSimulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(message_log, "PAGE_SIZE", 2)
        messages = stops(5)
        sim.add_messages(messages)
        log = opened()
        assert read(log) == [message.sid for message in reversed(messages)]
        assert [request.query.get("Page") for request in sim.requests_to("Messages")] == [None, "1", "2"]
        assert all("PageToken" in request.query for request in sim.requests_to("Messages")[1:])
        assert (log.counts.pages, log.counts.messages) == (3, 5)

    def test_messages_that_arrive_meanwhile_shift_no_page(
        self, sim: TwilioSimulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(message_log, "PAGE_SIZE", 2)
        messages = stops(4)
        sim.add_messages(messages)
        seen: list[str] = []
        for events in opened().pages(SENDER, NOON):
            seen += [event.event_id for event in events]
            sim.add_messages(stops(3, begin=NOON + timedelta(hours=1)))
        assert seen == [message.sid for message in reversed(messages)]

    @pytest.mark.parametrize("sender", [SENDER, "72975", "rcs:study_agent", "whatsapp:+16505550198"])
    def test_every_kind_of_sender_is_a_filter_that_twilio_takes(
        self, sim: TwilioSimulator, sender: str
    ) -> None:
        sim.add_messages(stops(1, to=sender) + stops(1, to="+16505550197"))
        assert len(read(opened(), sender)) == 1

    @pytest.mark.parametrize("size", ["0", "1001"])
    def test_the_simulator_would_refuse_a_page_size_that_twilio_does_not_have(
        self, sim: TwilioSimulator, monkeypatch: pytest.MonkeyPatch, size: str
    ) -> None:
        monkeypatch.setattr(message_log, "PAGE_SIZE", int(size))
        with pytest.raises(TwilioRejected, match="status 400"):
            read(opened())

    def test_the_simulator_would_refuse_a_time_that_twilio_does_not_read(self, sim: TwilioSimulator) -> None:
        with pytest.raises(TwilioRejected, match="status 400"):
            list(opened().raw_pages(to=SENDER, date_sent_after="yesterday"))

    def test_our_page_size_is_the_largest_of_the_description(self) -> None:
        assert PAGE_SIZE == 1000


class TestSenders:
    def test_numbers_short_codes_and_channel_senders_of_the_service_are_found(
        self, sim: TwilioSimulator
    ) -> None:
        service = sim.services[SERVICE_SID]
        for address in ("+16505550198", "72975", "rcs:study_agent", "STUDY"):
            sim.add_sender(address, service=service)
        sim.add_sender("+16505550111")  # another study's
        # An alphanumeric sender only sends: nobody can write to it.
        assert opened().senders() == [SENDER, "+16505550198", "72975", "rcs:study_agent"]
        assert sim.request_counts() == {
            "Services/PhoneNumbers": 1,
            "Services/ShortCodes": 1,
            "Services/ChannelSenders": 1,
        }

    def test_senders_of_a_channel_that_does_not_count_are_left_out(self, sim: TwilioSimulator) -> None:
        service = sim.services[SERVICE_SID]
        sim.add_sender("whatsapp:+16505550198", service=service)
        assert opened().senders() == [SENDER]
        assert opened(channels=["sms", "whatsapp"]).senders() == [SENDER, "whatsapp:+16505550198"]

    def test_configured_senders_need_no_service_and_no_request(self, sim: TwilioSimulator) -> None:
        log = opened(messaging_service_sid=None, senders=["+16505550111", "72975"])
        assert log.senders() == ["+16505550111", "72975"]
        assert sim.request_log == []

    def test_a_configured_number_is_read_on_whatsapp_too_where_that_counts(
        self, sim: TwilioSimulator
    ) -> None:
        own = {"messaging_service_sid": None, "senders": ["+16505550111", "72975"]}
        log = opened(**own, channels=["sms", "rcs", "whatsapp"])
        assert log.senders() == ["+16505550111", "whatsapp:+16505550111", "72975"]
        sim.add_messages([Message("whatsapp:" + PAT, "whatsapp:+16505550111", "STOP", NOON)])
        assert [len(read(log, sender)) for sender in log.senders()] == [0, 1, 0]

    def test_an_address_that_is_configured_in_both_forms_is_read_once(self, sim: TwilioSimulator) -> None:
        both = ["+16505550111", "whatsapp:+16505550111"]
        log = opened(messaging_service_sid=None, senders=both, channels=["whatsapp"])
        assert log.senders() == both

    def test_a_sender_that_is_configured_and_in_the_service_is_read_once(self, sim: TwilioSimulator) -> None:
        assert opened(senders=[SENDER]).senders() == [SENDER]

    def test_more_senders_than_fit_on_a_page_are_all_found(
        self, sim: TwilioSimulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service_senders, "PAGE_SIZE", 3)
        for number in range(10):
            sim.add_sender(f"+165055502{number:02d}", service=sim.services[SERVICE_SID])
        assert len(opened().senders()) == 11
        assert sim.request_counts()["Services/PhoneNumbers"] == 4

    def test_an_account_without_channel_senders_is_read_all_the_same(
        self, sim: TwilioSimulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Older accounts may lack the resource; the numbers do not depend on it.
        log = opened()
        real = log.client.messaging.v1.services

        def without(service_sid: str) -> Any:
            service = real(service_sid)
            monkeypatch.setattr(service, "_channel_senders", real("MG" + "f" * 32).channel_senders)
            return service

        monkeypatch.setattr(log.client.messaging.v1, "_services", without)
        assert log.senders() == [SENDER]


class TestTroubles:
    @pytest.fixture(autouse=True)
    def _no_pauses(self, naps: list[float]) -> None:
        self.naps = naps

    @pytest.mark.parametrize("fault", ["429", "503", "500", "reset", "truncated"])
    def test_a_request_is_tried_five_times_at_growing_pauses(self, sim: TwilioSimulator, fault: str) -> None:
        sim.add_messages(stops(1))
        sim.fail(fault, resource="Messages", times=4)
        assert len(read(opened())) == 1
        assert len(sim.requests_to("Messages")) == 5
        assert len(self.naps) == 4
        assert self.naps[3] > self.naps[0]

    @pytest.mark.parametrize("fault", ["429", "503", "500", "reset", "truncated"])
    def test_then_it_is_given_up_until_the_next_run(self, sim: TwilioSimulator, fault: str) -> None:
        sim.fail(fault, resource="Messages", times=None)
        with pytest.raises(TwilioUnavailable):
            read(opened())
        assert len(sim.requests_to("Messages")) == 5

    def test_the_list_of_senders_is_tried_again_too(self, sim: TwilioSimulator) -> None:
        sim.fail("503", resource="Services/PhoneNumbers", times=2)
        assert opened().senders() == [SENDER]

    def test_a_silent_twilio_is_not_waited_for_for_ever(
        self, sim: TwilioSimulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.twilio.client.TWILIO_TIMEOUT_SECONDS", 0.2)
        sim.fail("hang", resource="Messages", times=1, seconds=5)
        assert read(opened()) == []
        assert len(sim.requests_to("Messages")) == 2

    def test_no_failure_shows_a_number_a_token_or_an_address(self, sim: TwilioSimulator) -> None:
        sim.fail("503", resource="Messages", times=None)
        with pytest.raises(TwilioUnavailable) as caught:
            read(opened())
        assert re.fullmatch(r"twilio_server_error: status 503", str(caught.value))
