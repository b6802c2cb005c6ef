"""Reading messages as opt-out events: which count, whose they are, and when; messages as twilio-python makes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from twilio.base.exceptions import TwilioException, TwilioRestException
from twilio.base.version import Version
from twilio.http.response import Response
from twilio.rest.api.v2010.account.message import MessageInstance

from shared.config import Project
from shared.errors import TwilioRefused, TwilioUnavailable
from shared.events import Change, OptOutEvent, Source
from tests.builders import config, hashed, project_table, sid
from tests.simulators.twilio import ACCOUNT_SID, SENDER
from worker.message_log import MessageLog
from worker.twilio import sorted_failures

PAT = "+16505550100"


def project(**changes: Any) -> Project:
    return config({"asthma": project_table(**changes)}).projects["asthma"]


def message(**changes: Any) -> MessageInstance:
    """A message as twilio-python makes it of Twilio's JSON."""
    payload = {
        "sid": sid(),
        "direction": "inbound",
        "status": "received",
        "from": PAT,
        "to": SENDER,
        "body": "STOP",
        "num_media": "0",
        "date_created": "Mon, 04 May 2026 10:20:29 +0000",
        "date_sent": "Mon, 04 May 2026 10:20:30 +0000",
        "error_code": None,
    }
    return MessageInstance(SimpleNamespace(), payload | changes, ACCOUNT_SID)


def read(*messages: MessageInstance, **changes: Any) -> tuple[list[OptOutEvent], MessageLog]:
    """The events of a page of messages that came to a sender."""
    log = MessageLog("asthma", project(**changes), client(*messages), hashed)
    return [event for events in log.pages(SENDER, datetime.now(UTC)) for event in events], log


def read_blocked(*messages: MessageInstance, **changes: Any) -> tuple[list[OptOutEvent], MessageLog]:
    """The events of a page of the study's own texts."""
    log = MessageLog("asthma", project(**changes), client(*messages), hashed)
    return [event for events in log.blocked_pages(SENDER, datetime.now(UTC)) for event in events], log


class OnePage(list[MessageInstance]):
    next_page_url = None


def client(*messages: MessageInstance) -> Any:
    return SimpleNamespace(messages=SimpleNamespace(page=lambda **_: OnePage(messages)))


def test_a_stop_becomes_an_event_with_twilios_time() -> None:
    stop = message()
    (event,), log = read(stop)
    assert event == OptOutEvent(
        project="asthma",
        event_id=str(stop.sid),
        change=Change.STOP,
        occurred_at=datetime(2026, 5, 4, 10, 20, 30, tzinfo=UTC),
        source=Source.MESSAGE_LOG,
        phone_hash=hashed(PAT),
    )
    assert (log.counts.messages, log.counts.pages) == (1, 1)


def test_a_message_that_is_not_yet_handed_on_has_the_time_of_its_creation() -> None:
    (event,), _ = read(message(date_sent=None, status="receiving"))
    assert event.occurred_at == datetime(2026, 5, 4, 10, 20, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"from": "rcs:+16505550100"}, PAT),
        ({"from": "72975"}, ""),
        ({"from": "anonymous"}, ""),
        ({"from": None}, ""),
    ],
)
def test_the_number_is_that_of_the_sender_if_it_is_one(changes: dict[str, Any], number: str) -> None:
    (event,), _ = read(message(**changes))
    assert event.phone_hash == (hashed(number) if number else "")


@pytest.mark.parametrize(
    "changes",
    [
        {"direction": "outbound-api"},
        {"direction": "outbound-reply"},
        {"body": "thanks"},
        {"body": None},
        {"from": "whatsapp:+16505550100"},
        {"from": "messenger:123"},
    ],
)
def test_what_is_no_change_of_a_participant_is_passed_over(changes: dict[str, Any]) -> None:
    assert read(message(**changes))[0] == []


@pytest.mark.parametrize(("media", "hidden"), [("0", 1), ("1", 0), (None, 1)])
def test_a_body_that_is_missing_is_counted_unless_there_is_a_picture(media: str | None, hidden: int) -> None:
    _, log = read(message(body="", num_media=media))
    assert (log.counts.inbound_texts, log.counts.redacted_bodies) == (hidden, hidden)


