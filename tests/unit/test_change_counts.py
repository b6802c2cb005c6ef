"""What the console shows of a study without reading its events: counts by day, latencies, failures, nights."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from shared.domain.events import Change, OptOutEvent, Source, State
from shared.ledger import EventOutcome, Ledger, keys
from shared.ledger.events.failures import MOST_FAILURES_READ, failed_ids
from shared.ledger.projects.change_counts import DAYS_COUNTED, ChangeCounts
from shared.ledger.projects.nights import NIGHTS_KEPT, Night, NightOutcome, Nights
from tests.builders import at, opt_out_event

NOON = at("2026-05-04T12:00:00")
TODAY = NOON.date()
DENVER = ZoneInfo("America/Denver")


@pytest.fixture
def ledger(redis: Any) -> Ledger:
    return Ledger(redis, retention_days=400)


@pytest.fixture
def counts(redis: Any) -> ChangeCounts:
    return ChangeCounts(redis)


def end(
    ledger: Ledger, event: OptOutEvent, state: State = State.UPDATED, *, after: float = 1, zone: Any = UTC
) -> None:
    """Accept an event and end it, some seconds after its text."""
    now = event.occurred_at + timedelta(seconds=after)
    ledger.accept([event], now=event.occurred_at)
    outcome = EventOutcome(event_id=event.event_id, phone_hash=event.phone_hash, state=state)
    ledger.complete_events("asthma", [outcome], now=now, zone=zone)


def counted(counts: ChangeCounts, last: date = TODAY) -> dict[date, tuple[int, int]]:
    days = counts.of_days("asthma", last)
    return {each.day: (each.opt_outs, each.opt_ins) for each in days if each.opt_outs or each.opt_ins}


def taken(counts: ChangeCounts) -> dict[str, int]:
    return {bound: number for bound, number in counts.latencies("asthma").items() if number}


class TestChangesByDay:
    def test_a_change_counts_on_the_day_of_its_text_in_the_studys_zone(
        self, ledger: Ledger, counts: ChangeCounts
    ) -> None:
        late = opt_out_event(when=at("2026-05-04T03:00:00"))
        end(ledger, late, zone=DENVER)
        assert counted(counts) == {date(2026, 5, 3): (1, 0)}

    def test_opt_outs_and_opt_ins_count_apart(self, ledger: Ledger, counts: ChangeCounts) -> None:
        end(ledger, opt_out_event(when=NOON))
        end(ledger, opt_out_event(change=Change.START, when=NOON, source=Source.EVENT_STREAM))
        assert counted(counts) == {TODAY: (1, 1)}

    @pytest.mark.parametrize("state", [state for state in State if state is not State.UPDATED])
    def test_only_what_was_written_counts(self, ledger: Ledger, counts: ChangeCounts, state: State) -> None:
        end(ledger, opt_out_event(when=NOON), state)
        assert counted(counts) == {}

    def test_an_event_counts_once_however_often_it_is_replayed(
        self, ledger: Ledger, counts: ChangeCounts
    ) -> None:
        event = opt_out_event(when=NOON)
        end(ledger, event)
        ledger.reopen("asthma", event.event_id, now=NOON)
        outcome = EventOutcome(event_id=event.event_id, phone_hash=event.phone_hash, state=State.UPDATED)
        ledger.complete_events("asthma", [outcome], now=NOON + timedelta(days=1))
        assert counted(counts, TODAY + timedelta(days=1)) == {TODAY: (1, 0)}
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        assert entry.written_at == NOON + timedelta(seconds=1)

    def test_a_test_message_does_not_count(self, ledger: Ledger, counts: ChangeCounts) -> None:
        end(ledger, opt_out_event(when=NOON, event_id="SMoptouttest0001"))
        assert counted(counts) == {}
        assert taken(counts) == {}

    def test_days_that_are_too_old_go_when_a_new_one_comes(
        self, ledger: Ledger, counts: ChangeCounts, redis: Any
    ) -> None:
        end(ledger, opt_out_event(when=NOON - timedelta(days=DAYS_COUNTED)))
        end(ledger, opt_out_event(when=NOON - timedelta(days=DAYS_COUNTED - 1)))
        end(ledger, opt_out_event(when=NOON))
        assert redis.hlen(keys.change_counts("asthma")) == 2
        assert 0 < redis.ttl(keys.change_counts("asthma")) <= DAYS_COUNTED * 86_400

    def test_a_text_that_is_recovered_after_the_time_of_the_counts_is_not_counted(
        self, ledger: Ledger, counts: ChangeCounts, redis: Any
    ) -> None:
        end(ledger, opt_out_event(when=NOON), after=(DAYS_COUNTED + 1) * 86_400)
        assert not redis.exists(keys.change_counts("asthma"))

    def test_studies_with_different_days_are_read_together(
        self, ledger: Ledger, counts: ChangeCounts
    ) -> None:
        end(ledger, opt_out_event(when=NOON))
        days = {"asthma": TODAY, "sleep": TODAY - timedelta(days=1)}
        found = counts.of_projects(days, 30)
        assert [len(each) for each in found.values()] == [30, 30]
        assert (found["asthma"][-1].opt_outs, found["sleep"][-1].opt_outs) == (1, 0)


class TestLatencies:
    @pytest.mark.parametrize(
        ("seconds", "bound"), [(1, "1000"), (1.001, "2000"), (59, "60000"), (90_000, "more"), (-5, "1000")]
    )
    def test_a_change_counts_in_the_smallest_bound_that_holds_it(
        self, ledger: Ledger, counts: ChangeCounts, seconds: float, bound: str
    ) -> None:
        end(ledger, opt_out_event(when=NOON), after=seconds)
        assert taken(counts) == {bound: 1}

    def test_a_decision_by_staff_has_no_latency(self, ledger: Ledger, counts: ChangeCounts) -> None:
        end(ledger, opt_out_event(when=NOON, source=Source.STAFF), after=86_000)
        assert taken(counts) == {}
        assert counted(counts) == {TODAY: (1, 0)}

    def test_weeks_that_are_too_old_go(self, ledger: Ledger, counts: ChangeCounts, redis: Any) -> None:
        for weeks in (14, 12, 0):
            end(ledger, opt_out_event(when=NOON - timedelta(weeks=weeks)))
        assert taken(counts) == {"1000": 2}


class TestFailures:
    def test_what_failed_is_listed_until_a_later_event_of_the_participant_is_saved(
        self, ledger: Ledger, redis: Any
    ) -> None:
        first, second = opt_out_event(when=NOON), opt_out_event(when=NOON + timedelta(minutes=1))
        end(ledger, first, State.FAILED)
        assert failed_ids("asthma", redis) == [first.event_id]
        end(ledger, second, State.ALREADY_CURRENT)
        assert failed_ids("asthma", redis) == []

    def test_the_last_failure_of_a_participant_is_listed_once(self, ledger: Ledger, redis: Any) -> None:
        first, second = opt_out_event(when=NOON), opt_out_event(when=NOON + timedelta(minutes=1))
        end(ledger, first, State.FAILED)
        end(ledger, second, State.FAILED)
        assert failed_ids("asthma", redis) == [second.event_id]

    def test_the_failure_of_another_participant_stays(self, ledger: Ledger, redis: Any) -> None:
        failed = opt_out_event("+16505550111", when=NOON)
        end(ledger, failed, State.FAILED)
        end(ledger, opt_out_event("+16505550112", when=NOON))
        assert failed_ids("asthma", redis) == [failed.event_id]

    def test_an_event_that_is_replayed_is_not_failed_any_more(self, ledger: Ledger, redis: Any) -> None:
        failed = opt_out_event(when=NOON)
        end(ledger, failed, State.FAILED)
        ledger.reopen("asthma", failed.event_id, now=NOON)
        assert failed_ids("asthma", redis) == []

    def test_a_forgotten_participant_leaves_nothing(self, ledger: Ledger, redis: Any) -> None:
        failed = opt_out_event(when=NOON)
        end(ledger, failed, State.FAILED)
        ledger.forget("asthma", failed.phone_hash)
        assert not redis.exists(keys.failures("asthma"))

    def test_an_expired_event_is_dropped(self, ledger: Ledger, redis: Any) -> None:
        failed = opt_out_event(when=NOON)
        end(ledger, failed, State.FAILED)
        redis.delete(keys.event("asthma", failed.event_id))
        assert ledger.prune_expired(["asthma"], now=NOON + timedelta(days=401)) == 1
        assert not redis.exists(keys.failures("asthma"))

    def test_a_page_reads_a_limited_number(self, ledger: Ledger, redis: Any) -> None:
        ids = {f"hash{number}": f"SM{number}" for number in range(2 * MOST_FAILURES_READ)}
        redis.hset(keys.failures("asthma"), mapping=ids)
        for event_id in ids.values():
            redis.hset(keys.event("asthma", event_id), "state", "failed")
        assert 0 < len(failed_ids("asthma", redis)) <= MOST_FAILURES_READ


def night(outcome: NightOutcome = NightOutcome.PROVED, **more: Any) -> Night:
    return Night(outcome=outcome, ended_at=NOON, **more)


class TestNights:
    def test_a_night_is_kept_with_what_it_could_not_see(self, redis: Any) -> None:
        blind = night(NightOutcome.PARTLY_BLIND, hidden=("3 messages are missing",), messages_read=12)
        Nights(redis).record("asthma", TODAY, blind)
        assert Nights(redis).of("asthma") == {TODAY: blind}

    def test_the_last_run_of_a_day_counts_but_a_failure_does_not_undo_a_proof(self, redis: Any) -> None:
        outcomes = [NightOutcome.FAILED, NightOutcome.OPEN, NightOutcome.PROVED, NightOutcome.FAILED]
        for outcome in outcomes:
            Nights(redis).record("asthma", TODAY, night(outcome))
        [kept] = Nights(redis).of("asthma").values()
        assert kept.outcome is NightOutcome.PROVED

    def test_ninety_days_are_kept(self, redis: Any) -> None:
        for number in range(NIGHTS_KEPT + 10):
            Nights(redis).record("asthma", TODAY + timedelta(days=number), night())
        kept = Nights(redis).of("asthma")
        assert (len(kept), min(kept)) == (NIGHTS_KEPT, TODAY + timedelta(days=10))
        assert 0 < redis.ttl(keys.nights("asthma")) <= NIGHTS_KEPT * 86_400

    def test_long_lists_are_cut(self, redis: Any) -> None:
        failed = night(NightOutcome.FAILED, errors=tuple("x" * 1_000 for _ in range(50)))
        Nights(redis).record("asthma", TODAY, failed)
        [kept] = Nights(redis).of("asthma").values()
        assert (len(kept.errors), len(kept.errors[0])) == (5, 300)


def test_a_removed_project_leaves_no_counts(ledger: Ledger, redis: Any) -> None:
    end(ledger, opt_out_event(when=NOON))
    end(ledger, opt_out_event("+16505550111", when=NOON), State.FAILED)
    Nights(redis).record("asthma", datetime(2026, 5, 4, tzinfo=UTC).date(), night())
    ledger.forget_project("asthma")
    assert [key for key in redis.scan_iter() if "asthma" in key] == []
