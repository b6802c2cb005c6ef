"""Which records hold the phone of an event?"""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from shared.domain.events import OptOutEvent, Source, State
from shared.ledger import EventOutcome, keys
from shared.messaging.tasks import TaskName
from tests.builders import REDCAP_TOKEN, hashed, opt_out_event, sid
from tests.fakes import Study, accept, study
from tests.simulators.redcap import Project, classic_study, enrol, fictional_phone
from worker.steps.lookup_records import lookup_records

pytestmark = pytest.mark.usefixtures("naps")


def enrolled(count: int = 3, project: Project | None = None, **changes: Any) -> Study:
    project = project or classic_study()
    enrol(project, count)
    return study(project, **changes)


def look_up(asthma: Study) -> None:
    """Do the lookup that waits first."""
    asthma.run(asthma.published.messages.popleft())


def test_a_hit_makes_the_event_pending_and_asks_for_one_update() -> None:
    asthma = enrolled()
    event = asthma.text(fictional_phone(2))
    look_up(asthma)
    assert (asthma.state(event), asthma.entry(event).records) == ("pending", ("2",))
    assert asthma.published.of(TaskName.UPDATE) == [("asthma",)]


def test_many_hits_ask_for_one_update_as_long_as_it_waits_in_the_queue() -> None:
    asthma = enrolled(5)
    for number in range(1, 6):
        event = asthma.text(fictional_phone(number))
        lookup_records("asthma", event.event_id, asthma.services)
    assert asthma.published.of(TaskName.UPDATE) == [("asthma",)]


def test_a_known_phone_costs_no_request() -> None:
    asthma = enrolled()
    asthma.text(fictional_phone(1))
    look_up(asthma)
    before = len(asthma.redcap.requests)
    asthma.published.messages.clear()
    asthma.text(fictional_phone(2))
    look_up(asthma)
    assert len(asthma.redcap.requests) == before


def test_a_miss_is_believed_only_after_a_refresh_that_began_after_the_event() -> None:
    asthma = enrolled()
    asthma.text(fictional_phone(1))
    look_up(asthma)
    asthma.published.messages.clear()
    asthma.project.add_record("9", mobile="650-555-0900")  # the index does not know it
    event = asthma.text("+16505550900")
    look_up(asthma)
    assert (asthma.state(event), asthma.entry(event).records) == ("pending", ("9",))


def test_a_miss_after_a_refresh_ends_as_no_matching_record() -> None:
    asthma = enrolled()
    event = asthma.text("+16505559999")
    look_up(asthma)
    assert (asthma.state(event), asthma.entry(event).reason) == (
        "no_matching_record",
        "no record holds this number",
    )
    assert not asthma.published.messages


def test_an_event_that_has_ended_is_not_looked_up_again() -> None:
    asthma = enrolled()
    event = asthma.text(fictional_phone(1))
    asthma.work()
    before = len(asthma.redcap.requests)
    lookup_records("asthma", event.event_id, asthma.services)
    assert (asthma.state(event), len(asthma.redcap.requests)) == ("updated", before)


def test_an_unknown_event_is_passed_over() -> None:
    asthma = enrolled()
    lookup_records("asthma", sid(), asthma.services)
    assert asthma.redcap.requests == []


def test_an_event_of_a_project_that_was_taken_out_rests() -> None:
    asthma = enrolled()
    event = asthma.text(fictional_phone(1), project="gone")
    asthma.work()
    assert (asthma.state(event), asthma.redcap.requests) == ("received", [])


def test_a_replayed_event_that_was_overtaken_ends_as_superseded() -> None:
    asthma = enrolled()
    stop = asthma.text(fictional_phone(1))
    asthma.work()
    start = asthma.text(fictional_phone(1), "START")
    asthma.work()
    asthma.ledger.reopen("asthma", stop.event_id, now=asthma.clock())
    lookup_records("asthma", stop.event_id, asthma.services)
    assert asthma.state(stop) == "superseded"
    assert asthma.entry(stop).reason == f"overtaken by {start.event_id}"
    assert asthma.value("1") == ""


def test_an_outage_puts_the_lookup_off_and_asks_for_a_sweep_soon() -> None:
    asthma = enrolled()
    asthma.redcap.faults.add("http_503", times=None)
    event = asthma.text(fictional_phone(1))
    look_up(asthma)
    assert asthma.state(event) == "received"
    assert [(m.task, 5 <= m.delay_seconds < 7.3) for m in asthma.published.messages] == [
        (TaskName.SWEEP, True)
    ]


def test_a_lookup_that_failed_for_a_day_ends_and_is_told() -> None:
    asthma = enrolled()
    asthma.redcap.faults.add("http_503", times=None)
    event = asthma.text(fictional_phone(1), received=asthma.clock() - timedelta(hours=25))
    asthma.work()
    assert asthma.state(event) == "failed"
    assert asthma.entry(event).reason.endswith("for a day")
    assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) could NOT be saved"]


