"""Group commit, against the REDCap simulator: what REDCap, the ledger and the team see after each case."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from shared.errors import RedcapRejected, RedcapUnavailable
from shared.ledger import keys
from shared.messaging.tasks import TaskName
from tests.builders import NOTIFIED, REDCAP_TOKEN, at, config, hashed, project_table
from tests.fakes import Study
from tests.fakes import study as study_of
from tests.simulators.redcap import (
    Access,
    Event,
    Field,
    Project,
    Repeating,
    classic_study,
    enrol,
    fictional_phone,
    longitudinal_study,
    repeating_phone_study,
)
from worker.redcap import gateway as project_module
from worker.redcap.gateway import RedcapProject
from worker.redcap.schema import arm_of, is_repeating, missing_data_codes
from worker.steps import update_records as updater
from worker.steps.reconcile.compare import Comparison
from worker.steps.reconcile.recover import LedgerView
from worker.steps.reconcile.report import Report
from worker.steps.update_records import round as round_module
from worker.steps.update_records import update_records

pytestmark = pytest.mark.usefixtures("naps")

NOON = at("2026-05-04T19:00:00")  # in Los Angeles
SHOWN = "2026-05-04 12:00:00"


def enrolled(count: int = 3, project: Project | None = None, **changes: Any) -> Study:
    """A study with participants 1..count, whose numbers are fictional_phone(1..count)."""
    project = project or classic_study()
    enrol(project, count)
    return study_of(project, **changes)


def refuse_record(asthma: Study, record: str) -> None:
    """REDCap refuses rows of this record by name: it is locked."""
    asthma.project.lock_record(record)


def after_reading(asthma: Study, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something between the updater's export and its import."""
    real = RedcapProject.rows
    done: list[bool] = []

    def meddled(self: Any, *args: Any) -> Any:
        if not done:
            done.append(True)
            act()
        return real(self, *args)

    monkeypatch.setattr(RedcapProject, "rows", meddled)


