"""Reading messages as opt-out events: which count, whose they are, and when; messages as twilio-python makes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
import requests
from structlog.testing import capture_logs
from twilio.base.exceptions import TwilioException, TwilioRestException
from twilio.base.version import Version
from twilio.http.response import Response
from twilio.rest import Client
from twilio.rest.api.v2010.account.message import MessageInstance, MessagePage

from shared.config import Project
from shared.config.keywords import keywords_of
from shared.domain.events import Change, OptOutEvent, Source
from shared.errors import TwilioRejected, TwilioUnavailable
from tests.builders import config, hashed, project_table, sid
from tests.simulators.twilio import ACCOUNT_SID, SENDER
from worker.twilio.client import translate_errors
from worker.twilio.message_log import MessageLog

PAT = "+16505550100"
SINCE = datetime(2026, 5, 1, tzinfo=UTC)
BEFORE = "Thu, 30 Apr 2026 23:59:59 +0000"


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
    own = project(**changes)
    log = MessageLog("asthma", own, client(*messages), hashed, keywords_of(own))
    return [event for events in log.pages(SENDER, SINCE) for event in events], log


def read_blocked(*messages: MessageInstance, **changes: Any) -> tuple[list[OptOutEvent], MessageLog]:
    """The events of a page of the study's own texts."""
    own = project(**changes)
    log = MessageLog("asthma", own, client(*messages), hashed, keywords_of(own))
    return [event for events, _ in log.sent_pages(SENDER, SINCE) for event in events], log


class Page(list[MessageInstance]):
    """A page of messages, and the number of the next one."""

    next_page_url: int | None = None


class Messages:
    """Messages in the order in which Twilio shows them. Its filter leaves out what has no date_sent."""

    def __init__(self, *messages: MessageInstance, size: int = 1000) -> None:
        self._messages = messages
        self._size = size
        self._shown: list[MessageInstance] = []
        self.asked: list[str] = []

    def page(self, *, date_sent_after: datetime | None = None, **_: Any) -> Page:
        self.asked.append("all" if date_sent_after is None else "sent")
        self._shown = [
            message
            for message in self._messages
            if date_sent_after is None or (message.date_sent and message.date_sent >= date_sent_after)
        ]
        return self.get_page(0)

    def get_page(self, start: int) -> Page:
        page = Page(self._shown[start : start + self._size])
        page.next_page_url = start + self._size if start + self._size < len(self._shown) else None
        return page


def client(*messages: MessageInstance) -> Any:
    return SimpleNamespace(messages=Messages(*messages))


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
        scope=f"number:{hashed(SENDER)}",
    )
    assert (log.counts.messages, log.counts.pages) == (1, 1)


def test_a_message_that_is_not_yet_handed_on_has_the_time_of_its_creation() -> None:
    (event,), _ = read(message(date_sent=None, status="receiving"))
    assert event.occurred_at == datetime(2026, 5, 4, 10, 20, 29, tzinfo=UTC)


def in_pages_of_two(*messages: MessageInstance) -> tuple[list[str], Messages, MessageLog]:
    """The SIDs of the events that are found, and what was asked for."""
    shown = Messages(*messages, size=2)
    own = project()
    log = MessageLog("asthma", own, cast(Client, SimpleNamespace(messages=shown)), hashed, keywords_of(own))
    return [event.event_id for events in log.pages(SENDER, SINCE) for event in events], shown, log


def test_old_messages_that_were_never_sent_on_may_stand_before_all_others() -> None:
    """Where Twilio sorts them in, it does not say; each change is found all the same."""
    unsent = [message(date_sent=None, date_created=BEFORE) for _ in range(4)]
    stop, old = message(), message(date_sent=BEFORE, date_created=BEFORE)
    found, shown, _ = in_pages_of_two(*unsent, stop, old, old)
    assert (found, shown.asked) == ([stop.sid], ["all", "sent"])


def test_newer_messages_that_were_never_sent_on_may_stand_before_all_others() -> None:
    unsent = [message(date_sent=None) for _ in range(3)]
    stop, old = message(), message(date_sent=BEFORE, date_created=BEFORE)
    found, shown, log = in_pages_of_two(*unsent, stop, old, old, old, old)
    assert found == [each.sid for each in [*unsent, stop]]
    assert (shown.asked, log.counts.pages) == (["all"], 3)


def test_a_page_of_messages_without_any_date_ends_nothing() -> None:
    undated = [message(date_sent=None, date_created=None) for _ in range(2)]
    stop = message()
    found, _, log = in_pages_of_two(*undated, stop)
    assert (found, log.counts.incomplete, log.counts.messages) == ([stop.sid], 2, 3)