def test_a_refused_token_fails_the_event_and_shows_as_a_problem() -> None:
    asthma = enrolled()
    asthma.redcap.revoked.add(REDCAP_TOKEN)
    event = asthma.text(fictional_phone(1))
    asthma.work()
    assert (asthma.state(event), asthma.problem()["problem"]) == ("failed", "redcap_forbidden")
    assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) could NOT be saved"]


def test_every_event_fails_at_once_while_the_token_is_known_to_be_refused() -> None:
    asthma = enrolled(3)
    asthma.redcap.faults.add("http_403", times=None)
    first, second = asthma.text(fictional_phone(1)), asthma.text(fictional_phone(2))
    asthma.work()
    assert (asthma.state(first), asthma.state(second)) == ("failed", "failed")
    assert not asthma.problem()["events_kept"]


def test_a_project_with_a_known_problem_is_not_asked_for_each_event() -> None:
    asthma = enrolled(3, classic_study(opt_out_validation="date_ymd"))
    asthma.text(fictional_phone(1))
    look_up(asthma)
    before = len(asthma.redcap.requests)
    events = [asthma.text(fictional_phone(number)) for number in (2, 3)]
    asthma.work()
    assert [asthma.state(event) for event in events] == ["received", "received"]
    assert len(asthma.redcap.requests) == before


def test_a_lookup_after_the_crash_of_a_written_update_is_left_to_the_updater() -> None:
    asthma = enrolled()
    stop = asthma.text(fictional_phone(1))
    asthma.ledger.begin_writes("asthma", {hashed(fictional_phone(1)): stop.event_id}, now=asthma.clock())
    asthma.text(fictional_phone(1), "START")
    lookup_records("asthma", stop.event_id, asthma.services)
    assert asthma.state(stop) == "pending"
    assert asthma.redis.zcard(keys.pending("asthma")) == 1


class TestTakingAlong:
    """A lookup takes along all that has arrived."""

    def arrive(
        self, asthma: Study, *phones: str, change: str = "STOP", source: Source = Source.WEBHOOK
    ) -> list[OptOutEvent]:
        when = asthma.clock() if change == "STOP" else asthma.clock() + timedelta(seconds=2)
        events = [opt_out_event(phone, change, source=source, when=when) for phone in phones]
        for event in events:
            accept([event], ledger=asthma.ledger, publish=asthma.published)
        return events

    def waiting(self, asthma: Study) -> int:
        return len(asthma.published.of(TaskName.LOOKUP))

    def test_one_message_waits_for_many_events(self) -> None:
        asthma = enrolled(5)
        self.arrive(asthma, *map(fictional_phone, range(1, 6)))
        assert self.waiting(asthma) == 1

    def test_one_lookup_finds_the_records_of_all_and_asks_for_one_update(self) -> None:
        asthma = enrolled(5)
        events = self.arrive(asthma, *map(fictional_phone, range(1, 6)))
        lookup_records("asthma", events[0].event_id, asthma.services)
        assert [(asthma.state(event), asthma.entry(event).records) for event in events] == [
            ("pending", (str(number),)) for number in range(1, 6)
        ]
        assert asthma.published.of(TaskName.UPDATE) == [("asthma",)]
        assert asthma.exports() == 1

    def test_what_comes_after_the_lookup_has_begun_sends_another_message(self) -> None:
        asthma = enrolled(2)
        (first,) = self.arrive(asthma, fictional_phone(1))
        lookup_records("asthma", first.event_id, asthma.services)
        self.arrive(asthma, fictional_phone(2))
        assert self.waiting(asthma) == 2  # the first was not taken from this queue, as no worker runs here

    def test_those_that_no_record_holds_end_after_one_refresh_for_all(self) -> None:
        asthma = enrolled(2)
        events = self.arrive(asthma, fictional_phone(1), "+16505559998", "+16505559999")
        lookup_records("asthma", events[0].event_id, asthma.services)
        assert [asthma.state(event) for event in events] == [
            "pending",
            "no_matching_record",
            "no_matching_record",
        ]
        assert asthma.exports() == 1

    def test_a_change_that_was_overtaken_on_the_way_stays_superseded(self) -> None:
        asthma = enrolled(2)
        (first,) = self.arrive(asthma, fictional_phone(1))
        (stop,) = self.arrive(asthma, fictional_phone(2))
        (start,) = self.arrive(asthma, fictional_phone(2), change="START", source=Source.EVENT_STREAM)
        lookup_records("asthma", first.event_id, asthma.services)
        assert [asthma.state(event) for event in (first, stop, start)] == ["pending", "superseded", "pending"]

    def test_a_lookup_whose_own_event_has_ended_takes_the_others_along_all_the_same(self) -> None:
        asthma = enrolled(2)
        first, second = self.arrive(asthma, fictional_phone(1), fictional_phone(2))
        asthma.ledger.complete_events(
            "asthma",
            [EventOutcome(event_id=first.event_id, phone_hash=first.phone_hash, state=State.FAILED)],
            now=asthma.clock(),
        )
        lookup_records("asthma", first.event_id, asthma.services)
        assert asthma.state(second) == "pending"

    def test_during_an_outage_each_is_put_off(self) -> None:
        asthma = enrolled(2)
        events = self.arrive(asthma, fictional_phone(1), fictional_phone(2))
        asthma.redcap.faults.add("http_503", times=None)
        lookup_records("asthma", events[0].event_id, asthma.services)
        assert [asthma.state(event) for event in events] == ["received", "received"]
        asthma.redcap.faults.clear()
        asthma.sweep_later()
        assert [asthma.state(event) for event in events] == ["updated", "updated"]

    def test_events_that_a_dying_worker_had_taken_are_found_by_sweep(self) -> None:
        asthma = enrolled(2)
        events = self.arrive(asthma, fictional_phone(1), fictional_phone(2))
        assert len(asthma.ledger.take_arrived("asthma", 500)) == 2
        asthma.sweep_later()
        assert [asthma.state(event) for event in events] == ["updated", "updated"]