class TestWriting:
    def test_a_lone_stop_costs_one_export_and_one_import(self) -> None:
        asthma = enrolled()
        asthma.text(fictional_phone(1))
        asthma.work()  # builds the index
        before = asthma.exports(), asthma.imports()
        event = asthma.text(fictional_phone(2), when=NOON)
        asthma.run(asthma.published.messages.popleft())
        update_records("asthma", asthma.services)
        assert asthma.value("2") == SHOWN
        assert asthma.state(event) == "updated"
        assert (asthma.exports() - before[0], asthma.imports() - before[1]) == (1, 1)

    def test_a_storm_of_stops_costs_a_handful_of_requests(self) -> None:
        asthma = enrolled(100)
        for number in range(1, 101):
            asthma.text(fictional_phone(number), when=NOON)
        asthma.work()
        assert {asthma.value(str(number)) for number in range(1, 101)} == {SHOWN}
        assert asthma.imports() == 1
        assert asthma.exports() <= 4
        assert len(asthma.mailer.sent) == 100

    def test_more_records_than_one_request_may_name_are_written_in_portions(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for place in (updater, round_module):
            monkeypatch.setattr(place, "MAX_RECORDS_PER_REQUEST", 10)
        asthma = enrolled(25)
        asthma.redcap.most_records_named = 10
        for number in range(1, 26):
            asthma.text(fictional_phone(number), when=NOON)
        asthma.work()
        assert {asthma.value(str(number)) for number in range(1, 26)} == {SHOWN}
        assert asthma.imports() == 3

    def test_a_number_on_more_records_than_one_request_may_name_is_read_and_written_in_portions(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for place in (updater, round_module, project_module):
            monkeypatch.setattr(place, "MAX_RECORDS_PER_REQUEST", 10)
        asthma = enrolled(0)
        asthma.redcap.most_records_named = 10
        for number in range(1, 26):
            asthma.project.add_record(str(number), mobile="650-555-0001")
        refuse_record(asthma, "17")
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        shown = {asthma.value(str(number)) for number in range(1, 26) if number != 17}
        assert (shown, asthma.value("17"), asthma.state(event)) == ({SHOWN}, "", "failed")
        named = [request.records for request in asthma.redcap.requests if request.kind != "metadata"]
        assert max(named) == 10

    def test_every_record_that_holds_the_number_is_written_and_one_mail_lists_them(self) -> None:
        asthma = enrolled(2)
        asthma.project.add_record("9", mobile="+1 650-555-0001")
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert (asthma.value("1"), asthma.value("9"), asthma.value("2")) == (SHOWN, SHOWN, "")
        assert asthma.entry(event).records == ("1", "9")
        assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) saved: records 1, 9"]

    def test_the_checkbox_is_ticked_and_unticked(self) -> None:
        asthma = enrolled(opt_out_checkbox="sms_opt_out")
        asthma.text(fictional_phone(1))
        asthma.work()
        assert asthma.project.value("1", "sms_opt_out___1") == "1"
        asthma.text(fictional_phone(1), "START")
        asthma.work()
        assert (asthma.value("1"), asthma.project.value("1", "sms_opt_out___1")) == ("", "0")

    def test_a_checkbox_that_is_not_configured_is_not_touched(self) -> None:
        asthma = enrolled()
        asthma.project.set_value("1", "sms_opt_out___1", "1")
        asthma.text(fictional_phone(1), "START")
        asthma.work()
        assert asthma.project.value("1", "sms_opt_out___1") == "1"

    def test_no_other_field_of_the_record_changes(self) -> None:
        asthma = enrolled(opt_out_checkbox="sms_opt_out")
        asthma.project.set_value("1", "texting_notes", "prefers mornings")
        names = ("first_name", "mobile", "texting_notes", "age")
        before = [asthma.project.value("1", name) for name in names]
        asthma.text(fictional_phone(1))
        asthma.work()
        asthma.text(fictional_phone(1), "START")
        asthma.work()
        assert [asthma.project.value("1", name) for name in names] == before

    def test_a_start_of_somebody_who_never_stopped_writes_nothing_and_tells_nobody(self) -> None:
        asthma = enrolled()
        event = asthma.text(fictional_phone(1), "START")
        asthma.work()
        assert asthma.state(event) == "already_current"
        assert (asthma.imports(), asthma.mailer.sent) == (0, [])

    def test_a_second_stop_keeps_the_time_of_the_first_and_tells_nobody(self) -> None:
        asthma = enrolled()
        asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        again = asthma.text(fictional_phone(1), when=NOON + timedelta(hours=3))
        asthma.work()
        assert asthma.value("1") == SHOWN
        assert asthma.state(again) == "already_current"
        assert len(asthma.mailer.sent) == 1

    def test_a_stop_after_a_start_that_came_late_shows_its_own_time(self) -> None:
        asthma = enrolled()
        for change, hours in (("STOP", 0), ("STOP", 6)):
            asthma.text(fictional_phone(1), change, when=NOON + timedelta(hours=hours))
            asthma.work()
        assert asthma.value("1") == SHOWN
        asthma.text(fictional_phone(1), "START", when=NOON + timedelta(hours=3))  # the missed one
        asthma.sweep_later()
        assert asthma.value("1") == "2026-05-04 18:00:00"

    def test_a_text_that_somebody_typed_is_left_alone_and_reviewed(self) -> None:
        asthma = enrolled(project=classic_study(opt_out_validation=""))
        asthma.project.set_value("1", "sms_opt_out_at", "told us on the phone")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert asthma.value("1") == "told us on the phone"
        assert asthma.state(event) == "needs_review"
        assert len(asthma.mailer.sent) == 1

    def test_nothing_pending_asks_redcap_nothing(self) -> None:
        asthma = enrolled()
        update_records("asthma", asthma.services)
        assert asthma.redcap.requests == []

    def test_a_project_that_was_taken_out_of_the_configuration_is_passed_over(self) -> None:
        asthma = enrolled()
        update_records("gone", asthma.services)
        assert asthma.redcap.requests == []

    def test_who_does_not_get_the_lock_leaves_the_work_to_its_holder(self) -> None:
        asthma = enrolled()
        event = asthma.text(fictional_phone(1))
        asthma.run(asthma.published.messages.popleft())
        asthma.redis.set(keys.lock("update:asthma"), "another worker")
        update_records("asthma", asthma.services)
        assert asthma.state(event) == "pending"
        later = [message for message in asthma.published.messages if message.task is TaskName.SWEEP]
        assert [message.delay_seconds > 0 for message in later] == [True]
        asthma.redis.delete(keys.lock("update:asthma"))
        asthma.work()
        assert asthma.state(event) == "updated"


class TestTimes:
    @pytest.mark.parametrize(
        ("validation", "shown"),
        [
            ("", "2026-05-04 12:00:00"),
            ("datetime_ymd", "2026-05-04 12:00"),
            ("datetime_mdy", "2026-05-04 12:00"),
            ("datetime_seconds_ymd", "2026-05-04 12:00:00"),
            ("datetime_seconds_dmy", "2026-05-04 12:00:00"),
        ],
    )
    def test_the_time_is_written_in_the_form_that_the_field_takes(self, validation: str, shown: str) -> None:
        asthma = enrolled(project=classic_study(opt_out_validation=validation))
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert (asthma.value("1"), asthma.state(event)) == (shown, "updated")
        again = asthma.text(fictional_phone(1), when=NOON + timedelta(minutes=5))
        asthma.work()
        assert (asthma.value("1"), asthma.state(again)) == (shown, "already_current")

    @pytest.mark.parametrize(
        ("zone", "when", "shown"),
        [
            ("America/Chicago", "2026-01-15T18:00:00", "2026-01-15 12:00:00"),
            ("America/Chicago", "2026-07-15T18:00:00", "2026-07-15 13:00:00"),
            # Clocks go back at 07:00 UTC on 1 November: 1:30 comes twice.
            ("America/Chicago", "2026-11-01T06:30:00", "2026-11-01 01:30:00"),
            ("America/Chicago", "2026-11-01T07:30:00", "2026-11-01 01:30:00"),
            # They go forward at 08:00 UTC on 8 March: 2:30 does not come.
            ("America/Chicago", "2026-03-08T07:59:59", "2026-03-08 01:59:59"),
            ("America/Chicago", "2026-03-08T08:00:00", "2026-03-08 03:00:00"),
            ("Europe/Berlin", "2026-12-31T23:30:00", "2027-01-01 00:30:00"),
            (None, "2026-05-04T19:00:00", "2026-05-04 12:00:00"),
        ],
    )
    def test_the_time_is_the_project_s_wall_clock(self, zone: str | None, when: str, shown: str) -> None:
        asthma = enrolled(time_zone=zone)
        asthma.text(fictional_phone(1), when=at(when))
        asthma.work()
        assert asthma.value("1") == shown

    def test_an_opt_out_in_the_doubled_hour_after_a_start_in_it_shows_its_own_time(self) -> None:
        asthma = enrolled(time_zone="America/Chicago")
        for change, when in (
            ("STOP", "2026-11-01T05:10:00"),  # 00:10
            ("START", "2026-11-01T06:20:00"),  # 01:20, the first
            ("STOP", "2026-11-01T07:40:00"),  # 01:40, the second
        ):
            asthma.text(fictional_phone(1), change, when=at(when))
            asthma.work()
        assert asthma.value("1") == "2026-11-01 01:40:00"


class TestShapesOfProjects:
    def test_a_longitudinal_project_is_written_at_the_configured_event_alone(self) -> None:
        sleep = longitudinal_study(opt_out_event="week_1_arm_1")
        asthma = enrolled(
            project=sleep, phone_event="enrolment_arm_1", opt_out_event="week_1_arm_1",
            opt_out_checkbox="sms_opt_out",
        )  # fmt: skip
        asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert sleep.value("1", "sms_opt_out_at", event="week_1_arm_1") == SHOWN
        assert sleep.value("1", "sms_opt_out___1", event="week_1_arm_1") == "1"
        asthma.text(fictional_phone(1), "START")
        asthma.work()
        assert sleep.value("1", "sms_opt_out_at", event="week_1_arm_1") == ""

    def test_without_a_phone_event_the_number_counts_at_any_event(self) -> None:
        sleep = longitudinal_study()
        asthma = enrolled(project=sleep, opt_out_event="enrolment_arm_1")
        asthma.text(fictional_phone(2), when=NOON)
        asthma.work()
        assert sleep.value("2", "sms_opt_out_at") == SHOWN

    def test_a_number_in_any_row_of_a_repeating_form_opts_the_record_out(self) -> None:
        family = repeating_phone_study()
        family.add_record("1", first_name="Participant 1")
        family.set_value("1", "mobile", "(650) 555-0111", instance=1)
        family.set_value("1", "mobile", "(650) 555-0112", instance=2)
        asthma = study_of(family)
        event = asthma.text("+16505550112", when=NOON)
        asthma.work()
        assert (asthma.value("1"), asthma.state(event)) == (SHOWN, "updated")

    def test_one_number_of_a_record_cannot_end_the_opt_out_of_another(self) -> None:
        asthma = enrolled(1, classic_study(phone_validation=""))
        asthma.project.set_value("1", "mobile", "650-555-0111 or 650-555-0112")
        stop = asthma.text("+16505550111", when=NOON)
        asthma.work()
        start = asthma.text("+16505550112", "START", when=NOON + timedelta(hours=1))
        asthma.work()
        assert asthma.value("1") == SHOWN
        assert (asthma.state(stop), asthma.state(start)) == ("updated", "superseded")
        own = asthma.text("+16505550111", "START", when=NOON + timedelta(hours=2))
        asthma.work()
        assert (asthma.value("1"), asthma.state(own)) == ("", "updated")

    def test_an_older_change_of_the_other_number_of_a_record_is_superseded_and_tells_nobody(self) -> None:
        asthma = enrolled(1, classic_study(phone_validation=""))
        asthma.project.set_value("1", "mobile", "650-555-0111 or 650-555-0112")
        asthma.text("+16505550111", when=NOON)
        asthma.work()
        older = asthma.text("+16505550112", "START", when=NOON - timedelta(hours=1))
        asthma.work()
        assert asthma.value("1") == SHOWN
        assert asthma.state(older) == "superseded"
        assert len(asthma.mailer.sent) == 1

    def test_records_of_all_data_access_groups_are_found(self) -> None:
        project = classic_study()
        project.dags = ("north", "south")
        project.add_record("1-1", dag="north", mobile="650-555-0001")
        project.add_record("2-1", dag="south", mobile="(650) 555-0001")
        asthma = study_of(project)
        asthma.text("+16505550001", when=NOON)
        asthma.work()
        assert [project.value(record, "sms_opt_out_at") for record in ("1-1", "2-1")] == [SHOWN, SHOWN]
        assert project.record_dags == {"1-1": "north", "2-1": "south"}


class TestMissingDataCodes:
    def coded(self, value: str, **changes: Any) -> Study:
        study = classic_study()
        study.missing_data_codes = {"NASK": "Not asked", "-99": "Unknown, and so on"}
        asthma = enrolled(2, study, **changes)
        study.set_value("1", "sms_opt_out_at", value)
        return asthma

    @pytest.mark.parametrize("code", ["NASK", "-99"])
    def test_a_stop_is_written_over_a_missing_data_code(self, code: str) -> None:
        asthma = self.coded(code)
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert (asthma.value("1"), asthma.state(event)) == (SHOWN, "updated")

    def test_a_start_leaves_a_missing_data_code_as_it_is(self) -> None:
        asthma = self.coded("NASK")
        event = asthma.text(fictional_phone(1), "START")
        asthma.work()
        assert (asthma.value("1"), asthma.state(event)) == ("NASK", "already_current")
        assert asthma.imports() == 0

    def test_what_is_no_code_of_the_project_is_the_study_s_own(self) -> None:
        asthma = self.coded("nask")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert (asthma.value("1"), asthma.state(event)) == ("nask", "needs_review")

    @pytest.mark.parametrize(
        ("stored", "codes"),
        [
            ("", []),
            (None, []),
            ("NASK, Not asked | ASKU, Asked but unknown", ["NASK", "ASKU"]),
            ("-99, a, b\n-98", ["-99", "-98"]),
        ],
    )
    def test_the_codes_are_read_from_the_project_s_settings(self, stored: Any, codes: list[str]) -> None:
        assert missing_data_codes({"missing_data_codes": stored}) == codes


def two_arms() -> Project:
    """Two arms of two visits each, with all forms."""
    study = classic_study("Two arms")
    names = ("first_arm_1", "second_arm_1", "first_arm_2", "second_arm_2")
    study.arm_names = {1: "Drug", 2: "Placebo"}
    return replace(
        study, events=tuple(Event(name, name, ("enrolment", "texting"), int(name[-1])) for name in names)
    )


class TestArms:
    def everyone(self, **changes: Any) -> Study:
        """Record 1 is in arm 1, record 2 in arm 2, record 3 in both; all hold the same number."""
        study = two_arms()
        for record, events in (
            ("1", ("second_arm_1",)),
            ("2", ("first_arm_2",)),
            ("3", ("first_arm_2", "second_arm_1")),
        ):
            for event in events:
                study.add_record(record, event=event, mobile="650-555-0001")
        return study_of(study, **{"opt_out_event": "first_arm_1", **changes})

    def test_a_record_of_another_arm_is_left_out_and_the_others_are_written(self) -> None:
        asthma = self.everyone()
        before = dict(asthma.project.records["2"])
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        shown = [asthma.project.value(record, "sms_opt_out_at", event="first_arm_1") for record in ("1", "3")]
        assert shown == [SHOWN, SHOWN]
        assert asthma.project.records["2"] == before
        assert asthma.state(event) == "failed"
        assert asthma.entry(event).reason == (
            "record 2: it is not in arm 1, where opt_out_event first_arm_1 is; nothing was written"
        )
        assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) could NOT be saved: records 1, 2, 3"]

    def test_it_is_told_once_and_the_nightly_comparison_finds_nothing_to_correct(self) -> None:
        asthma = self.everyone()
        asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        for _ in range(2):
            asthma.clock.ahead += timedelta(days=1)
            report, view = Report(project="asthma"), LedgerView("asthma", asthma.services)
            Comparison(report, asthma.services, view, lambda _stage, _number: None).run()
            asthma.work()
            assert (report.records_corrected, report.refused, report.still_pending) == (0, [], 0)
        assert len(asthma.mailer.sent) == 1

    def test_it_is_written_once_it_is_in_the_arm(self) -> None:
        asthma = self.everyone()
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        asthma.project.add_record("2", event="second_arm_1", first_name="Participant 2")
        asthma.ledger.reopen("asthma", event.event_id, now=asthma.clock())
        asthma.published(TaskName.LOOKUP, "asthma", event.event_id)
        asthma.work()
        assert asthma.project.value("2", "sms_opt_out_at", event="first_arm_1") == SHOWN
        assert asthma.state(event) == "updated"

    def test_a_start_has_nothing_to_clear_there(self) -> None:
        asthma = self.everyone()
        event = asthma.text(fictional_phone(1), "START")
        asthma.work()
        assert (asthma.state(event), asthma.imports()) == ("already_current", 0)

    def test_an_arm_is_known_by_the_event_s_name_where_redcap_does_not_tell_it(self) -> None:
        assert [arm_of(name) for name in ("first_arm_1", "first_arm_12b", "first")] == ["1", "12", ""]

    def test_a_phone_event_in_another_arm_is_a_problem_and_its_stops_are_kept(self) -> None:
        asthma = self.everyone(phone_event="first_arm_2")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert (asthma.state(event), asthma.problem()["problem"]) == ("received", "events_in_two_arms")
        assert asthma.imports() == 0