def test_what_has_no_date_or_no_sid_is_counted_and_logged_without_anything_personal() -> None:
    odd = [
        message(date_sent=None, date_created=None),
        message(date_sent="?", date_created=""),
        message(sid=None),
    ]
    with capture_logs() as lines:
        events, log = read(*odd, message(sid=None, direction="outbound-api"), message())
    assert (len(events), log.counts.incomplete) == (1, 4)
    assert lines == [
        {"event": "messages_incomplete", "log_level": "warning", "project": "asthma", "number": 4}
    ]


FIELDS = [
    "sid",
    "direction",
    "status",
    "from",
    "to",
    "body",
    "num_media",
    "date_created",
    "date_sent",
    "error_code",
]


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_that_is_null_ends_the_run(field: str) -> None:
    """To twilio-python any field may be. What can still be told is: by the other date, or the other messages."""
    stop, refused = message(), message(direction="outbound-api", to=PAT, error_code=21610)
    for reading, whole, odd in (
        (read, stop, message(**{field: None})),
        (read_blocked, refused, message(**{"direction": "outbound-api", "error_code": 21610, field: None})),
    ):
        events, _ = reading(odd, whole)
        assert events[-1].event_id == whole.sid


@pytest.mark.parametrize("code", ["", "none", 0])
def test_an_error_code_that_is_no_number_is_another_failure(code: Any) -> None:
    assert read_blocked(message(direction="outbound-api", to=PAT, error_code=code))[0] == []


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


PAGES = [
    "<html>", "null", "[]", '"text"', "{}", '{"messages": null}', '{"meta": null}', '{"meta": {"key": null}}',
    '{"meta": {"key": "messages"}}', '{"meta": {"key": "messages"}, "messages": null}', '{"messages": [null]}',
]  # fmt: skip


@pytest.mark.parametrize("text", PAGES)
def test_a_page_of_another_form_is_no_answer(text: str) -> None:
    with pytest.raises(TwilioUnavailable), translate_errors():
        list(MessagePage(cast(Version, None), Response(200, text), {"account_sid": ACCOUNT_SID}))


def fetching_failed(answered: int, **more: Any) -> TwilioException:
    """What it raises for a single resource, where the answer is one of RFC 9457."""
    about = {"type": "https://example.com/20003", "title": PAT, "detail": PAT}
    answer = about | {"status": answered, "code": 20003} | more
    return Version.exception("GET", "/x", Response(answered, json.dumps(answer)), "Unable to fetch record")


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (fetching_failed(400), TwilioRejected, "twilio_rejected: status 400, code 20003"),
        (fetching_failed(401), TwilioRejected, "twilio_token_rejected: status 401, code 20003"),
        (fetching_failed(403), TwilioRejected, "twilio_rejected: status 403, code 20003"),
        (fetching_failed(404), TwilioRejected, "twilio_rejected: status 404, code 20003"),
        (fetching_failed(429), TwilioUnavailable, "twilio_server_error: status 429, code 20003"),
        (fetching_failed(503), TwilioUnavailable, "twilio_server_error: status 503, code 20003"),
        # Both come from the body as they stand there.
        (fetching_failed(401, status="401"), TwilioRejected, "twilio_token_rejected: status 401, code 20003"),
        (fetching_failed(401, status=None), TwilioUnavailable, "twilio_server_error: status 0, code 20003"),
        (fetching_failed(404, code=PAT), TwilioRejected, "twilio_rejected: status 404"),
        (listing_failed(429), TwilioUnavailable, "twilio_server_error: status 429"),
        (listing_failed(503), TwilioUnavailable, "twilio_server_error: status 503"),
        (listing_failed(401), TwilioRejected, "twilio_token_rejected: status 401"),
        (listing_failed(404), TwilioRejected, "twilio_rejected: status 404"),
        (
            TwilioException("Page Records can not be deserialized"),
            TwilioUnavailable,
            "twilio_server_error: status 0",
        ),
        (
            TwilioRestException(400, "/x", PAT, 20001),
            TwilioRejected,
            "twilio_rejected: status 400, code 20001",
        ),
        (requests.ConnectionError(PAT), TwilioUnavailable, "twilio_unreachable: ConnectionError"),
        (requests.ReadTimeout(PAT), TwilioUnavailable, "twilio_unreachable: timed out after 30 s"),
        (ValueError(PAT), TwilioUnavailable, "twilio_strange_answer: not JSON"),
        (KeyError(PAT), TwilioUnavailable, "twilio_strange_answer: not of the described form"),
    ],
)
def test_what_twilio_python_raises_is_sorted_and_its_text_left_out(
    error: Exception, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind) as caught, translate_errors():
        raise error
    assert str(caught.value) == told
    assert caught.value.__suppress_context__