def test_work_that_is_put_off_later_than_a_sweep_on_its_way_gets_a_sweep_of_its_own() -> None:
    """Else it would wait for beat's next sweep, up to a minute."""
    asthma = enrolled()
    asthma.redcap.faults.add("http_503", times=None)
    for number in (1, 2, 3):
        asthma.text(fictional_phone(number))
        asthma.work()
        asthma.clock.ahead += timedelta(seconds=3)
    assert [message.task for message in asthma.later] == [TaskName.SWEEP] * 3


def test_work_that_is_put_off_to_the_same_moment_shares_one_sweep() -> None:
    asthma = enrolled()
    asthma.redcap.faults.add("http_503", times=None)
    moment = asthma.clock()
    asthma.services.now = lambda: moment
    for number in (1, 2, 3):
        asthma.text(fictional_phone(number), received=moment)
    asthma.work()
    assert [message.task for message in asthma.later] == [TaskName.SWEEP]


class TestLargeProjects:
    """Only what has changed is read again there, and REDCap shows a change only after a while."""

    @pytest.fixture
    def large(self, monkeypatch: pytest.MonkeyPatch) -> Study:
        monkeypatch.setattr("worker.redcap.phone_index.SMALL_PROJECT", 2)
        asthma = enrolled(5)
        asthma.redcap.visibility_lag = timedelta(seconds=80)
        asthma.project.clock = asthma.clock
        monkeypatch.setattr(
            "worker.redcap.phone_index.datetime", SimpleNamespace(now=lambda _zone: asthma.clock())
        )
        asthma.text(fictional_phone(1))
        asthma.work()  # builds the index
        asthma.clock.ahead += timedelta(hours=1)
        return asthma

    def refreshes(self, asthma: Study) -> int:
        return sum(request.kind == "export" and not request.records for request in asthma.redcap.requests)

    def test_a_record_entered_just_before_its_stop_is_found_by_a_second_look(self, large: Study) -> None:
        large.project.add_record("77", mobile="650-555-0177")
        event = large.text("+16505550177")
        large.work()
        assert large.state(event) == "received"
        large.sweep_later()
        assert (large.state(event), large.entry(event).records) == ("updated", ("77",))
        assert large.value("77") != ""

    def test_a_stranger_s_stop_costs_one_export_more_and_ends(self, large: Study) -> None:
        before = self.refreshes(large)
        events = [large.text(f"+1650555{number}") for number in range(9001, 9011)]
        large.work()
        large.sweep_later(seconds=61)
        assert {large.state(event) for event in events} == {"received"}
        assert self.refreshes(large) == before + 1
        large.sweep_later(seconds=121)
        assert {large.state(event) for event in events} == {"no_matching_record"}
        assert self.refreshes(large) == before + 2

    def test_a_record_that_was_renamed_is_found_by_one_whole_export(self, large: Study) -> None:
        large.project.rename_record("2", "2-moved")
        before = self.refreshes(large)
        event = large.text(fictional_phone(2))
        large.work()
        assert (large.state(event), large.entry(event).records) == ("updated", ("2-moved",))
        assert large.value("2-moved") != ""
        assert self.refreshes(large) == before + 1

    def test_what_a_whole_export_does_not_show_is_believed_at_once(self, large: Study) -> None:
        event = large.text("+16505559001", received=large.clock() - timedelta(hours=2))
        large.work()
        assert large.state(event) == "no_matching_record"

    def test_in_a_small_project_a_miss_is_believed_at_once(self) -> None:
        asthma = enrolled(5)
        asthma.text(fictional_phone(1))
        asthma.work()
        event = asthma.text("+16505559001")
        asthma.work()
        assert asthma.state(event) == "no_matching_record"
