"""The monthly summary: what it counts, when it is mailed, and how it looks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from email.message import EmailMessage
from email.utils import parseaddr
from functools import partial
from typing import Any

import pytest
import time_machine

from shared.domain.months import Month
from shared.errors import MailDeferred, MailRejected
from shared.ledger import keys
from shared.ledger.projects.nights import Night, NightOutcome, Nights
from shared.messaging.tasks import TaskName
from tests.builders import at
from tests.fakes import Study, command_line, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.steps.monthly_summary import send_due_summaries, summarise

pytestmark = pytest.mark.usefixtures("naps")
OCTOBER = Month(2026, 10)


@pytest.fixture
def asthma() -> Any:
    """A study in Los Angeles with some changes in October 2026, seen in November."""
    project = classic_study()
    enrol(project, 9)
    with time_machine.travel(at("2026-10-01T12:00"), tick=False) as clock:
        made = study(project, title="Asthma & sleep study", summary="monthly")
        story = [("2026-10-02T10:00", 1, "STOP"), ("2026-10-09T10:00", 2, "STOP"), ("2026-10-09T10:05", 3, "STOP"),
                 ("2026-11-01T06:30", 4, "STOP"), ("2026-11-01T07:30", 5, "STOP")]  # fmt: skip
        for moment, participant, change in story:
            clock.move_to(at(moment))
            text(made, participant, change)
        clock.move_to(at("2026-11-05T12:00"))
        yield made


def text(asthma: Study, participant: int, change: str) -> None:
    """A text that is written at once."""
    asthma.clock.ahead = timedelta()
    asthma.text(fictional_phone(participant), change, when=datetime.now().astimezone())
    asthma.work()


def night(asthma: Study, day: str, outcome: NightOutcome, texts: int = 0) -> None:
    made = Night(outcome=outcome, ended_at=at(f"{day}T10:00"), texts_delivered=texts)
    Nights(asthma.redis).record("asthma", date.fromisoformat(day), made)


class TestCounts:
    def test_a_month_is_that_of_the_studys_time_zone(self, asthma: Study) -> None:
        found = summarise("asthma", OCTOBER, asthma.services)
        assert (found.opt_outs, found.opt_ins, found.not_saved) == (4, 0, 0)
        assert summarise("asthma", OCTOBER.following, asthma.services).opt_outs == 1
        assert found.opted_out_now == 5

    def test_weeks_add_up_to_the_month(self, asthma: Study) -> None:
        weeks = summarise("asthma", OCTOBER, asthma.services).weeks
        assert [week.days for week in weeks] == ["1-7", "8-14", "15-21", "22-28", "29-31"]
        assert [week.opt_outs for week in weeks] == [1, 2, 0, 0, 1]

    def test_the_median_is_that_of_texts(self, asthma: Study) -> None:
        assert summarise("asthma", OCTOBER, asthma.services).median_seconds == pytest.approx(1.1, abs=1)
        assert summarise("asthma", OCTOBER.previous, asthma.services).median_seconds is None

    def test_nights_count_from_the_first_known_one(self, asthma: Study) -> None:
        assert summarise("asthma", OCTOBER, asthma.services).nights == 0
        night(asthma, "2026-10-20", NightOutcome.PROVED)
        night(asthma, "2026-10-21", NightOutcome.PARTLY_BLIND, texts=3)
        night(asthma, "2026-10-23", NightOutcome.FAILED)
        night(asthma, "2026-11-02", NightOutcome.PROVED, texts=9)
        found = summarise("asthma", OCTOBER, asthma.services)
        assert (found.nights_proved, found.nights, found.texts_after_opt_outs) == (1, 12, 3)
        found = summarise("asthma", OCTOBER.following, asthma.services)
        assert (found.nights_proved, found.nights) == (1, 4)

    def test_a_replay_does_not_move_an_event_to_another_month(self, asthma: Study) -> None:
        entries = list(asthma.ledger.entries("asthma"))
        asthma.ledger.reopen("asthma", entries[-1].event_id, now=asthma.clock())
        asthma.published(TaskName.LOOKUP, "asthma", entries[-1].event_id)
        asthma.work()
        found = summarise("asthma", OCTOBER, asthma.services)
        assert found.opt_outs + found.not_saved == 3  # the replayed one was written already
        assert summarise("asthma", OCTOBER.following, asthma.services).opt_outs == 1


class TestMail:
    def after(self, asthma: Study, moment: str) -> list[EmailMessage]:
        """The summaries that a sweep at that time mails."""
        with time_machine.travel(at(moment), tick=False):
            asthma.clock.ahead = timedelta()
            asthma.redis.delete(keys.queued("summary:asthma"))
            asthma.mailer.sent.clear()
            send_due_summaries(asthma.services)
            return list(asthma.mailer.sent)

    def test_it_comes_once_on_the_first_in_the_morning(self, asthma: Study) -> None:
        assert self.after(asthma, "2026-11-05T20:00") == []
        assert self.after(asthma, "2026-12-01T14:59") == []  # 06:59 in Los Angeles
        [message] = self.after(asthma, "2026-12-01T15:01")
        assert message["Subject"] == "[Asthma & sleep study] Opt-outs in November 2026: 1"
        assert parseaddr(message["From"]) == ("Asthma & sleep study", "optout-bridge@example.edu")
        assert self.after(asthma, "2026-12-01T16:00") == []
        assert self.after(asthma, "2026-12-20T16:00") == []
        assert len(self.after(asthma, "2027-01-02T16:00")) == 1

    def test_a_mail_server_that_is_away_is_tried_again(self, asthma: Study) -> None:
        self.after(asthma, "2026-11-05T20:00")
        asthma.mailer.errors.append(MailDeferred("smtp_unreachable", ""))
        assert self.after(asthma, "2026-12-01T16:00") == []
        assert len(self.after(asthma, "2026-12-01T16:20")) == 1

    def test_a_rejected_one_is_counted_and_not_tried_for_ever(self, asthma: Study) -> None:
        self.after(asthma, "2026-11-05T20:00")
        asthma.mailer.errors.append(MailRejected("smtp_rejected", "code 550"))
        assert self.after(asthma, "2026-12-01T16:00") == []
        assert self.after(asthma, "2026-12-01T17:00") == []
        assert asthma.redis.hget(keys.METRICS, "mails|asthma|summary|refused") == "1"

    def test_without_the_key_there_is_none(self) -> None:
        asthma = study()
        assert self.after(asthma, "2026-11-05T20:00") == []
        assert self.after(asthma, "2026-12-01T16:00") == []

    def test_both_parts_show_the_numbers_and_a_chart_without_images(self, asthma: Study) -> None:
        self.after(asthma, "2026-10-05T20:00")
        [message] = self.after(asthma, "2026-11-01T17:00")
        plain, html = (str(part.get_content()) for part in message.iter_parts())
        for part in (plain, html):
            assert "October 2026" in part
            assert "nothing" in part
            assert fictional_phone(1)[2:] not in part
        assert re.search(r"^8-14 +o{40} 2$", plain, re.MULTILINE)
        assert max(map(len, plain.splitlines())) <= 90
        assert re.search(r'<td width="100%" bgcolor="#b54708".*?2 opt-outs', html)
        assert not re.search(r"<(img|svg|script|link)|url\(|https?:", html)
        assert "Asthma &amp; sleep study" in html

    def test_what_needs_somebody_is_said(self, asthma: Study) -> None:
        asthma.redis.zadd(keys.reviews("asthma"), {"SM1": 1})
        self.after(asthma, "2026-10-05T20:00")
        [message] = self.after(asthma, "2026-11-01T17:00")
        assert message["Subject"].endswith(", needs attention")
        assert "optout review --project asthma" in str(message.get_body(("plain",)).get_content())  # type: ignore[union-attr]


class TestCommand:
    @pytest.fixture
    def run(self, asthma: Study, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
        return partial(command_line(asthma, monkeypatch), "summary", "--project", "asthma")

    def test_it_prints_the_last_month_or_another_one(self, run: Callable[..., Any]) -> None:
        assert "October 2026" in run().stdout
        assert "November 2026" in run("--month", "2026-11").stdout

    def test_json_has_the_numbers(self, run: Callable[..., Any]) -> None:
        found = json.loads(run("--month", "2026-10", "--json").stdout)
        assert (found["project"], found["month"], found["opt_outs"]) == ("asthma", "2026-10", 4)

    def test_html_is_a_page(self, run: Callable[..., Any]) -> None:
        assert run("--html").stdout.startswith("<!doctype html>")

    @pytest.mark.parametrize("month", ["2026", "2026-13", "10-2026", "October", "2026-1"])
    def test_another_word_is_no_month(self, run: Callable[..., Any], month: str) -> None:
        assert run("--month", month).exit_code == 2


@pytest.mark.parametrize(
    ("month", "days", "following"),
    [("2026-12", 31, "2027-01"), ("2028-02", 29, "2028-03"), ("2026-02", 28, "2026-03")],
)
def test_months_follow_each_other(month: str, days: int, following: str) -> None:
    parsed = Month.parse(month)
    assert len(parsed.days) == days
    assert str(parsed.following) == following
    assert parsed.following.previous == parsed
