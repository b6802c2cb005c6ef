"""What the console's pages show."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from redis.exceptions import ConnectionError as RedisDown

from shared.domain.events import Change, Source, State, milliseconds
from shared.ledger import StaffDecision, keys
from shared.ledger.events.audit_trail import AUDIT_COLUMNS
from shared.ledger.events.staff_actions import StaffAction, note_actions
from shared.ledger.platform.loaded_configurations import Trouble as ConfigurationTrouble
from shared.ledger.platform.loaded_configurations import publish
from shared.ledger.projects.check_results import CheckResult, StoredFinding, store_result
from shared.ledger.projects.nights import Night, NightOutcome, Nights
from tests.simulators.twilio import ACCOUNT_SID
from tests.unit.console.world import Console, review
from web.console.study_views import STUDIES_PER_PAGE


@pytest.fixture
def console() -> Console:
    console = Console()
    console.processes_run()
    return console


def verdict(page: str) -> str:
    [found] = re.findall(r'role="status">.*?<strong>(.*?)</strong>', page, re.DOTALL)
    return str(found).replace("&#39;", "'")


def names(page: str) -> list[str]:
    return re.findall(r'href="/studies/([\w-]+)"', page)


class TestStudies:
    def test_nothing_to_do_is_said_in_words(self, console: Console) -> None:
        assert verdict(console.text("/")) == "All 2 studies are fine."

    def test_a_rejected_token_and_an_unsaved_opt_out_are_on_top_with_what_to_do(
        self, console: Console
    ) -> None:
        problem = {"problem": "redcap_forbidden", "detail": "status 403: no rights", "events_kept": False}
        console.redis.hset(keys.PROBLEMS, "sleep", json.dumps(problem))
        console.event(State.FAILED, project="sleep", reason="redcap_forbidden")
        page = console.text("/")
        assert verdict(page) == (
            "1 of 2 studies needs somebody. sleep: REDCap rejects the token (status 403: no rights); "
            "1 change not saved."
        )
        assert names(page)[0] == "sleep"
        assert "put a new token into the study&#39;s secret" in page
        assert "optout replay --failed --project sleep" in page

    def test_what_was_saved_later_needs_nobody(self, console: Console) -> None:
        console.event(State.FAILED, ago=timedelta(hours=2))
        console.event(State.UPDATED)
        assert verdict(console.text("/")) == "All 2 studies are fine."

    def test_reviews_need_somebody_but_less_than_problems(self, console: Console) -> None:
        review(console)
        console.event(State.FAILED, project="sleep")
        assert names(console.text("/"))[:2] == ["sleep", "asthma"]

    def test_changes_that_wait_for_an_hour_need_somebody(self, console: Console) -> None:
        console.event(None, ago=timedelta(minutes=59))
        assert "fine" in verdict(console.text("/"))
        console.event(None, ago=timedelta(minutes=61), phone="+16505550111")
        assert "asthma: 2 changes wait for REDCap, the oldest since" in verdict(console.text("/"))

    @pytest.mark.parametrize(
        ("hours", "noted", "words"),
        [
            (1, "success", "fine"),
            (26, "success", "no reconciliation since"),
            (1, "failure", "the last reconciliation failed: twilio_unreachable"),
        ],
    )
    def test_a_reconciliation_that_failed_or_is_missing_needs_somebody(
        self, console: Console, hours: int, noted: str, words: str
    ) -> None:
        moment = round((console.now - timedelta(hours=hours)).timestamp() * 1000)
        report = json.dumps({"errors": ["twilio_unreachable"]})
        console.redis.hset(keys.reconciled("asthma"), mapping={f"{noted}_ms": moment, "report": report})
        assert words in verdict(console.text("/"))

    @pytest.mark.parametrize("kind", ["web", "worker", "beat"])
    def test_a_silent_process_is_said(self, console: Console, kind: str) -> None:
        console.redis.hdel(keys.CONFIGURATIONS, f"{kind}|host|1")
        assert f"Platform: {kind} does not run" in verdict(console.text("/"))

    def test_one_of_several_processes_that_is_silent_is_named(self, console: Console) -> None:
        moment = console.now - timedelta(minutes=5)
        publish(console.redis, "worker|c0ffee|9", "abc", now_ms=milliseconds(moment))
        page = verdict(console.text("/platform"))
        since = moment.astimezone(ZoneInfo(console.config.time_zone)).strftime("%Y-%m-%d %H:%M")
        assert f"orker on c0ffee (process 9) has been silent since {since}" in page
        assert "does not run" not in page

    def test_a_row_counts_what_is_opted_out_and_what_changed(self, console: Console) -> None:
        console.event()
        console.event(change=Change.START, source=Source.EVENT_STREAM)
        console.redis.hset(keys.written("asthma"), mapping={"1": "0||x", "2": "0||y"})
        page = console.text("/")
        assert re.search(r"<td data-label=\"Opted out now\">2</td>", page)
        assert "1 opt-out, 1 opt-in" in page

    def test_many_studies_are_shown_in_pages_and_found_by_name(self) -> None:
        console = Console(*(f"study-{number:03d}" for number in range(STUDIES_PER_PAGE + 5)))
        console.processes_run()
        console.event(State.FAILED, project="study-054")
        first, second = names(console.text("/")), names(console.text("/?page=2"))
        assert (len(first), len(second), first[0]) == (STUDIES_PER_PAGE, 5, "study-054")
        assert names(console.text("/?q=StuDy-03")) == [f"study-{number:03d}" for number in range(30, 40)]

    @pytest.mark.parametrize("query", ["?page=0", "?page=-1", "?page=x", "?page=99", "?q=%00", "?q=<script>"])
    def test_strange_addresses_are_answered(self, console: Console, query: str) -> None:
        assert "<script>" not in console.text(f"/{query}")

    def test_a_study_that_is_no_longer_configured_can_still_be_read(self, console: Console) -> None:
        console.redis.hset(keys.PROJECTS, mapping={"asthma": "", "old": "1"})
        assert names(console.text("/"))[-1] == "old"
        assert "no longer configured" in console.text("/studies/old")

    def test_a_deployment_without_redis_says_so(
        self, console: Console, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def down(*_: Any, **__: Any) -> Any:
            raise RedisDown("redis://:secret@host")

        monkeypatch.setattr(console.redis, "hgetall", down)
        answer = console.get("/")
        assert answer.status_code == 503
        assert "Redis does not answer" in answer.text
        assert "secret" not in answer.text


class TestStudy:
    def test_an_unknown_study_is_not_found(self, console: Console) -> None:
        for path in ("", "/events", "/events.csv", "/events/SM1"):
            assert console.get(f"/studies/unknown{path}").status_code == 404

    def test_a_study_without_history_says_so(self, console: Console) -> None:
        page = console.text("/studies/asthma")
        assert verdict(page).startswith("asthma is fine: 0 records show an opt-out")
        for words in (
            "No reconciliation has run yet",
            "No change was written",
            "Nothing waits",
            "has come yet",
        ):
            assert words in page

    def test_the_calendar_names_nights_that_prove_nothing(self, console: Console) -> None:
        nights, today = (
            Nights(console.redis),
            console.now.astimezone(console.config.zone(console.config.projects["asthma"])).date(),
        )
        for ago in (9, 7, 6, 5):
            outcome = {
                9: NightOutcome.PROVED,
                7: NightOutcome.PARTLY_BLIND,
                6: NightOutcome.FAILED,
                5: NightOutcome.OPEN,
            }[ago]
            night = Night(
                outcome=outcome, ended_at=console.now, not_written=3 * (ago == 5),
                hidden=("4 messages are missing",) if ago == 7 else (),
                errors=("twilio_unreachable",) if ago == 6 else (),
            )  # fmt: skip
            nights.record("asthma", today - timedelta(days=ago), night)
        page = console.text("/studies/asthma")
        assert "2 of 9 nights proved" in page
        for words in ("4 messages are missing", "Twilio_unreachable", "3 changes not in REDCap"):
            assert words in page
        assert f"<strong>{today - timedelta(days=8)}: missed.</strong>" in page

    def test_latency_weeks_reviews_and_failures_are_shown(self, console: Console) -> None:
        console.event()
        waiting, failed = (
            review(console, phone="+16505550111"),
            console.event(State.FAILED, phone="+16505550112"),
        )
        page = console.text("/studies/asthma")
        assert "within 2 s" in page
        assert page.count(waiting.event_id) >= 1
        assert page.count(failed.event_id) >= 1
        assert "1 opt-out, 0 opt-ins" in page

    def test_who_opted_out_this_month_is_one_link_away(self, console: Console) -> None:
        event = console.event(ago=timedelta(0))
        console.event(State.ALREADY_CURRENT, ago=timedelta(0), phone="+16505550111")
        [link] = re.findall(r'<dd><a href="([^"]+)">1<', console.text("/studies/asthma"))
        assert re.findall(r"/events/(SM\w+)\"", console.text(link.replace("&amp;", "&"))) == [event.event_id]

    def test_findings_of_the_daily_check_are_shown(self, console: Console) -> None:
        store_result(console.redis, result("asthma", "error"))
        assert "A title." in console.text("/studies/asthma")


def result(scope: str, *severities: str) -> CheckResult:
    from tests.builders import at

    findings = tuple(
        StoredFinding(
            id="an-id", severity=severity, subject=scope or "redis", title="A title", observed="Observed.",
            fix="Fix it.", docs="docs/reference/checks.md#an-id",
        )
        for severity in severities
    )  # fmt: skip
    return CheckResult(
        scope=scope, checked_at=at("2026-11-27T12:00"), findings=findings, passed=(("web", "answers"),)
    )


class TestEvents:
    def ids(self, page: str) -> list[str]:
        return re.findall(r"/events/(SM\w+|staff-\w+)\"", page)

    def test_events_are_listed_newest_first(self, console: Console) -> None:
        old, new = console.event(ago=timedelta(days=2)), console.event()
        assert self.ids(console.text("/studies/asthma/events")) == [new.event_id, old.event_id]

    def test_each_filter_chooses(self, console: Console) -> None:
        stop = console.event(records=("12",), ago=timedelta(days=3))
        start = console.event(change=Change.START, source=Source.EVENT_STREAM, records=("1",))
        failed, waiting = console.event(State.FAILED, ago=timedelta(days=9)), review(console)
        unfinished = console.event(None)
        zone = console.config.zone(console.config.projects["asthma"])
        day = (console.now - timedelta(days=3)).astimezone(zone).date()
        for query, expected in {
            "state=failed": [failed],
            "state=needs_review": [waiting],
            "state=received": [unfinished],
            "change=START": [start],
            "change=unclear": [waiting],
            "record=12": [stop],
            f"since={day}&until={day}": [stop],
            f"until={day - timedelta(days=1)}": [failed],
            "state=failed&change=START": [],
        }.items():
            found = self.ids(console.text(f"/studies/asthma/events?{query}"))
            assert found == [event.event_id for event in expected], query

    @pytest.mark.parametrize(
        "query",
        [
            "state=x",
            "change=x",
            "since=x",
            "until=2026-02-30",
            "below=x",
            "below=-4",
            "below=999999",
            "record=%22",
        ],
    )
    def test_a_filter_that_makes_no_sense_is_answered(self, console: Console, query: str) -> None:
        console.event()
        console.text(f"/studies/asthma/events?{query}")

    def test_older_events_follow_on_further_pages_each_once(self, console: Console) -> None:
        made = [console.event(None, ago=timedelta(minutes=number)).event_id for number in range(120)]
        assert [*self.pages(console, "/studies/asthma/events")] == made

    def pages(self, console: Console, path: str) -> Iterator[str]:
        while path:
            page = console.text(path)
            yield from self.ids(page)
            found = re.search(r'rel="next" href="([^"]+)"', page)
            path = found[1].replace("&amp;", "&") if found else ""

    def test_the_audit_trail_is_what_the_command_line_exports(self, console: Console) -> None:
        console.event(State.FAILED, reason="=cmd", records=("1", "-2"))
        answer = console.get("/studies/asthma/events.csv")
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert answer.content_type == "text/csv; charset=utf-8"
        assert "attachment" in answer.headers["Content-Disposition"]
        assert tuple(rows[0]) == AUDIT_COLUMNS
        assert [(row["record"], row["reason"]) for row in rows] == [("1", "'=cmd"), ("'-2", "'=cmd")]

    def test_the_audit_trail_begins_on_the_day_that_was_asked_for(self, console: Console) -> None:
        console.event(ago=timedelta(days=9))
        new = console.event()
        day = (console.now - timedelta(days=3)).date()
        rows = list(csv.DictReader(io.StringIO(console.text(f"/studies/asthma/events.csv?since={day}"))))
        assert [row["event_id"] for row in rows] == [new.event_id]


class TestEvent:
    def page(self, console: Console, event_id: str) -> str:
        return console.text(f"/studies/asthma/events/{event_id}")

    def test_an_unknown_event_is_not_found(self, console: Console) -> None:
        assert console.get("/studies/asthma/events/SM404").status_code == 404

    def test_the_timeline_goes_from_the_text_to_redcap(self, console: Console) -> None:
        page = self.page(console, console.event().event_id)
        places = [
            page.index(words)
            for words in ("STOP texted", "Received", "Written to REDCap", "Ended: in redcap")
        ]
        assert places == sorted(places)
        assert "webhooks carry no other" in page
        assert "record 7" in page

    def test_a_failure_says_why_and_how_to_try_again(self, console: Console) -> None:
        event = console.event(State.FAILED, reason="record 7: locked")
        page = self.page(console, event.event_id)
        assert "Reason: record 7: locked." in page
        assert f"optout replay {event.event_id}" in page

    def test_a_review_says_how_to_decide_it(self, console: Console) -> None:
        event = review(console)
        page = self.page(console, event.event_id)
        for decision in ("stop", "dismiss"):
            assert f"optout review {event.event_id} {decision}" in page

    def test_a_text_that_waits_can_be_read_at_twilio_and_another_is_not_linked(
        self, console: Console
    ) -> None:
        assert f"/{ACCOUNT_SID}/" in self.page(console, review(console).event_id)
        assert "twilio.com" not in self.page(console, console.event().event_id)

    def test_a_block_at_twilio_is_part_of_the_timeline(self, console: Console) -> None:
        event = console.event(blocked=False)
        stored = {"block": "blocked", "block_ms": milliseconds(console.now)}
        console.redis.hset(keys.event("asthma", event.event_id), mapping=stored)
        page = self.page(console, event.event_id)
        assert page.count("Number blocked") == 2

    def test_a_start_that_waits_names_the_command_for_a_new_consent(self, console: Console) -> None:
        event = console.event(State.NEEDS_REVIEW, change=Change.START, source=Source.EVENT_STREAM)
        assert "optout record asthma 7 start" in self.page(console, event.event_id)

    def test_a_decision_says_who_and_why(self, console: Console) -> None:
        event = console.event()
        decision = StaffDecision(by="<b>pi</b>", reason="phoned")
        console.ledger.record_decision("asthma", event.event_id, decision)
        page = self.page(console, event.event_id)
        assert "&lt;b&gt;pi&lt;/b&gt;: phoned" in page

    def test_a_replay_says_who_asked_for_it_and_why(self, console: Console) -> None:
        event, other = console.event(State.FAILED), console.event(State.FAILED, phone="+16505550111")
        actions = [
            StaffAction(at=console.now, event_id=each.event_id, kind="replay", by=by, reason="token renewed")
            for each, by in ((event, "pi"), (other, "somebody else"))
        ]
        note_actions(console.redis, "asthma", actions, retention_days=400)
        console.ledger.reopen("asthma", event.event_id, now=console.now)
        page = self.page(console, event.event_id)
        assert "Replayed by staff" in page
        assert "pi: token renewed" in page
        assert "Looked up again" in page
        assert "somebody else" not in page

    def test_no_page_shows_the_hash_of_a_number(self, console: Console) -> None:
        event = console.event(State.FAILED)
        for path in (
            "/",
            "/studies/asthma",
            "/studies/asthma/events",
            f"/studies/asthma/events/{event.event_id}",
        ):
            assert event.phone_hash not in console.text(path)


class TestChecks:
    def test_without_a_result_the_page_says_that_none_was_kept(self, console: Console) -> None:
        assert verdict(console.text("/checks")).startswith("No daily check has been kept yet.")

    def test_findings_come_worst_first_with_their_fix(self, console: Console) -> None:
        store_result(console.redis, result("", "note"))
        store_result(console.redis, result("asthma", "warning", "error"))
        page = console.text("/checks")
        assert verdict(page) == "The daily checks have found 1 error, 1 warning, 1 note."
        assert re.findall(r'class="state (\w+)"', page) == ["error", "warning", "note"]
        assert "Fix it." in page
        assert "Not checked yet: sleep." in page

    def test_nothing_found_is_said(self, console: Console) -> None:
        store_result(console.redis, result("asthma"))
        assert verdict(console.text("/checks")) == "The daily checks have found nothing."


class TestPlatform:
    def test_processes_queues_budgets_and_mail_are_shown(self, console: Console) -> None:
        console.redis.sadd("_kombu.binding.optout.update", "x")
        console.redis.lpush("optout.update", "x", "y")
        console.redis.hset(
            keys.METRICS, mapping={"mails|asthma|saved|sent": 4, "mails|asthma|saved|rejected": 1}
        )
        console.event(None, ago=timedelta(minutes=7))
        page = console.text("/platform")
        assert verdict(page).startswith("The platform is fine")
        for words in ("as on disk", "redcap.example.edu", "1 change not finished, the oldest for 7 minutes"):
            assert words in page
        assert re.search(r"optout\.update</th><td data-label=\"Messages\">2<", page)
        assert re.search(r"<dt>Sent</dt><dd>4</dd>.*<dt>Not sent</dt><dd>1</dd>", page, re.DOTALL)
        assert 'href="http://127.0.0.1:5555"' in page

    def test_a_process_with_another_configuration_is_marked(self, console: Console) -> None:
        console.processes_run(digest="0ther")
        assert "another one: 0ther" in console.text("/platform")

    def test_a_file_that_a_process_could_not_load_is_said_with_its_fix(self, console: Console) -> None:
        trouble = ConfigurationTrouble("studies/sleep.toml", "twilio: no such table\nmore", ("hash_key",))
        now_ms = milliseconds(console.now)
        publish(console.redis, "worker|host|1", console.config.digest, now_ms=now_ms, trouble=trouble)
        page = console.text("/platform")
        assert "as studies/sleep.toml is invalid: twilio: no such table" in page
        assert "worker on host: hash_key changed" in page.lower()

    def test_a_process_that_has_ended_is_not_shown_and_not_removed(self, console: Console) -> None:
        publish(console.redis, "web|gone|1", "0", now_ms=0)
        assert "gone" not in console.text("/platform")
        assert console.redis.hexists(keys.CONFIGURATIONS, "web|gone|1")

    def test_a_mail_server_that_rejects_is_said(self, console: Console) -> None:
        console.redis.set(keys.MAIL_REJECTION, "535 authentication failed")
        assert "The mail server rejected the last e-mail (535 authentication failed)" in verdict(
            console.text("/platform")
        )

    def test_the_last_backup_has_an_age(self, console: Console) -> None:
        moment = round((console.now - timedelta(days=3)).timestamp() * 1000)
        console.redis.set(keys.LAST_BACKUP, moment)
        assert "3 days ago" in console.text("/platform")