def test_a_redacted_number_is_counted_and_makes_no_event() -> None:
    events, log = read(message(**{"from": "+1650555XXXX"}))
    assert (events, log.counts.redacted_numbers) == ([], 1)


def test_a_redacted_number_of_a_text_without_a_keyword_does_not_matter() -> None:
    _, log = read(message(**{"from": "+1650555XXXX", "body": "thanks"}))
    assert log.counts.redacted_numbers == 0


def test_a_refused_text_becomes_a_stop_of_its_recipient() -> None:
    refused = message(direction="outbound-api", to=PAT, **{"from": SENDER}, error_code=21610, body="hello")
    (event,), _ = read_blocked(refused)
    assert (event.change, event.source, event.phone_hash) == (
        Change.STOP,
        Source.BLOCKED_MESSAGE,
        hashed(PAT),
    )


@pytest.mark.parametrize(
    "changes", [{"error_code": None}, {"error_code": 30003}, {"to": "whatsapp:+16505550100"}]
)
def test_another_failure_and_another_channel_make_no_event(changes: dict[str, Any]) -> None:
    text = {"direction": "outbound-api", "to": PAT, "error_code": 21610} | changes
    assert read_blocked(message(**text))[0] == []


def test_a_redacted_recipient_is_counted() -> None:
    events, log = read_blocked(message(direction="outbound-api", to="+1650555XXXX", error_code=21610))
    assert (events, log.counts.redacted_numbers) == ([], 1)


def listing_failed(status: int) -> TwilioException:
    """What twilio-python raises for a list page: a plain exception that repeats the answer."""
    return TwilioException("Unable to fetch page", Response(status, f"from {PAT}"))


def fetching_failed(answered: int, **more: Any) -> TwilioException:
    """What it raises for a single resource, where the answer is one of RFC 9457."""
    about = {"type": "https://example.com/20003", "title": PAT, "detail": PAT}
    answer = about | {"status": answered, "code": 20003} | more
    return Version.exception("GET", "/x", Response(answered, json.dumps(answer)), "Unable to fetch record")


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (fetching_failed(400), TwilioRefused, "twilio_refused: status 400, code 20003"),
        (fetching_failed(401), TwilioRefused, "twilio_token_refused: status 401, code 20003"),
        (fetching_failed(403), TwilioRefused, "twilio_refused: status 403, code 20003"),
        (fetching_failed(404), TwilioRefused, "twilio_refused: status 404, code 20003"),
        (fetching_failed(429), TwilioUnavailable, "twilio_server_error: status 429, code 20003"),
        (fetching_failed(503), TwilioUnavailable, "twilio_server_error: status 503, code 20003"),
        # Both come from the body as they stand there.
        (fetching_failed(401, status="401"), TwilioRefused, "twilio_token_refused: status 401, code 20003"),
        (fetching_failed(401, status=None), TwilioUnavailable, "twilio_server_error: status 0, code 20003"),
        (fetching_failed(404, code=PAT), TwilioRefused, "twilio_refused: status 404"),
        (listing_failed(429), TwilioUnavailable, "twilio_server_error: status 429"),
        (listing_failed(503), TwilioUnavailable, "twilio_server_error: status 503"),
        (listing_failed(401), TwilioRefused, "twilio_token_refused: status 401"),
        (listing_failed(404), TwilioRefused, "twilio_refused: status 404"),
        (
            TwilioException("Page Records can not be deserialized"),
            TwilioUnavailable,
            "twilio_server_error: status 0",
        ),
        (TwilioRestException(400, "/x", PAT, 20001), TwilioRefused, "twilio_refused: status 400, code 20001"),
        (requests.ConnectionError(PAT), TwilioUnavailable, "twilio_unreachable: ConnectionError"),
        (requests.ReadTimeout(PAT), TwilioUnavailable, "twilio_unreachable: ReadTimeout"),
        (ValueError(PAT), TwilioUnavailable, "twilio_strange_answer: not JSON"),
    ],
)
def test_what_twilio_python_raises_is_sorted_and_its_text_left_out(
    error: Exception, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind) as caught, sorted_failures():
        raise error
    assert str(caught.value) == told
    assert caught.value.__suppress_context__
