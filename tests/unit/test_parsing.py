"""What Twilio sent, read into a message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict

from shared.domain.events import Source
from shared.errors import Malformed
from tests.builders import at, batch, cloud_event, inbound_form, repeated
from web.twilio.parsing import InboundMessage, message_of_form, messages_of_events


def form(**changes: str | None) -> MultiDict[str, str]:
    return MultiDict(inbound_form(**changes))


def reason_of_form(pairs: Any) -> str:
    with pytest.raises(Malformed) as caught:
        message_of_form(MultiDict(pairs))
    return caught.value.reason


def reason_of_events(body: bytes) -> str:
    with pytest.raises(Malformed) as caught:
        messages_of_events(body)
    return caught.value.reason


def one_event(**changes: Any) -> InboundMessage:
    [message], refused = messages_of_events(batch(cloud_event(**changes)))
    assert refused == []
    return message


def reasons_of(*events: dict[str, Any]) -> list[str]:
    """What is wrong with the events of a batch of which none can be read."""
    messages, refused = messages_of_events(batch(*events))
    assert messages == []
    return [error.reason for error in refused]


class TestForms:
    def test_every_part_that_matters_is_read(self) -> None:
        sent = inbound_form()
        message = message_of_form(MultiDict(sent))
        assert (message.message_sid, message.account_sid) == (sent["MessageSid"], sent["AccountSid"])
        assert message.messaging_service_sid == sent["MessagingServiceSid"]
        assert (message.sender, message.recipient) == (sent["From"], sent["To"])
        assert (message.body, message.opt_out_type) == ("STOP", "STOP")
        assert (message.source, message.occurred_at) == (Source.WEBHOOK, None)

    def test_what_is_not_always_sent_may_be_missing(self) -> None:
        message = message_of_form(form(MessagingServiceSid=None, OptOutType=None, Body=None))
        assert (message.messaging_service_sid, message.opt_out_type, message.body) == ("", "", "")

    @pytest.mark.parametrize(
        ("name", "reason"),
        [("MessageSid", "no_sid"), ("AccountSid", "no_sid"), ("From", "no_From"), ("To", "no_To")],
    )
    @pytest.mark.parametrize("value", [None, "", " "])
    def test_what_is_always_sent_must_be_there(self, name: str, reason: str, value: str | None) -> None:
        assert reason_of_form(form(**{name: value})) == reason

    @pytest.mark.parametrize(
        "name", ["MessageSid", "AccountSid", "MessagingServiceSid", "From", "To", "Body", "OptOutType"]
    )
    def test_a_repeated_parameter_is_refused_rather_than_guessed(self, name: str) -> None:
        assert reason_of_form(repeated(inbound_form(), **{name: ["+16505550100", "+16505550101"]})) == (
            f"repeated_{name}"
        )

    def test_a_repeated_parameter_that_is_not_read_does_not_matter(self) -> None:
        assert message_of_form(MultiDict(repeated(inbound_form(), MediaUrl0=["a", "b"]))).body == "STOP"

    def test_the_opt_out_type_is_read_in_any_case(self) -> None:
        assert message_of_form(form(OptOutType="stop")).opt_out_type == "STOP"

    def test_blanks_around_addresses_are_dropped_and_those_of_the_body_kept(self) -> None:
        message = message_of_form(form(From=" +16505550100", Body=" STOP "))
        assert (message.sender, message.body) == ("+16505550100", " STOP ")

    def test_the_message_never_shows_its_content(self) -> None:
        shown = repr(message_of_form(form(Body="my name is Pat")))
        assert "Pat" not in shown
        assert "6505550100" not in shown


class TestEvents:
    def test_every_part_that_matters_is_read(self) -> None:
        event = cloud_event()
        [message], _ = messages_of_events(batch(event))
        data = event["data"]
        assert (message.message_sid, message.account_sid) == (data["messageSid"], data["accountSid"])
        assert (message.sender, message.recipient, message.body) == (data["from"], data["to"], "STOP")
        assert (message.opt_out_type, message.source) == ("STOP", Source.EVENT_STREAM)
        assert message.occurred_at == at("2026-05-04T10:20:30.456+00:00")

    def test_the_envelope_s_time_stands_in_for_a_missing_timestamp(self) -> None:
        assert one_event(timestamp=None).occurred_at == at("2026-05-04T10:20:31+00:00")

    def test_a_time_without_zone_is_utc_and_one_with_a_zone_is_kept(self) -> None:
        for text in ("2026-05-04T10:20:30", "2026-05-04T12:20:30+02:00"):
            assert one_event(timestamp=text).occurred_at == at("2026-05-04T10:20:30+00:00")

    def test_an_empty_batch_has_no_message(self) -> None:
        assert messages_of_events(b"[]") == ([], [])

    def test_events_of_other_types_are_passed_over_whatever_they_hold(self) -> None:
        others: list[dict[str, object]] = [
            {"type": "com.twilio.eventstreams.test-event"},
            {"type": 7},
            {},
            {"data": None},
        ]
        messages, refused = messages_of_events(batch(*others, cloud_event()))
        assert (len(messages), refused) == (1, [])

    def test_a_single_event_without_its_array_is_taken_too(self) -> None:
        [message], _ = messages_of_events(json.dumps(cloud_event()).encode())
        assert message.opt_out_type == "STOP"

    def test_the_words_are_read_whether_twilio_judged_them_or_not(self) -> None:
        for judged in (None, "STOP"):
            assert one_event(optOutType=judged).body == "STOP"

    def test_an_event_that_cannot_be_read_leaves_the_others(self) -> None:
        messages, refused = messages_of_events(batch(cloud_event(to=None), cloud_event()))
        assert (len(messages), [error.reason for error in refused]) == (1, ["no_to"])

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b"", "not_json"),
            (b"[", "not_json"),
            (b"\xff", "not_json"),
            (b"{}", "not_an_array_of_events"),
            (b'"x"', "not_an_array_of_events"),
            (b"null", "not_an_array_of_events"),
            (b"[[]]", "not_an_array_of_events"),
            (b"[null]", "not_an_array_of_events"),
        ],
    )
    def test_what_is_no_batch_is_malformed(self, body: bytes, reason: str) -> None:
        assert reason_of_events(body) == reason

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"messageSid": None}, "no_sid"),
            ({"messageSid": 7}, "messageSid_is_not_text"),
            ({"accountSid": ""}, "no_sid"),
            ({"from": None}, "no_from"),
            ({"to": " "}, "no_to"),
            ({"body": ["STOP"], "optOutType": None}, "body_is_not_text"),
            ({"timestamp": "yesterday"}, "no_timestamp"),
            ({"timestamp": 1777890030}, "timestamp_is_not_text"),
        ],
    )
    def test_an_event_that_lacks_what_makes_it_a_message_is_malformed(
        self, changes: dict[str, Any], reason: str
    ) -> None:
        assert reasons_of(cloud_event(**changes)) == [reason]

    def test_an_event_without_data_is_malformed(self) -> None:
        assert reasons_of({**cloud_event(), "data": "x"}) == ["event_without_data"]

    def test_an_event_without_any_time_is_malformed(self) -> None:
        assert reasons_of({**cloud_event(timestamp=None), "time": None}) == ["no_timestamp"]


_json = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(cloud_event()["data"])), _json))
def test_any_event_whatever_is_read_or_refused(changes: dict[str, Any]) -> None:
    event = cloud_event()
    event["data"] |= changes
    messages, refused = messages_of_events(json.dumps([event]).encode())
    assert len(messages) + len(refused) == 1
    assert all(message.sender.strip() for message in messages)
