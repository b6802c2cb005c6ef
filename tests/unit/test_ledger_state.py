"""What the ledger keeps beside events: problems, reconciliations, check times, counters, the operator's mails."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from shared.domain.events import milliseconds
from shared.domain.months import Month
from shared.ledger import Ledger, keys
from shared.ledger.events.failures import projects_with_failures
from shared.ledger.mails.regular_mails import MonthlySummaries, WeeklyMail
from shared.ledger.opt_outs.indexed_phones import IndexedPhones
from shared.ledger.platform.counters import Counters
from shared.ledger.platform.open_conditions import OpenCondition, OpenConditions
from shared.ledger.platform.platform_status import SeenServer, last_server, note_server
from shared.ledger.projects.check_results import CheckResult, CheckSchedule, check_result, store_result
from shared.ledger.projects.figures import project_figures
from shared.ledger.projects.problems import KnownProblem, ProjectProblems, Verified, VerifiedProjects
from shared.ledger.projects.reconciliations import Reconciliations
from shared.ledger.projects.tracked import TrackedProjects
from shared.ledger.work.locks import count_held, try_lock
from tests.builders import at, opt_out_event
from tests.simulators.redcap import fictional_phone

NOON = at("2026-05-04T12:00:00")
NOON_MS = milliseconds(NOON)
PROBLEM = KnownProblem("token_refused", "REDCap refuses the token", events_kept=True)


class TestProjectProblems:
    def test_a_problem_is_new_once(self, redis: Any) -> None:
        problems = ProjectProblems(redis)
        assert problems.note("asthma", PROBLEM)
        assert not problems.note("asthma", PROBLEM)
        assert problems.note("asthma", KnownProblem("token_refused", "expired", events_kept=True))

    def test_it_is_known_until_it_is_removed(self, redis: Any) -> None:
        problems = ProjectProblems(redis)
        problems.note("asthma", PROBLEM)
        assert (problems.of("asthma"), problems.of("stroke")) == (PROBLEM, None)
        assert (problems.all(), problems.projects()) == ({"asthma": PROBLEM}, {"asthma"})
        assert problems.remove("asthma")
        assert not problems.remove("asthma")
        assert problems.all() == {}

    def test_a_version_that_did_not_say_so_kept_the_events(self, redis: Any) -> None:
        redis.hset(keys.PROBLEMS, "asthma", '{"problem": "token_refused", "detail": "expired"}')
        assert ProjectProblems(redis).all() == {
            "asthma": KnownProblem("token_refused", "expired", events_kept=True)
        }

    def test_the_last_check_has_its_time_and_configuration(self, redis: Any) -> None:
        VerifiedProjects(redis).note("asthma", "0123abcd", now=NOON)
        assert VerifiedProjects(redis).all() == {"asthma": Verified(NOON_MS, "0123abcd")}


def test_a_project_is_tracked_while_it_is_configured_and_after(redis: Any) -> None:
    tracked = TrackedProjects(redis)
    tracked.note_configured("asthma")
    tracked.note_configured("stroke")
    tracked.note_missing("stroke", NOON_MS)
    assert tracked.missing_since() == {"asthma": None, "stroke": NOON_MS}
    assert tracked.removed(["asthma"]) == ["stroke"]


class TestReconciliations:
    def test_there_is_nothing_before_the_first(self, redis: Any) -> None:
        found = Reconciliations(redis, "asthma")
        assert (found.succeeded_at(), found.watermark(), found.report(), found.failure_mailed_ms()) == (
            None, None, {}, 0,
        )  # fmt: skip

    def test_a_failure_keeps_the_time_of_the_last_success_and_the_watermark(self, redis: Any) -> None:
        found, later = Reconciliations(redis, "asthma"), NOON + timedelta(days=1)
        began = NOON - timedelta(minutes=1)
        found.conclude({"outcome": "success"}, {"log_covered": 1.0}, watermark=began, now=NOON)
        found.conclude(
            {"outcome": "failure", "errors": ["a timeout"]}, {"log_covered": 0.5}, watermark=None, now=later
        )
        assert (found.succeeded_at(), found.watermark()) == (NOON, began)
        assert found.report()["errors"] == ["a timeout"]
        stored = redis.hgetall(keys.reconciled("asthma"))
        assert (stored["failure_ms"], stored["log_covered"]) == (str(milliseconds(later)), "0.5")

    def test_an_e_mail_about_a_failure_is_noted(self, redis: Any) -> None:
        Reconciliations(redis, "asthma").note_failure_mailed(NOON)
        assert Reconciliations(redis, "asthma").failure_mailed_ms() == NOON_MS


class TestCheckSchedule:
    def test_what_is_due_longest_comes_first_and_not_again_once_it_is_postponed(self, redis: Any) -> None:
        schedule = CheckSchedule(redis)
        for scope, at_ms in (("asthma", 2), ("stroke", 1), ("heart", 3), ("later", 10)):
            schedule.add(scope, at_ms)
        assert schedule.due(5, limit=2) == ["stroke", "asthma"]
        schedule.postpone("stroke", 20)
        assert schedule.due(5, limit=9) == ["asthma", "heart"]

    def test_what_is_scheduled_already_keeps_its_time(self, redis: Any) -> None:
        CheckSchedule(redis).add("asthma", 1)
        CheckSchedule(redis).add("asthma", 99)
        assert redis.zscore(keys.CHECKS_DUE, "asthma") == 1

    def test_what_is_removed_loses_its_result_too(self, redis: Any) -> None:
        CheckSchedule(redis).add("asthma", 1)
        store_result(redis, CheckResult(scope="asthma", checked_at=NOON))
        CheckSchedule(redis).remove("asthma")
        assert (CheckSchedule(redis).scopes(), check_result(redis, "asthma")) == (set(), None)


class TestCounters:
    def test_ended_events_are_counted_by_project_source_and_state(self, redis: Any) -> None:
        redis.hset(keys.COUNTS, mapping={"stroke|webhook|updated": 2, "asthma|webhook|failed": 1})
        assert list(Counters(redis).ended().items()) == [
            (("asthma", "webhook", "failed"), 1), (("stroke", "webhook", "updated"), 2),
        ]  # fmt: skip

    def test_the_others_are_counted_by_name(self, redis: Any) -> None:
        ledger = Ledger(redis)
        ledger.count("webhooks", "inbound", "no_project", by=3)
        ledger.count("swept", "lookup")
        assert Counters(redis).others() == {
            "webhooks": {("inbound", "no_project"): 3}, "swept": {("lookup",): 1},
        }  # fmt: skip


class TestBacklog:
    @pytest.fixture
    def ledger(self, redis: Any) -> Ledger:
        ledger = Ledger(redis)
        for number in range(2):
            event = opt_out_event(fictional_phone(number))
            ledger.accept([event], now=NOON + timedelta(minutes=10 * number))
        return ledger

    def test_it_has_the_number_and_the_age_of_the_oldest(self, ledger: Ledger) -> None:
        backlog = ledger.backlog("asthma")
        assert (backlog.number, backlog.oldest_ms) == (2, NOON_MS)
        assert backlog.seconds(NOON_MS + 90_000) == 90

    def test_without_events_nothing_is_old(self, ledger: Ledger) -> None:
        assert ledger.review_backlog("asthma").seconds(NOON_MS) == 0

    def test_events_are_counted_from_a_time_on(self, ledger: Ledger) -> None:
        assert ledger.count_since("asthma", NOON + timedelta(minutes=1)) == 1

    def test_what_waits_in_several_studies_is_read_at_once(self, ledger: Ledger) -> None:
        ledger.require_update("asthma", ["hash"], now=NOON)
        found = project_figures(ledger.redis, ["stroke", "asthma"])
        assert {
            name: (each.unfinished, each.oldest_unfinished_ms, each.pending, each.due_mails)
            for name, each in found.items()
        } == {"stroke": (0, 0, 0, 0), "asthma": (2, NOON_MS, 1, 0)}

    def test_only_studies_with_a_failed_change_have_failures(self, ledger: Ledger) -> None:
        ledger.redis.hset(keys.failures("asthma"), "hash", "SM1")
        assert projects_with_failures(["stroke", "asthma"], ledger.redis) == {"asthma"}


def test_a_condition_stays_until_it_is_removed(redis: Any) -> None:
    condition = OpenCondition(text="web does not run", since_ms=NOON_MS, mailed=True, count=2)
    OpenConditions(redis).store("silent:web", condition)
    assert OpenConditions(redis).all() == {"silent:web": condition}
    OpenConditions(redis).remove("silent:web")
    assert OpenConditions(redis).all() == {}


def test_a_condition_of_a_version_without_severity_and_count_is_an_error(redis: Any) -> None:
    redis.hset(keys.OPERATOR, "silent:web", '{"text": "silent", "since_ms": 1, "mailed": false}')
    [condition] = OpenConditions(redis).all().values()
    assert (condition.severity, condition.count) == ("error", 0)


def test_regular_e_mails_are_noted_by_their_period(redis: Any) -> None:
    assert (MonthlySummaries(redis).last_months(), WeeklyMail(redis).last_week()) == ({}, None)
    MonthlySummaries(redis).note("asthma", Month(2026, 10))
    WeeklyMail(redis).note("2026-W48")
    assert MonthlySummaries(redis).last_months() == {"asthma": Month(2026, 10)}
    assert WeeklyMail(redis).last_week() == "2026-W48"


def test_the_server_that_answered_last_is_known(redis: Any) -> None:
    assert last_server(redis) is None
    note_server(redis, SeenServer("run1", NOON_MS))
    assert last_server(redis) == SeenServer("run1", NOON_MS)


def test_locks_that_are_held_are_counted(redis: Any) -> None:
    with try_lock(redis, "update:asthma") as acquired:
        assert acquired
        assert count_held(redis, "update:asthma", "update:stroke") == 1
    assert count_held(redis, "update:asthma", "update:stroke") == 0


def test_a_phone_that_is_new_to_a_record_becomes_pending_only_if_it_has_a_status(redis: Any) -> None:
    ledger, event = Ledger(redis), opt_out_event()
    ledger.accept([event], now=NOON)
    IndexedPhones(redis, "asthma").put(
        [("1", {event.phone_hash}), ("2", {"another"})], NOON_MS, was_complete=True
    )
    assert ledger.pending("asthma") == [event.phone_hash]
    assert set(redis.hgetall(keys.index_since("asthma"))) == {f"{event.phone_hash}|1", "another|2"}
