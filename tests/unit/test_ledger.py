"""The ledger: one atomic step after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import pytest

from shared.domain.events import Change, Notice, OptOutEvent, Source, State
from shared.domain.precedence import decide
from shared.ledger import Accepted, DueWork, EventOutcome, Ledger, keys
from shared.retry_policy import QUICK_PAUSES_SECONDS
from tests.builders import at, hashed, opt_out_event, sid

PHONE = hashed("+16505550100")
NOON = at("2026-05-04T12:00:00")
DAY = timedelta(days=1)


def minutes(number: float) -> datetime:
    """So many minutes after noon."""
    return NOON + timedelta(minutes=number)


def stop(minute: float = 0, **more: Any) -> OptOutEvent:
    return opt_out_event(change="STOP", when=minutes(minute), **more)


def start(minute: float = 0, **more: Any) -> OptOutEvent:
    """A START whose time is known."""
    return opt_out_event(change="START", when=minutes(minute), **{"source": Source.EVENT_STREAM, **more})


@pytest.fixture
def ledger(redis: Any) -> Ledger:
    return Ledger(redis, retention_days=400)


def accept(ledger: Ledger, *events: OptOutEvent, now: datetime = NOON) -> list[str]:
    return [answer.value for answer in ledger.accept(events, now=now)]


def states(ledger: Ledger, *events: OptOutEvent) -> list[str]:
    entries = [ledger.load(event.project, event.event_id) for event in events]
    return [entry.state.value if entry else "none" for entry in entries]


def latest(ledger: Ledger) -> tuple[str, str]:
    [status] = ledger.status("asthma", PHONE)
    return status.change.value, status.event_id


def due_members(ledger: Ledger) -> set[str]:
    return set(ledger.redis.zrange(keys.DUE, 0, -1))


def outcome(event: OptOutEvent, state: State = State.UPDATED, **more: Any) -> EventOutcome:
    return EventOutcome(event_id=event.event_id, phone_hash=event.phone_hash, state=state, **more)


def complete_events(
    ledger: Ledger,
    *outcomes: EventOutcome,
    now: datetime = NOON,
    written: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    return ledger.complete_events("asthma", outcomes, now=now, written=written)


def matched(ledger: Ledger, event: OptOutEvent, *records: str) -> None:
    """Take an event as far as 'pending'."""
    entry = ledger.load(event.project, event.event_id)
    assert entry is not None
    ledger.match(entry, records or ["1"], now=NOON)


class TestAccept:
    def test_an_event_is_stored_whole(self, ledger: Ledger) -> None:
        event = stop(source=Source.EVENT_STREAM)
        assert accept(ledger, event, now=minutes(1)) == ["new"]
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        assert (entry.change, entry.state, entry.source) == (Change.STOP, State.RECEIVED, Source.EVENT_STREAM)
        assert (entry.occurred_at, entry.received_at) == (NOON, minutes(1))
        assert (entry.phone_hash, entry.records, entry.finished_at) == (PHONE, (), None)

    def test_a_redelivered_event_is_known_and_changes_nothing(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        redis: Any = ledger.redis
        before = {key: redis.dump(key) for key in redis.keys("*")}
        assert accept(ledger, event, now=minutes(5)) == ["known"]
        assert {key: redis.dump(key) for key in redis.keys("*")} == before

    def test_the_same_event_twice_in_one_batch_is_stored_once(self, ledger: Ledger) -> None:
        event = stop()
        assert accept(ledger, event, event) == ["new", "known"]
        assert [entry.event_id for entry in ledger.entries("asthma")] == [event.event_id]

    def test_one_message_counts_for_each_of_two_projects(self, ledger: Ledger) -> None:
        one = stop(event_id=sid(7))
        other = stop(event_id=sid(7), project="sleep")
        assert accept(ledger, one, other) == ["new", "new"]
        assert states(ledger, one, other) == ["received", "received"]

    def test_a_newer_change_supersedes_the_unfinished_one(self, ledger: Ledger) -> None:
        first, second = stop(0), start(1)
        accept(ledger, first)
        assert accept(ledger, second) == ["new"]
        assert states(ledger, first, second) == ["superseded", "received"]
        assert latest(ledger) == ("START", second.event_id)
        assert due_members(ledger) == {f"lookup|asthma|{second.event_id}"}
        assert ledger.redis.zrange(keys.unfinished("asthma"), 0, -1) == [second.event_id]

    def test_a_pending_change_is_superseded_too(self, ledger: Ledger) -> None:
        first, second = stop(0), start(1)
        accept(ledger, first)
        matched(ledger, first)
        accept(ledger, second)
        assert states(ledger, first, second) == ["superseded", "received"]

    def test_a_finished_change_keeps_its_end_when_a_newer_one_comes(self, ledger: Ledger) -> None:
        first, second = stop(0), start(1)
        accept(ledger, first)
        complete_events(ledger, outcome(first))
        accept(ledger, second)
        assert states(ledger, first, second) == ["updated", "received"]

    def test_an_older_change_is_stale_and_replaces_nothing(self, ledger: Ledger) -> None:
        newer, older = start(5), stop(1)
        accept(ledger, newer)
        assert accept(ledger, older) == ["stale"]
        assert states(ledger, newer, older) == ["received", "superseded"]
        assert latest(ledger) == ("START", newer.event_id)

    def test_of_a_stop_and_a_start_in_one_second_of_the_message_log_the_stop_counts(
        self, ledger: Ledger
    ) -> None:
        newest = start(0, source=Source.MESSAGE_LOG)
        oldest = stop(0, source=Source.MESSAGE_LOG)
        assert accept(ledger, newest, oldest) == ["new", "new"]
        assert latest(ledger) == ("STOP", oldest.event_id)
        assert states(ledger, newest, oldest) == ["superseded", "received"]

    def test_milliseconds_decide_within_a_second_if_both_are_known(self, ledger: Ledger) -> None:
        first, second = stop(0, source=Source.EVENT_STREAM), start(0.001)
        assert accept(ledger, first, second) == ["new", "new"]
        assert latest(ledger) == ("START", second.event_id)

    def test_a_start_in_the_very_millisecond_of_a_stop_ends_nothing(self, ledger: Ledger) -> None:
        first, second = stop(0, source=Source.EVENT_STREAM), start(0)
        assert accept(ledger, first, second) == ["new", "stale"]
        assert latest(ledger) == ("STOP", first.event_id)

    def test_a_start_in_another_scope_leaves_the_stop_in_force(self, ledger: Ledger) -> None:
        first, second = stop(0), start(5, scope="number:other")
        assert accept(ledger, first, second) == ["new", "new"]
        assert states(ledger, first, second) == ["received", "received"]
        assert decide(ledger.status("asthma", PHONE)).shown.event_id == first.event_id

    def test_a_start_by_webhook_counts_once_its_time_is_confirmed(self, ledger: Ledger) -> None:
        first, second = stop(0), start(5, source=Source.WEBHOOK)
        assert accept(ledger, first, second, now=minutes(5)) == ["new", "new"]
        assert latest(ledger) == ("STOP", first.event_id)
        assert [each.value for each in ledger.accept([second], now=minutes(6), confirmed=True)] == ["new"]
        assert latest(ledger) == ("START", second.event_id)

    def test_a_start_that_twilio_received_before_the_stop_ends_as_superseded(self, ledger: Ledger) -> None:
        first, second = stop(4), start(5, source=Source.WEBHOOK)
        accept(ledger, first, second, now=minutes(5))
        told = replace(second, occurred_at=minutes(3))
        assert [each.value for each in ledger.accept([told], now=minutes(6), confirmed=True)] == ["stale"]
        assert states(ledger, second) == ["superseded"]
        assert latest(ledger) == ("STOP", first.event_id)

    def test_a_start_that_is_repeated_after_its_retention_changes_nothing(self, ledger: Ledger) -> None:
        begun = start(0, source=Source.WEBHOOK)
        accept(ledger, begun, stop(9), now=minutes(9))
        ledger.redis.delete(keys.event("asthma", begun.event_id))  # as its expiry does
        again = replace(begun, occurred_at=minutes(20))
        assert accept(ledger, again, now=minutes(20)) == ["known"]
        assert latest(ledger)[0] == "STOP"

    def test_an_unclear_text_changes_no_status(self, ledger: Ledger) -> None:
        first, unclear = start(0), opt_out_event(change="", when=minutes(1))
        assert accept(ledger, first, unclear) == ["new", "new"]
        assert latest(ledger) == ("START", first.event_id)
        assert states(ledger, unclear) == ["received"]

    def test_what_was_unclear_counts_once_twilio_says_that_it_is_an_opt_out(self, ledger: Ledger) -> None:
        unclear = opt_out_event(change="", when=NOON)
        accept(ledger, unclear)
        complete_events(ledger, outcome(unclear, State.NEEDS_REVIEW))
        assert [entry.event_id for entry in ledger.reviews("asthma")] == [unclear.event_id]
        assert accept(ledger, replace(unclear, change=Change.STOP)) == ["new"]
        assert latest(ledger) == ("STOP", unclear.event_id)
        assert ledger.reviews("asthma") == []

    def test_a_sender_without_phone_number_is_left_to_the_lookup(self, ledger: Ledger) -> None:
        event = stop(phone_hash="")
        assert accept(ledger, event) == ["new"]
        assert due_members(ledger) == {f"lookup|asthma|{event.event_id}"}
        assert ledger.count_statuses("asthma") == 0

    def test_a_change_whose_write_has_begun_is_left_for_the_updater_to_judge(self, ledger: Ledger) -> None:
        first, second = stop(0), start(1)
        accept(ledger, first)
        matched(ledger, first)
        ledger.begin_writes("asthma", {PHONE: first.event_id}, now=NOON)
        accept(ledger, second)
        assert states(ledger, first, second) == ["pending", "received"]

    def test_a_start_that_was_missed_between_two_stops_is_remembered(self, ledger: Ledger) -> None:
        first, second, missed = stop(0), stop(10), start(5)
        accept(ledger, first)
        complete_events(ledger, outcome(first))
        accept(ledger, second)
        complete_events(ledger, outcome(second, State.ALREADY_CURRENT))
        assert accept(ledger, missed) == ["stale"]
        [status] = ledger.status("asthma", PHONE)
        assert (status.event_id, status.last_start_ms) == (
            second.event_id,
            at("2026-05-04T12:05").timestamp() * 1000,
        )
        assert ledger.pending("asthma", 10) == [PHONE]
        assert "update|asthma|" in due_members(ledger)

    def test_a_start_before_the_latest_known_start_asks_for_nothing(self, ledger: Ledger) -> None:
        accept(ledger, start(3), stop(10))
        assert accept(ledger, start(1)) == ["stale"]
        assert ledger.pending("asthma", 10) == []

    def test_an_older_start_than_a_start_asks_for_nothing(self, ledger: Ledger) -> None:
        accept(ledger, start(10))
        assert accept(ledger, start(5)) == ["stale"]
        assert ledger.pending("asthma", 10) == []

    def test_the_latest_start_is_carried_over_to_later_changes(self, ledger: Ledger) -> None:
        accept(ledger, start(3), stop(10), stop(20))
        [status] = ledger.status("asthma", PHONE)
        assert status.last_start_ms == int(minutes(3).timestamp() * 1000)

    def test_each_end_is_counted_by_project_source_and_state(self, ledger: Ledger) -> None:
        accept(ledger, stop(0), start(1), stop(-5, source=Source.MESSAGE_LOG))
        assert ledger.redis.hgetall(keys.COUNTS) == {
            "asthma|webhook|superseded": "1",
            "asthma|message_log|superseded": "1",
        }

    def test_an_event_expires_only_once_it_has_ended(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        assert ledger.redis.ttl(keys.event("asthma", event.event_id)) == -1
        complete_events(ledger, outcome(event))
        assert 399 * 86400 < ledger.redis.ttl(keys.event("asthma", event.event_id)) <= 400 * 86400

    def test_an_event_whose_retention_is_over_is_still_known_by_its_status(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        complete_events(ledger, outcome(event))
        ledger.redis.delete(keys.event("asthma", event.event_id))
        assert accept(ledger, event) == ["known"]


class TestMatch:
    def test_a_match_makes_the_phone_pending_and_the_update_due(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        matched(ledger, event, "7", "12")
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        assert (entry.state, entry.records) == (State.PENDING, ("7", "12"))
        assert ledger.is_pending("asthma", PHONE)
        assert due_members(ledger) == {"update|asthma|"}

    def test_a_match_of_an_event_that_has_ended_meanwhile_does_nothing(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        complete_events(ledger, outcome(event, State.SUPERSEDED))
        assert not ledger.match(entry, ["1"], now=NOON)
        assert states(ledger, event) == ["superseded"]
        assert not ledger.is_pending("asthma", PHONE)

    def test_a_second_match_does_not_move_the_phone_to_the_end_of_the_line(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        ledger.match(entry, ["1"], now=NOON)
        ledger.match(entry, ["1"], now=minutes(9))
        assert ledger.redis.zscore(keys.pending("asthma"), PHONE) == NOON.timestamp() * 1000


class TestSettle:
    def test_the_phone_leaves_the_pending_set_only_if_its_status_is_the_one_that_was_written(
        self, ledger: Ledger
    ) -> None:
        first = stop(0)
        accept(ledger, first)
        matched(ledger, first)
        read = ledger.statuses("asthma", [PHONE])[PHONE]
        accept(ledger, start(1))
        complete_events(ledger, outcome(first), written={PHONE: read})
        assert ledger.pending("asthma", 10) == [PHONE]

    def test_a_phone_whose_status_was_written_leaves_the_pending_set(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        matched(ledger, event)
        complete_events(ledger, outcome(event), written=ledger.statuses("asthma", [PHONE]))
        assert ledger.pending("asthma", 10) == []
        assert states(ledger, event) == ["updated"]
        assert ledger.redis.zcard(keys.unfinished("asthma")) == 0

    def test_each_kind_of_notice_is_given_once(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        saved = outcome(event, notice=Notice.SAVED)
        assert complete_events(ledger, saved) == [event.event_id]
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        ledger.record_mail_outcome(entry, Notice.SAVED, "sent")
        assert complete_events(ledger, saved) == []

    def test_a_record_that_is_written_later_is_mailed_too(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        for records in (["1"], ["1"], ["1", "9"], ["9"]):
            due = complete_events(
                ledger, outcome(event, notice=Notice.SAVED, records=["1", "9"], written=records)
            )
            entry = ledger.load("asthma", event.event_id)
            assert entry is not None
            assert bool(due) == (records in (["1"], ["1", "9"]) and entry.notice is Notice.SAVED)
            if entry.notice:
                ledger.record_mail_outcome(entry, Notice.SAVED, "sent")

    def test_another_kind_of_notice_is_given_beside_the_first(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        complete_events(ledger, outcome(event, State.FAILED, notice=Notice.UNSAVED))
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        ledger.record_mail_outcome(entry, Notice.UNSAVED, "sent")
        assert complete_events(ledger, outcome(event, notice=Notice.SAVED)) == [event.event_id]

    def test_a_notice_that_changed_while_it_was_sent_is_still_due(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        complete_events(ledger, outcome(event, State.FAILED, notice=Notice.UNSAVED))
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        complete_events(ledger, outcome(event, notice=Notice.SAVED))
        ledger.record_mail_outcome(entry, Notice.UNSAVED, "sent")
        again = ledger.load("asthma", event.event_id)
        assert again is not None
        assert again.notice is Notice.SAVED
        assert ledger.redis.hget(keys.event("asthma", event.event_id), "noticed") == "unsaved "
        assert f"email|asthma|{event.event_id}" in due_members(ledger)

    def test_a_due_mail_keeps_the_event_from_expiring(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        complete_events(ledger, outcome(event, notice=Notice.SAVED))
        assert ledger.redis.ttl(keys.event("asthma", event.event_id)) == -1
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        ledger.record_mail_outcome(entry, Notice.SAVED, "sent")
        assert ledger.redis.ttl(keys.event("asthma", event.event_id)) > 0
        assert due_members(ledger) == set()

    def test_finding_redcap_as_it_was_left_does_not_unsay_the_write(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        complete_events(ledger, outcome(event, State.UPDATED, records=["1"]))
        complete_events(ledger, outcome(event, State.ALREADY_CURRENT))
        assert states(ledger, event) == ["updated"]
        assert ledger.redis.hgetall(keys.COUNTS) == {"asthma|webhook|updated": "1"}

    def test_settling_an_event_whose_retention_is_over_still_frees_its_phone(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        ledger.require_update("asthma", [PHONE], now=NOON)
        ledger.redis.delete(keys.event("asthma", event.event_id))
        read = ledger.statuses("asthma", [PHONE])[PHONE]
        assert complete_events(ledger, outcome(event, notice=Notice.SAVED), written={PHONE: read}) == []
        assert ledger.pending("asthma", 10) == []
        assert not ledger.redis.exists(keys.event("asthma", event.event_id))

    def test_the_open_intent_of_the_event_ends_with_it(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        ledger.begin_writes("asthma", {PHONE: event.event_id}, now=NOON)
        complete_events(ledger, outcome(event))
        assert ledger.intents("asthma", [PHONE]) == {}

    def test_the_intent_of_another_event_stays(self, ledger: Ledger) -> None:
        first, second = stop(0), start(1)
        accept(ledger, first, second)
        ledger.begin_writes("asthma", {PHONE: second.event_id}, now=NOON)
        complete_events(ledger, outcome(first, State.SUPERSEDED))
        assert ledger.intents("asthma", [PHONE]) == {PHONE: second.event_id}

    def test_no_write_begins_for_what_is_no_longer_the_latest_change(self, ledger: Ledger) -> None:
        first, second, other = stop(0), start(1), opt_out_event("+16505559999", when=NOON)
        accept(ledger, first, second, other)
        writes = {PHONE: first.event_id, other.phone_hash: other.event_id}
        assert ledger.begin_writes("asthma", writes, now=NOON) == [PHONE]
        assert ledger.intents("asthma", [PHONE, other.phone_hash]) == {}
        assert ledger.begin_writes("asthma", writes | {PHONE: second.event_id}, now=NOON) == []
        assert set(ledger.intents("asthma", [PHONE, other.phone_hash])) == {PHONE, other.phone_hash}

    def test_a_begun_write_that_nobody_has_looked_at_is_not_replaced(self, ledger: Ledger) -> None:
        first, second = stop(0), start(1)
        accept(ledger, first)
        ledger.begin_writes("asthma", {PHONE: first.event_id}, now=NOON)
        accept(ledger, second)
        writes = {PHONE: second.event_id}
        assert ledger.begin_writes("asthma", writes, begun={PHONE: ""}, now=NOON) == [PHONE]
        assert ledger.intents("asthma", [PHONE]) == {PHONE: first.event_id}
        ledger.forget_intent("asthma", PHONE)
        assert ledger.begin_writes("asthma", writes, begun={PHONE: ""}, now=NOON) == []


class TestReopen:
    def test_an_ended_event_starts_again(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        complete_events(ledger, outcome(event, State.FAILED, reason="redcap_rejected: no"))
        assert ledger.reopen("asthma", event.event_id, now=minutes(3))
        entry = ledger.load("asthma", event.event_id)
        assert entry is not None
        assert (entry.state, entry.reason, entry.finished_at) == (State.RECEIVED, "", None)
        assert entry.occurred_at == NOON
        assert due_members(ledger) == {f"lookup|asthma|{event.event_id}"}
        assert ledger.redis.ttl(keys.event("asthma", event.event_id)) == -1

    def test_an_unknown_event_is_not_reopened(self, ledger: Ledger) -> None:
        assert not ledger.reopen("asthma", sid(), now=NOON)
        assert ledger.redis.keys("*") == []

    def test_an_event_without_phone_number_is_not_reopened(self, ledger: Ledger) -> None:
        event = stop(phone_hash="")
        accept(ledger, event)
        complete_events(ledger, outcome(event, State.NO_MATCHING_RECORD))
        assert not ledger.reopen("asthma", event.event_id, now=NOON)
        assert states(ledger, event) == ["no_matching_record"]


class TestPending:
    def test_the_longest_waiting_phones_come_first(self, ledger: Ledger) -> None:
        for number, minute in ((1, 3), (2, 1), (3, 2)):
            ledger.require_update("asthma", [f"phone-{number}"], now=minutes(minute))
        assert ledger.pending("asthma", 2) == ["phone-2", "phone-3"]
        assert ledger.pending("asthma", 2, 2) == ["phone-1"]

    def test_without_a_limit_all_pending_phones_are_answered(self, ledger: Ledger) -> None:
        ledger.require_update("asthma", ["a", "b", "c"], now=NOON)
        assert ledger.pending("asthma") == ["a", "b", "c"]

    def test_requiring_an_update_twice_keeps_the_place_in_the_line(self, ledger: Ledger) -> None:
        ledger.require_update("asthma", ["a"], now=NOON)
        ledger.require_update("asthma", ["b"], now=minutes(1))
        ledger.require_update("asthma", ["a"], now=minutes(2))
        assert ledger.pending("asthma") == ["a", "b"]

    def test_the_due_update_is_forgotten_only_when_nothing_is_pending(self, ledger: Ledger) -> None:
        ledger.require_update("asthma", ["a"], now=NOON)
        assert ledger.clear_update_if_empty("asthma") == 1
        assert due_members(ledger) == {"update|asthma|"}
        ledger.forget_pending("asthma", ["a"])
        assert ledger.clear_update_if_empty("asthma") == 0
        assert due_members(ledger) == set()


class TestDueWork:
    def test_work_is_not_due_before_its_time(self, ledger: Ledger) -> None:
        accept(ledger, stop())
        assert ledger.claim_due(now=minutes(0.9), limit=10) == []

    def test_claimed_work_comes_again_at_doubling_pauses_up_to_five_minutes(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        claimed, now = [], NOON
        for _ in range(7 * 60):  # seven quarters of an hour in steps of 15 s
            now += timedelta(seconds=15)
            claimed += [now for _ in ledger.claim_due(now=now, limit=10)]
        gaps = [(later - earlier).total_seconds() for earlier, later in pairwise(claimed)]
        assert (claimed[0] - NOON).total_seconds() == 60
        assert gaps[:4] == [60, 120, 240, 300]
        assert set(gaps[4:]) == {300}

    def test_claimed_work_names_kind_project_and_event(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        ledger.require_update("sleep", ["a"], now=NOON)
        assert set(ledger.claim_due(now=minutes(2), limit=10)) == {
            DueWork("lookup", "asthma", event.event_id),
            DueWork("update", "sleep", ""),
        }

    def test_no_more_than_the_limit_is_claimed_and_the_rest_stays_due(self, ledger: Ledger) -> None:
        accept(ledger, *(opt_out_event(f"+1650555{n:04d}", when=NOON) for n in range(5)))
        first = ledger.claim_due(now=minutes(1), limit=3)
        second = ledger.claim_due(now=minutes(1), limit=3)
        assert (len(first), len(second)) == (3, 2)
        assert set(first).isdisjoint(second)

    def test_the_first_few_retries_come_sooner(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        pauses = []
        for _ in range(len(QUICK_PAUSES_SECONDS) + 1):
            pauses.append(ledger.schedule_quick_retry("lookup", "asthma", event.event_id, now=NOON))
            ledger.claim_due(now=NOON + DAY, limit=10)
        assert pauses == [*QUICK_PAUSES_SECONDS, None]

    def test_the_pauses_of_an_update_grow_until_nothing_is_pending(self, ledger: Ledger) -> None:
        ledger.require_update("asthma", ["a"], now=NOON)
        pauses = []
        for _ in range(len(QUICK_PAUSES_SECONDS) + 1):
            assert ledger.clear_update_if_empty("asthma") == 1  # as each updater asks first
            pauses.append(ledger.schedule_quick_retry("update", "asthma", now=NOON))
            ledger.claim_due(now=NOON + DAY, limit=10)
        assert pauses == [*QUICK_PAUSES_SECONDS, None]
        ledger.forget_pending("asthma", ["a"])
        assert ledger.clear_update_if_empty("asthma") == 0
        ledger.require_update("asthma", ["b"], now=NOON)
        assert ledger.schedule_quick_retry("update", "asthma", now=NOON) == QUICK_PAUSES_SECONDS[0]

    def test_a_retry_of_work_that_is_done_does_not_bring_it_back(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        complete_events(ledger, outcome(event))
        ledger.schedule_quick_retry("lookup", "asthma", event.event_id, now=NOON)
        assert due_members(ledger) == set()

    @pytest.mark.parametrize("how", ["overtaken", "matched", "settled", "forgotten", "reopened"])
    def test_how_often_work_was_published_is_forgotten_with_the_work(self, ledger: Ledger, how: str) -> None:
        event = stop()
        accept(ledger, event)
        ledger.claim_due(now=minutes(2), limit=10)
        member = f"lookup|asthma|{event.event_id}"
        assert ledger.redis.hgetall(keys.ATTEMPTS) == {member: "1"}
        match how:
            case "overtaken":
                accept(ledger, start(1))
            case "matched":
                matched(ledger, event)
            case "settled":
                complete_events(ledger, outcome(event))
            case "forgotten":
                ledger.forget("asthma", PHONE)
            case _:
                ledger.reopen("asthma", event.event_id, now=minutes(3))
        assert ledger.redis.hgetall(keys.ATTEMPTS) == {}

    def test_a_digest_of_which_all_is_forgotten_is_no_longer_due(self, ledger: Ledger) -> None:
        mine, other = stop(), stop(phone_hash="other")
        accept(ledger, mine, other)
        told = [outcome(event, notice=Notice.SAVED) for event in (mine, other)]
        ledger.complete_events("asthma", told, now=NOON, digest_seconds=3600)
        before = ledger.redis.zscore(keys.DUE, "digest|asthma|")
        ledger.forget("asthma", PHONE)
        assert ledger.redis.zscore(keys.DUE, "digest|asthma|") == before
        ledger.forget("asthma", "other")
        assert "digest|asthma|" not in due_members(ledger)

    def test_a_mended_project_has_all_its_work_due_now(self, ledger: Ledger) -> None:
        mine, other = stop(), stop(project="sleep")
        accept(ledger, mine, other)
        ledger.require_update("asthma", ["a"], now=NOON)
        ledger.claim_due(now=minutes(1), limit=10)
        ledger.make_due_now("asthma", now=minutes(1.5))
        assert set(ledger.claim_due(now=minutes(1.5), limit=10)) == {
            DueWork("lookup", "asthma", mine.event_id),
            DueWork("update", "asthma", ""),
        }

    def test_hastening_does_not_bring_back_what_is_done(self, ledger: Ledger) -> None:
        event = stop()
        accept(ledger, event)
        matched(ledger, event)  # its lookup is done
        ledger.make_due_now("asthma", now=NOON)
        assert due_members(ledger) == {"update|asthma|"}


class TestKeeping:
    def test_events_are_listed_newest_first_or_oldest_first(self, ledger: Ledger) -> None:
        events = [stop(minute) for minute in range(3)]
        for minute, event in enumerate(events):
            accept(ledger, event, now=minutes(minute))
        ids = [event.event_id for event in events]
        assert [entry.event_id for entry in ledger.entries("asthma")] == ids[::-1]
        assert [entry.event_id for entry in ledger.entries("asthma", newest_first=False)] == ids

    def test_ids_of_events_that_have_expired_are_trimmed(self, redis: Any) -> None:
        ledger = Ledger(redis, retention_days=30)
        old, new = stop(0), stop(1)
        accept(ledger, old, now=NOON - 31 * DAY)
        accept(ledger, new, now=NOON - 29 * DAY)
        redis.delete(keys.event("asthma", old.event_id))  # as its expiry does
        assert ledger.prune_expired(["asthma"], now=NOON) == 1
        assert redis.zrange(keys.events("asthma"), 0, -1) == [new.event_id]

    def test_an_event_that_outlives_its_time_of_receipt_stays_in_the_list(self, redis: Any) -> None:
        """One that was corrected late, and every one where the retention was shortened."""
        event = stop()
        accept(Ledger(redis, retention_days=400), event, now=NOON - 100 * DAY)
        shorter = Ledger(redis, retention_days=30)
        complete_events(shorter, outcome(event))
        assert shorter.prune_expired(["asthma"], now=NOON) == 0
        assert [entry.event_id for entry in shorter.entries("asthma")] == [event.event_id]
        assert shorter.forget("asthma", PHONE)["events"] == 1
        assert not redis.exists(keys.event("asthma", event.event_id))

    def test_of_many_old_ids_each_trim_looks_at_the_next_ones(
        self, redis: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.ledger.retention.MOST_TRIMMED", 2)
        ledger, events = Ledger(redis, retention_days=30), [stop(minute) for minute in range(7)]
        for minute, event in enumerate(events):
            accept(ledger, event, now=minutes(minute) - 31 * DAY)
        redis.delete(keys.event("asthma", events[6].event_id))
        trimmed = [ledger.prune_expired(["asthma"], now=minutes(minute)) for minute in range(4)]
        assert sorted(trimmed) == [0, 0, 0, 1]
        assert len(list(ledger.entries("asthma"))) == redis.zcard(keys.events("asthma")) == 6

    def test_a_replayed_event_is_listed_by_its_new_time_of_receipt(self, ledger: Ledger) -> None:
        events = [stop(0), stop(1)]
        accept(ledger, *events)
        ledger.reopen("asthma", events[0].event_id, now=minutes(5))
        assert next(entry.event_id for entry in ledger.entries("asthma")) == events[0].event_id

    def test_events_that_have_expired_are_left_out_of_the_list(self, ledger: Ledger) -> None:
        gone, kept = stop(0), stop(1)
        accept(ledger, gone, kept)
        ledger.redis.delete(keys.event("asthma", gone.event_id))
        assert [entry.event_id for entry in ledger.entries("asthma")] == [kept.event_id]

    def test_events_are_read_in_chunks_and_none_is_lost_between_them(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.ledger.events.event_store.CHUNK", 2)
        events = [stop(phone_hash=f"p{number}") for number in range(5)]
        accept(ledger, *events)
        assert [len(entries) for entries in ledger.unfinished_entries("asthma")] == [2, 2, 1]
        assert {entry.event_id for entry in ledger.entries("asthma")} == {event.event_id for event in events}

    def test_all_statuses_are_listed(self, ledger: Ledger) -> None:
        accept(ledger, *(opt_out_event(f"+1650555{n:04d}") for n in range(50)))
        assert len(dict(ledger.all_statuses("asthma"))) == 50

    def test_an_unknown_event_loads_as_none(self, ledger: Ledger) -> None:
        assert ledger.load("asthma", sid()) is None
        assert ledger.status("asthma", PHONE) == ()

    def test_the_answers_are_those_of_the_script(self) -> None:
        assert {answer.value for answer in Accepted} == {"new", "ask", "known", "stale"}