class TestRefusals:
    def test_one_refused_record_does_not_keep_the_others_from_being_written(self) -> None:
        asthma = enrolled(5)
        refuse_record(asthma, "3")
        events = [asthma.text(fictional_phone(number), when=NOON) for number in range(1, 6)]
        asthma.work()
        assert [asthma.state(event) for event in events] == ["updated"] * 2 + ["failed"] + ["updated"] * 2
        assert [asthma.value(str(n)) for n in range(1, 6)] == [SHOWN, SHOWN, "", SHOWN, SHOWN]
        assert asthma.imports() == 2

    def test_a_refused_record_is_told_with_redcap_s_reason_but_without_the_value(self) -> None:
        asthma = enrolled(2)
        refuse_record(asthma, "1")
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        reason = asthma.entry(event).reason
        assert reason.startswith("record 1: sms_opt_out_at: ")
        assert "locked" in reason.lower()
        assert "2026-05-04" not in reason
        assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) could NOT be saved: record 1"]
        assert asthma.pending() == 0

    def test_a_failed_event_that_is_replayed_after_the_mend_is_told_as_saved(self) -> None:
        asthma = enrolled(2)
        refuse_record(asthma, "1")
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        asthma.project.locked_records.clear()
        asthma.ledger.reopen("asthma", event.event_id, now=asthma.clock())
        asthma.published(TaskName.LOOKUP, "asthma", event.event_id)
        asthma.work()
        assert asthma.state(event) == "updated"
        assert asthma.mailer.subjects[1:] == ["[asthma] Opt-out (STOP) saved: record 1"]

    def test_of_two_records_of_one_number_the_good_one_is_written_and_the_event_fails(self) -> None:
        asthma = enrolled(1)
        asthma.project.add_record("9", mobile="650.555.0001")
        refuse_record(asthma, "9")
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert (asthma.value("1"), asthma.value("9"), asthma.state(event)) == (SHOWN, "", "failed")
        assert "record 9" in asthma.entry(event).reason

    def test_a_refusal_that_names_no_record_is_narrowed_down_by_halving(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.redcap.responses.row_reasons", lambda _message, _sent: {})
        asthma = enrolled(8)
        refuse_record(asthma, "6")
        events = [asthma.text(fictional_phone(number), when=NOON) for number in range(1, 9)]
        asthma.work()
        failed = [number for number, event in enumerate(events, 1) if asthma.state(event) == "failed"]
        assert failed == [6]
        assert [asthma.value(str(n)) for n in range(1, 9)] == [SHOWN] * 5 + [""] + [SHOWN] * 2
        assert asthma.imports() <= 8

    def test_when_every_record_is_refused_without_a_name_it_is_not_tried_one_by_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.redcap.responses.row_reasons", lambda _message, _sent: {})
        asthma = enrolled(64)
        for number in range(1, 65):
            refuse_record(asthma, str(number))
        events = [asthma.text(fictional_phone(number)) for number in range(1, 65)]
        asthma.work()
        assert {asthma.state(event) for event in events} == {"failed"}
        assert asthma.imports() < 20
        assert asthma.problem()["problem"] == "redcap_rejected"

    @pytest.mark.parametrize("locked", [range(1, 7), range(1, 12), [1, 2, 3, 4, 5, 6, 12], range(2, 13)])
    def test_many_records_refused_without_a_name_do_not_keep_the_others_from_being_written(
        self, monkeypatch: pytest.MonkeyPatch, locked: Sequence[int]
    ) -> None:
        monkeypatch.setattr("worker.redcap.responses.row_reasons", lambda _message, _sent: {})
        asthma = enrolled(12)
        for number in locked:
            refuse_record(asthma, str(number))
        events = {number: asthma.text(fictional_phone(number), when=NOON) for number in range(1, 13)}
        asthma.work()
        states = {number: asthma.state(event) for number, event in events.items()}
        assert states == {number: "failed" if number in locked else "updated" for number in events}
        assert {asthma.value(str(number)) for number in set(events) - set(locked)} == {SHOWN}
        assert asthma.imports() < 2 * len(events)
        assert asthma.problem() == {}

    def test_refusals_of_single_records_for_different_reasons_are_no_refusal_of_the_project(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asthma = enrolled(20)
        real = RedcapProject.write

        def strict(self: RedcapProject, rows: Sequence[dict[str, str]]) -> None:
            for row in rows:
                if row["record_id"] != "13":
                    reason = "form is locked" if int(row["record_id"]) % 2 else "record is locked"
                    raise RedcapRejected("redcap_rejected", f"status 400: {reason}")
            real(self, rows)

        monkeypatch.setattr(RedcapProject, "write", strict)
        events = [asthma.text(fictional_phone(number), when=NOON) for number in range(1, 21)]
        asthma.work()
        assert [asthma.state(event) for event in events].count("failed") == 19
        assert asthma.state(events[12]) == "updated"

    def test_a_reason_that_differs_only_by_the_record_s_own_id_is_the_same_reason(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asthma = enrolled(64)
        tries: list[int] = []

        def closed(_self: RedcapProject, rows: Sequence[dict[str, str]]) -> None:
            tries.append(len(rows))
            raise RedcapRejected(
                "redcap_rejected", f"record {rows[0]['record_id']}: the project takes no data"
            )

        monkeypatch.setattr(RedcapProject, "write", closed)
        events = [asthma.text(fictional_phone(number), when=NOON) for number in range(1, 65)]
        asthma.work()
        assert {asthma.state(event) for event in events} == {"failed"}
        assert len(tries) < 20

    def test_a_refused_token_fails_every_pending_event_and_shows_as_a_problem(self) -> None:
        asthma = enrolled(3)
        asthma.text(fictional_phone(3))
        asthma.work()
        asthma.mailer.sent.clear()
        events = [asthma.text(fictional_phone(number)) for number in (1, 2)]
        asthma.redcap.revoked.add(REDCAP_TOKEN)
        asthma.work()
        assert [asthma.state(event) for event in events] == ["failed", "failed"]
        assert asthma.entry(events[0]).reason.startswith("redcap_forbidden")
        assert asthma.problem()["problem"] == "redcap_forbidden"
        assert asthma.pending() == 0
        assert len(asthma.mailer.sent) == 2

    def test_a_field_that_was_renamed_in_redcap_is_a_problem_that_names_the_key_and_keeps_the_event(
        self,
    ) -> None:
        asthma = enrolled(2)
        asthma.project.change_field("sms_opt_out_at", name="opted_out_at")
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert asthma.state(event) == "received"
        assert "opt_out_field" in asthma.problem()["detail"]
        assert asthma.problem()["problem"] == "redcap_no_such_field"
        asthma.project.change_field("opted_out_at", name="sms_opt_out_at")
        asthma.sweep_later()
        asthma.sweep_later()
        assert (asthma.state(event), asthma.value("1")) == ("updated", SHOWN)


class TestRememberedStructure:
    """REDCap's project changes within the hour for which its structure is remembered."""

    def remembered(self, project: Project | None = None, **changes: Any) -> Study:
        """A study whose structure and phones were read for an earlier text."""
        asthma = enrolled(30, project, **changes)
        asthma.text(fictional_phone(30))
        asthma.work()
        asthma.mailer.sent.clear()
        return asthma

    def two_events(self) -> Study:
        events = {"phone_event": "enrolment_arm_1", "opt_out_event": "enrolment_arm_1"}
        return self.remembered(longitudinal_study(), **events)

    @pytest.mark.parametrize("unknown_phone", [False, True])
    def test_a_renamed_event_keeps_the_stop_until_the_configuration_names_it(
        self, unknown_phone: bool
    ) -> None:
        asthma = self.two_events()
        asthma.project.rename_event("enrolment_arm_1", "baseline_arm_1")
        if unknown_phone:
            asthma.project.add_record("99", event="baseline_arm_1", mobile="650-555-0099")
        event = asthma.text(fictional_phone(99 if unknown_phone else 1), when=NOON)
        asthma.work()
        assert asthma.state(event) in {"received", "pending"}
        assert asthma.problem()["problem"] == "no_such_event"
        assert asthma.mailer.sent == []
        asthma.project.rename_event("baseline_arm_1", "enrolment_arm_1")
        for _ in range(3):
            asthma.sweep_later()
        assert asthma.state(event) == "updated"
        assert asthma.value("99" if unknown_phone else "1") == SHOWN

    @pytest.mark.parametrize("phone", [1, 99])
    def test_a_renamed_record_id_field_is_used_at_once(self, phone: int) -> None:
        asthma = self.remembered()
        asthma.project.add_record("99", mobile="650-555-0099")
        asthma.project.change_field("record_id", name="study_id")
        event = asthma.text(fictional_phone(phone), when=NOON)
        asthma.work()
        assert (asthma.state(event), asthma.value(str(phone))) == ("updated", SHOWN)
        assert asthma.problem() == {}

    def test_seconds_that_became_minutes_are_written_as_minutes(self) -> None:
        asthma = self.remembered()
        asthma.project.change_field("sms_opt_out_at", validation="datetime_ymd")
        events = [asthma.text(fictional_phone(number), when=NOON) for number in (1, 2)]
        asthma.work()
        assert [asthma.state(event) for event in events] == ["updated", "updated"]
        assert (asthma.value("1"), asthma.value("2")) == (SHOWN[:-3], SHOWN[:-3])
        assert len(asthma.mailer.sent) == 2

    def test_a_rejection_without_a_change_of_the_structure_still_ends_as_failed(self) -> None:
        asthma = self.remembered()
        refuse_record(asthma, "1")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert asthma.state(event) == "failed"

    def test_many_unknown_numbers_cost_one_reading_of_the_structure(self) -> None:
        asthma = self.two_events()
        now = asthma.clock() - asthma.clock.ahead
        events = [asthma.text(f"+165055590{number:02}", received=now) for number in range(20)]
        before = asthma.redcap.count(content="metadata")
        asthma.work()
        assert {asthma.state(event) for event in events} == {"no_matching_record"}
        assert asthma.redcap.count(content="metadata") == before + 1


class TestProjectProblems:
    def test_a_date_only_field_is_never_written_and_its_stops_are_kept_until_it_is_mended(self) -> None:
        asthma = enrolled(3, classic_study(opt_out_validation="date_ymd"))
        events = [asthma.text(fictional_phone(number), when=NOON) for number in (1, 2)]
        asthma.work()
        assert asthma.problem()["problem"] == "opt_out_field_holds_no_time"
        assert "datetime_seconds_ymd" in asthma.problem()["detail"]
        for _ in range(5):
            asthma.sweep_later()
        assert (asthma.imports(), asthma.mailer.sent) == (0, [])
        assert {asthma.state(event) for event in events} <= {"received", "pending"}
        asthma.project.change_field("sms_opt_out_at", validation="datetime_seconds_ymd")
        asthma.sweep_later()  # sees that it is mended
        asthma.sweep_later()  # publishes what was kept
        assert [asthma.state(event) for event in events] == ["updated", "updated"]
        assert (asthma.value("1"), asthma.value("2")) == (SHOWN, SHOWN)
        assert asthma.problem() == {}
        assert len(asthma.mailer.sent) == 2

    def test_a_field_that_becomes_date_only_between_two_stops_keeps_the_second(self) -> None:
        asthma = enrolled(2)
        asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        asthma.project.change_field("sms_opt_out_at", validation="date_ymd")
        event = asthma.text(fictional_phone(2), when=NOON)
        asthma.work()
        assert asthma.state(event) == "pending"
        assert asthma.problem()["problem"] == "opt_out_field_holds_no_time"
        asthma.project.change_field("sms_opt_out_at", validation="datetime_ymd")
        asthma.sweep_later()
        asthma.sweep_later()
        assert (asthma.state(event), asthma.value("2")) == ("updated", "2026-05-04 12:00")

    def test_a_problem_of_one_project_does_not_hold_up_another(self) -> None:
        broken, fine = classic_study(opt_out_validation="date_ymd"), classic_study("Sleep", project_id=102)
        enrol(broken, 1)
        enrol(fine, 1)
        both = Study(
            config({
                "asthma": project_table(),
                "sleep": project_table(redcap_token="env:OTHER_TOKEN"),
            }),
            {REDCAP_TOKEN: broken, "B" * 32: fine},
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("OTHER_TOKEN", "B" * 32)
            events = [both.text(fictional_phone(1), project=name) for name in ("asthma", "sleep")]
            both.work()
        assert [both.state(event) for event in events] == ["received", "updated"]
        assert fine.value("1", "sms_opt_out_at") != ""

    def test_a_missing_token_is_a_problem_that_names_its_reference(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asthma = enrolled(1)
        monkeypatch.delenv("TEST_REDCAP_TOKEN")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert asthma.state(event) == "received"
        assert asthma.problem()["problem"] == "secret_missing"
        assert "env:TEST_REDCAP_TOKEN" in asthma.problem()["detail"]

    def test_a_field_hidden_from_the_token_is_a_problem_not_an_empty_field(self) -> None:
        asthma = enrolled(1)
        asthma.project.rights.forms["texting"] = Access.NONE
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert asthma.state(event) == "received"
        assert asthma.problem()["problem"] == "redcap_hides_field"
        assert asthma.imports() == 0

    @pytest.mark.parametrize(
        ("repeating", "key"), [(Repeating("visits"), "opt_out_checkbox"), (Repeating(""), "opt_out_field")]
    )
    def test_a_checkbox_on_an_instrument_that_repeats_is_a_problem_and_its_stops_are_kept(
        self, repeating: Repeating, key: str
    ) -> None:
        study = classic_study()
        study.fields += (Field("opted_out", "visits", kind="checkbox", choices=(("1", "Yes"),)),)
        study.repeating = (repeating,)
        asthma = enrolled(1, replace(study), opt_out_checkbox="opted_out")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert (asthma.state(event), asthma.problem()["problem"]) == ("received", "opt_out_field_repeats")
        assert asthma.problem()["detail"].startswith(f"{key}: ")
        assert asthma.imports() == 0

    @pytest.mark.parametrize("form", [None, ""])
    def test_a_row_without_a_form_says_that_the_whole_event_repeats(self, form: str | None) -> None:
        rows = [{"event_name": "week_1_arm_1", "form_name": form, "custom_form_label": ""}]
        assert is_repeating(rows, "texting", "week_1_arm_1")
        assert not is_repeating(rows, "texting", "enrolment_arm_1")

    def test_hashed_record_ids_are_a_problem_and_the_stops_are_kept_until_it_is_mended(self) -> None:
        study = classic_study()
        study.change_field("record_id", identifier=True)
        study.change_field("mobile", identifier=False)
        asthma = enrolled(3, study)
        study.rights.forms["enrolment"] = Access.REMOVE_IDENTIFIERS
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert (asthma.state(event), asthma.problem()["problem"]) == ("received", "redcap_hashes_record_ids")
        assert "Full Data Set" in asthma.problem()["detail"]
        for _ in range(3):
            asthma.sweep_later()
        assert asthma.problem() != {}
        assert (asthma.imports(), set(study.records), asthma.mailer.sent) == (0, {"1", "2", "3"}, [])
        study.rights.forms.clear()
        asthma.sweep_later()
        asthma.sweep_later()
        assert (asthma.state(event), asthma.value("1"), asthma.problem()) == ("updated", SHOWN, {})

    def test_record_ids_that_become_hashed_keep_the_stop_of_a_record_that_is_known(self) -> None:
        study = classic_study()
        study.change_field("record_id", identifier=True)
        study.change_field("mobile", identifier=False)
        asthma = enrolled(3, study)
        asthma.text(fictional_phone(3))
        asthma.work()
        study.rights.forms["enrolment"] = Access.REMOVE_IDENTIFIERS
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert (asthma.state(event), asthma.problem()["problem"]) == ("pending", "redcap_hashes_record_ids")

    def test_record_ids_that_only_look_like_hashes_are_taken_as_they_are(self) -> None:
        study = classic_study()
        study.add_record("0123456789abcdef" * 2, mobile="650-555-0001")
        asthma = study_of(study)
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert (asthma.value("0123456789abcdef" * 2), asthma.state(event)) == (SHOWN, "updated")


class TestOutages:
    def test_an_outage_leaves_the_phone_pending_and_a_retry_is_asked_for_soon(self) -> None:
        asthma = enrolled(2)
        asthma.text(fictional_phone(2))
        asthma.work()
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.redcap.faults.add("http_503", times=None)
        asthma.run(asthma.published.messages.popleft())
        asthma.published.messages.clear()
        update_records("asthma", asthma.services)
        assert asthma.state(event) == "pending"
        assert [(m.task, 5 <= m.delay_seconds < 7.3) for m in asthma.published.messages] == [
            (TaskName.SWEEP, True)
        ]
        asthma.redcap.faults.clear()
        asthma.sweep_later()
        assert (asthma.state(event), asthma.value("1")) == ("updated", SHOWN)
        assert len(asthma.mailer.sent) == 2

    def test_an_answer_that_was_lost_after_the_write_is_told_once(self) -> None:
        asthma = enrolled(2)
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.redcap.faults.add("reset", kind="import", times=3, after_commit=True)
        asthma.work()
        assert (asthma.value("1"), asthma.state(event)) == (SHOWN, "pending")
        asthma.sweep_later()
        assert asthma.state(event) == "updated"
        assert len(asthma.mailer.sent) == 1

    def test_a_crash_between_the_import_and_its_settling_is_told_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asthma = enrolled(2)
        event = asthma.text(fictional_phone(1), when=NOON)

        def crash(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(round_module, "complete_events", crash)
            with pytest.raises(KeyboardInterrupt):
                asthma.work()
        assert (asthma.value("1"), asthma.state(event)) == (SHOWN, "pending")
        asthma.sweep_later()
        assert asthma.state(event) == "updated"
        assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) saved: record 1"]
        assert asthma.imports() == 1

    def test_a_written_change_that_was_overtaken_in_a_crash_is_told_before_the_newer_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asthma = enrolled(2)
        stop = asthma.text(fictional_phone(1), when=NOON)

        def crash(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(round_module, "complete_events", crash)
            with pytest.raises(KeyboardInterrupt):
                asthma.work()
        start = asthma.text(fictional_phone(1), "START", when=NOON + timedelta(minutes=1))
        asthma.sweep_later()
        assert asthma.value("1") == ""
        assert (asthma.state(stop), asthma.state(start)) == ("updated", "updated")
        assert sorted(asthma.mailer.subjects) == [
            "[asthma] Opt-in (START) saved: record 1",
            "[asthma] Opt-out (STOP) saved: record 1",
        ]

    def test_a_change_that_was_overtaken_before_its_write_reached_redcap_tells_nobody(self) -> None:
        asthma = enrolled(2)
        stop = asthma.text(fictional_phone(1), when=NOON)
        asthma.redcap.faults.add("http_503", kind="import", times=3)
        asthma.work()
        assert asthma.state(stop) == "pending"
        start = asthma.text(fictional_phone(1), "START", when=NOON + timedelta(minutes=1))
        asthma.sweep_later()
        assert (asthma.state(stop), asthma.state(start)) == ("superseded", "already_current")
        assert asthma.mailer.sent == []

    def test_an_earlier_opt_out_of_another_sender_takes_the_place_of_a_write_that_had_begun(self) -> None:
        asthma = enrolled(2)
        later = asthma.text(fictional_phone(1), when=NOON + timedelta(minutes=1))
        asthma.redcap.faults.add("http_503", kind="import", times=3)
        asthma.work()
        assert (asthma.state(later), asthma.value("1")) == ("pending", "")
        earlier = asthma.text(fictional_phone(1), when=NOON, scope="number:other")
        asthma.sweep_later()
        assert (asthma.state(earlier), asthma.value("1"), asthma.pending()) == ("updated", SHOWN, 0)
        assert asthma.state(later) in {"updated", "already_current"}

    def test_an_overtaken_write_to_a_further_record_that_never_reached_redcap_is_not_mailed(self) -> None:
        """Record 1 shows the STOP, and its mail is out; record 77 has the number since then, and never shows it."""
        asthma = enrolled(3)
        asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        asthma.project.add_record("77", mobile="650-555-0001")
        asthma.redcap.faults.add("http_503", kind="import", times=3)
        asthma.clock.ahead = timedelta(seconds=11)
        asthma.run(asthma.later[0])
        asthma.work()
        assert (asthma.value("1"), asthma.value("77"), asthma.pending()) == (SHOWN, "", 1)
        asthma.text(fictional_phone(1), "START", when=NOON + timedelta(minutes=1))
        asthma.sweep_later()
        assert (asthma.value("1"), asthma.value("77"), asthma.pending()) == ("", "", 0)
        stops = [subject for subject in asthma.mailer.subjects if "STOP" in subject]
        assert stops == ["[asthma] Opt-out (STOP) saved: record 1"]

    def test_a_change_that_comes_while_the_older_one_is_written_is_written_next(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asthma = enrolled(2)
        events = [asthma.text(fictional_phone(1), when=NOON)]
        after_reading(
            asthma, monkeypatch,
            lambda: events.append(asthma.text(fictional_phone(1), "START", when=NOON + timedelta(minutes=1))),
        )  # fmt: skip
        asthma.work()
        assert asthma.value("1") == ""
        assert asthma.state(events[1]) in {"updated", "already_current"}
        assert asthma.pending() == 0

    def test_what_could_not_be_written_for_a_day_fails_and_is_told(self) -> None:
        asthma = enrolled(2)
        asthma.text(fictional_phone(2))
        asthma.work()
        asthma.mailer.sent.clear()
        asthma.redcap.faults.add("http_503", times=None)
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert asthma.state(event) == "pending"
        asthma.clock.ahead += timedelta(hours=25)
        asthma.end_rests()
        fresh = asthma.text(fictional_phone(2), "START")
        asthma.work()
        assert (asthma.state(event), asthma.state(fresh)) == ("failed", "pending")
        assert asthma.entry(event).reason.endswith("for a day")
        assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) could NOT be saved: record 1"]

    def test_an_old_change_that_has_to_be_written_anew_outlives_a_short_outage(self) -> None:
        """It counts how long REDCap has not taken it, not how long ago the participant texted."""
        asthma = enrolled(1)
        event = asthma.text(fictional_phone(1))
        asthma.work()
        asthma.mailer.sent.clear()
        asthma.clock.ahead += timedelta(days=30)
        asthma.project.set_value("1", "sms_opt_out_at", "")  # and the nightly run sees it
        asthma.ledger.require_update("asthma", [event.phone_hash], now=asthma.clock())
        asthma.redcap.faults.add("http_503", times=3)
        update_records("asthma", asthma.services)
        assert (asthma.state(event), asthma.pending(), asthma.mailer.sent) == ("updated", 1, [])
        asthma.sweep_later()
        assert (bool(asthma.value()), asthma.pending()) == (True, 0)

    @pytest.mark.parametrize(
        "fault", ["login_page", "maintenance_page", "count_zero", "empty_200", "tabs_page"]
    )
    def test_an_answer_that_only_looks_like_one_is_never_taken_for_a_write(self, fault: str) -> None:
        asthma = enrolled(1)
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.redcap.faults.add(fault, kind="import", times=None)
        asthma.work()
        assert (asthma.state(event), asthma.value("1"), asthma.mailer.sent) == ("pending", "", [])
        asthma.redcap.faults.clear()
        asthma.sweep_later()
        assert (asthma.state(event), asthma.value("1")) == ("updated", SHOWN)


class TestTouchesNothingElse:
    def test_a_record_that_was_deleted_since_is_not_created_again(self) -> None:
        asthma = enrolled(3)
        asthma.text(fictional_phone(3))
        asthma.work()  # the index knows record 1 from now on
        asthma.project.delete_record("1")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert "1" not in asthma.project.records
        assert asthma.state(event) == "no_matching_record"
        assert len(asthma.mailer.sent) == 1

    def test_a_record_whose_number_has_changed_since_is_left_alone(self) -> None:
        asthma = enrolled(3)
        asthma.text(fictional_phone(3))
        asthma.work()
        asthma.project.set_value("1", "mobile", "(650) 555-0999")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert (asthma.value("1"), asthma.state(event)) == ("", "no_matching_record")

    def test_a_number_that_moved_to_another_record_is_written_there(self) -> None:
        asthma = enrolled(3)
        asthma.text(fictional_phone(3))
        asthma.work()
        asthma.project.set_value("1", "mobile", "(650) 555-0999")
        asthma.project.set_value("2", "mobile", "650-555-0001")
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert (asthma.value("1"), asthma.value("2"), asthma.state(event)) == ("", SHOWN, "updated")

    def test_a_record_that_came_after_the_index_was_built_is_found_all_the_same(self) -> None:
        asthma = enrolled(3)
        asthma.text(fictional_phone(3))
        asthma.work()
        asthma.project.add_record("77", mobile="650-555-0001")
        event = asthma.text(fictional_phone(1), when=NOON)
        asthma.work()
        assert (asthma.state(event), asthma.value("1")) == ("updated", SHOWN)
        asthma.clock.ahead = timedelta(seconds=11)
        asthma.run(asthma.later[0])
        asthma.work()
        assert asthma.value("77") == SHOWN

    def test_a_second_look_at_the_project_waits_for_its_pause(self) -> None:
        asthma = enrolled(3)
        asthma.text(fictional_phone(3))
        asthma.work()
        for number in (1, 2):
            asthma.text(fictional_phone(number))
            asthma.work()
        assert [(message.task, 10 < message.delay_seconds < 11) for message in asthma.later] == [
            (TaskName.UPDATE, True)
        ]

    def test_a_phone_whose_status_was_erased_leaves_the_pending_set(self) -> None:
        asthma = enrolled(1)
        asthma.ledger.require_update("asthma", [hashed("+16505550001")], now=asthma.clock())
        update_records("asthma", asthma.services)
        assert (asthma.pending(), asthma.imports()) == (0, 0)

    def test_every_import_asks_for_overwriting_and_names_only_configured_columns(self) -> None:
        asthma = enrolled(4, opt_out_checkbox="sms_opt_out")
        asthma.project.set_value("2", "sms_opt_out___1", "1")
        sent: list[list[dict[str, str]]] = []
        real = asthma.redcap.answer

        def watching(client: str, pairs: list[tuple[str, str]]) -> Any:
            form = dict(pairs)
            if "data" in form:
                assert form["overwriteBehavior"] == "overwrite"
                sent.append(json.loads(form["data"]))
            return real(client, pairs)

        asthma.redcap.answer = watching  # type: ignore[method-assign]
        for number in range(1, 5):
            asthma.text(fictional_phone(number))
        asthma.work()
        columns = {tuple(row) for rows in sent for row in rows}
        assert columns == {
            ("record_id", "sms_opt_out_at", "sms_opt_out___1"),
            ("record_id", "sms_opt_out_at"),
        }
        assert all(len({tuple(row) for row in rows}) == 1 for rows in sent)


class TestTelling:
    def test_a_project_without_addressees_is_told_nothing(self) -> None:
        asthma = enrolled(1, notify=[])
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert (asthma.state(event), asthma.mailer.sent) == ("updated", [])
        assert asthma.entry(event).notice is None

    def test_a_number_that_no_record_holds_is_told_only_where_that_is_asked_for(self) -> None:
        silent, asking = enrolled(1), enrolled(1, notify_unmatched=True)
        for asthma in (silent, asking):
            event = asthma.text("+16505559999")
            asthma.work()
            assert asthma.state(event) == "no_matching_record"
        assert silent.mailer.sent == []
        assert asking.mailer.subjects == ["[asthma] Opt-out (STOP) from a number that no record holds"]

    def test_the_mail_goes_to_the_configured_addresses(self) -> None:
        asthma = enrolled(1, notify=[NOTIFIED, "nurse@example.edu"])
        asthma.text(fictional_phone(1))
        asthma.work()
        assert asthma.mailer.sent[0]["To"] == f"{NOTIFIED}, nurse@example.edu"

    def test_each_event_ends_with_the_notice_of_its_own_change(self) -> None:
        asthma = enrolled(2)
        stop = asthma.text(fictional_phone(1))
        asthma.work()
        start = asthma.text(fictional_phone(1), "START")
        asthma.work()
        noticed = [
            asthma.redis.hget(keys.event("asthma", event.event_id), "noticed") for event in (stop, start)
        ]
        assert noticed == ["saved ", "saved "]


def test_an_index_that_another_worker_is_refreshing_puts_the_update_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asthma = enrolled(1)
    event = asthma.text(fictional_phone(1))

    def busy(*_: object, **__: object) -> None:
        raise RedcapUnavailable("index_busy", "another worker is refreshing the index")

    with monkeypatch.context() as patched:
        patched.setattr("worker.redcap.phone_index.PhoneIndex.refresh", busy)
        asthma.work()
    assert asthma.state(event) == "received"
    asthma.sweep_later()
    assert asthma.state(event) == "updated"
