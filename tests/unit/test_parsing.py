"""What Twilio sent, read into a message."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import MultiDict

from shared.errors import Malformed
from shared.events import Source
from tests.builders import at, batch, cloud_event, inbound_form, repeated
from web.parsing import message_of_form, messages_of_events


def form(**changes: str | None) -> MultiDict[str, str]:
    return MultiDict(inbound_form(**changes))


def reason_of_form(pairs: Any) -> str:
    with pytest.raises(Malformed) as caught:
        message_of_form(MultiDict(pairs))
    return caught.value.reason


def reason_of_events(body: bytes) -> str:
    with pytest.raises(Malformed) as caught:
        list(messages_of_events(body))
    return caught.value.reason


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
        [message] = messages_of_events(batch(event))
        data = event["data"]
        assert (message.message_sid, message.account_sid) == (data["messageSid"], data["accountSid"])
        assert (message.sender, message.recipient, message.body) == (data["from"], data["to"], "STOP")
        assert (message.opt_out_type, message.source) == ("STOP", Source.EVENT_STREAM)
        assert message.occurred_at == at("2026-05-04T10:20:30.456+00:00")

    def test_the_envelope_s_time_stands_in_for_a_missing_timestamp(self) -> None:
        [message] = messages_of_events(batch(cloud_event(timestamp=None)))
        assert message.occurred_at == at("2026-05-04T10:20:31+00:00")

    def test_a_time_without_zone_is_utc_and_one_with_a_zone_is_kept(self) -> None:
        for text in ("2026-05-04T10:20:30", "2026-05-04T12:20:30+02:00"):
            [message] = messages_of_events(batch(cloud_event(timestamp=text)))
            assert message.occurred_at == at("2026-05-04T10:20:30+00:00")

    def test_an_empty_batch_has_no_message(self) -> None:
        assert list(messages_of_events(b"[]")) == []

    def test_events_of_other_types_are_passed_over_whatever_they_hold(self) -> None:
        others: list[dict[str, object]] = [
            {"type": "com.twilio.eventstreams.test-event"},
            {"type": 7},
            {},
            {"data": None},
        ]
        [message] = messages_of_events(batch(*others, cloud_event()))
        assert message.body == "STOP"

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
            ({"messageSid": 7}, "messageSid_is_no_text"),
            ({"accountSid": ""}, "no_sid"),
            ({"from": None}, "no_from"),
            ({"to": " "}, "no_to"),
            ({"body": ["STOP"]}, "body_is_no_text"),
            ({"timestamp": "yesterday"}, "no_timestamp"),
            ({"timestamp": 1777890030}, "timestamp_is_no_text"),
        ],
    )
    def test_an_event_that_lacks_what_makes_it_a_message_is_malformed(
        self, changes: dict[str, Any], reason: str
    ) -> None:
        assert reason_of_events(batch(cloud_event(**changes))) == reason

    def test_an_event_without_data_is_malformed(self) -> None:
        assert reason_of_events(batch({**cloud_event(), "data": "x"})) == "event_without_data"

    def test_an_event_without_any_time_is_malformed(self) -> None:
        assert reason_of_events(batch({**cloud_event(timestamp=None), "time": None})) == "no_timestamp"


_json = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(cloud_event()["data"])), _json))
def test_no_event_whatever_raises_anything_but_malformed(changes: dict[str, Any]) -> None:
    event = cloud_event()
    event["data"] |= changes
    try:
        [message] = messages_of_events(json.dumps([event]).encode())
    except Malformed:
        return
    assert message.sender.strip()
