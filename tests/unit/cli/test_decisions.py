"""`optout record` and `optout review`: what staff decide, written, mailed and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from click.testing import Result

from shared.domain.events import Change
from shared.redis_client import NotReplicated
from tests.builders import hashed
from tests.fakes import Study, command_line, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone, fictional_phone_as_typed

pytestmark = pytest.mark.usefixtures("naps")
Run = Callable[..., Result]


@pytest.fixture
def asthma() -> Study:
    project = classic_study(opt_out_validation="")
    enrol(project, 3)
    return study(project, opt_out_checkbox="sms_opt_out")


@pytest.fixture
def run(asthma: Study, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `optout ARGS` over the study's services, then the tasks that it published."""
    optout = command_line(asthma, monkeypatch)

    def invoke(*args: str) -> Result:
        result = optout(*args)
        asthma.work()
        return result

    return invoke


def shown(asthma: Study, record: str = "1") -> tuple[str, str]:
    return asthma.value(record), asthma.project.value(record, "sms_opt_out___1")


@pytest.mark.parametrize("place", ["event_recorder", "event_progress"])
def test_a_decision_that_no_replica_confirms_is_an_error(
    asthma: Study, run: Run, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def unconfirmed(_redis: object, pipe: Any) -> list[object]:
        pipe.execute()
        raise NotReplicated

    event = asthma.text(fictional_phone(1), Change.UNCLEAR)
    asthma.work()
    monkeypatch.setattr(f"shared.ledger.events.{place}.execute_replicated", unconfirmed)
    decide = {
        "event_recorder": ("record", "asthma", "2", "stop", "--reason", "phoned"),
        "event_progress": ("review", event.event_id, "stop", "--reason", "read"),
    }
    result = run(*decide[place])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: no replica confirmed the change in time; repeat the command when")


class TestRecord:
    def test_an_opt_out_by_phone_is_written_mailed_and_kept_with_who_and_why(
        self, asthma: Study, run: Run
    ) -> None:
        result = run(
            "record", "asthma", "1", "stop", "--reason", "phoned", "--at", "2026-05-04 12:00", "--by", "kim"
        )
        assert result.exit_code == 0, result.output
        assert shown(asthma) == ("2026-05-04 12:00:00", "1")
        [entry] = asthma.ledger.entries("asthma")
        assert (entry.source, entry.change, entry.state, entry.records) == (
            "staff",
            "STOP",
            "updated",
            ("1",),
        )
        assert (entry.decided_by, entry.decision) == ("kim", "phoned")
        assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) saved: record 1"]
        text = asthma.mailer.sent[0].as_string()
        assert "by kim" in text
        assert "may go on delivering" in " ".join(text.split())

    def test_by_default_the_user_of_the_shell_decided(
        self, asthma: Study, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPTOUT_USER", "kim")
        run("record", "asthma", "1", "stop", "--reason", "phoned")
        assert [entry.decided_by for entry in asthma.ledger.entries("asthma")] == ["kim"]

    def test_a_repeated_one_changes_and_mails_nothing(self, asthma: Study, run: Run) -> None:
        results = [run("record", "asthma", "1", "stop", "--reason", "phoned") for _ in range(2)]
        assert [result.exit_code for result in results] == [0, 0]
        assert "recorded already" in results[1].output
        assert (len(list(asthma.ledger.entries("asthma"))), len(asthma.mailer.sent)) == (1, 1)

    def test_a_start_by_text_does_not_end_it(self, asthma: Study, run: Run) -> None:
        run("record", "asthma", "1", "stop", "--reason", "phoned")
        before = shown(asthma)
        start = asthma.text(fictional_phone(1), "START")
        asthma.work()
        assert (shown(asthma), asthma.state(start)) == (before, "needs_review")

    def test_another_number_changes_nothing(self, asthma: Study, run: Run) -> None:
        run("record", "asthma", "1", "stop", "--reason", "phoned")
        before = shown(asthma)
        asthma.project.set_value("1", "mobile", fictional_phone_as_typed(9))
        asthma.text(fictional_phone(9), "START")
        asthma.work()
        assert shown(asthma) == before

    def test_a_new_consent_ends_every_opt_out_of_the_record_and_warns(self, asthma: Study, run: Run) -> None:
        asthma.text(fictional_phone(1))
        asthma.work()
        run("record", "asthma", "1", "stop", "--reason", "phoned")
        asthma.clock.ahead += timedelta(seconds=2)
        result = run("record", "asthma", "1", "start", "--reason", "signed again")
        assert (result.exit_code, shown(asthma)) == (0, ("", "0"))
        assert "goes on blocking" in result.stderr
        asthma.ledger.require_update("asthma", [hashed(fictional_phone(1))], now=asthma.clock())
        asthma.sweep_later()
        assert shown(asthma) == ("", "0")
        asthma.text(fictional_phone(1))
        asthma.work()
        assert shown(asthma)[1] == "1"

    def test_a_new_consent_ends_a_person_s_time_and_leaves_a_person_s_text(
        self, asthma: Study, run: Run
    ) -> None:
        asthma.project.set_value("1", "sms_opt_out_at", "2026-05-05 09:30")
        asthma.project.set_value("2", "sms_opt_out_at", "withdrawn")
        assert run("record", "asthma", "1", "start", "--reason", "signed again").exit_code == 0
        assert run("record", "asthma", "2", "start", "--reason", "signed again").exit_code == 1
        assert (asthma.value("1"), asthma.value("2")) == ("", "withdrawn")

    def test_it_is_restored_where_the_field_was_emptied(self, asthma: Study, run: Run) -> None:
        run("record", "asthma", "1", "stop", "--reason", "phoned", "--at", "2026-05-04 12:00")
        asthma.project.set_value("1", "sms_opt_out_at", "")
        asthma.ledger.require_update("asthma", ["record:1"], now=asthma.clock())
        asthma.sweep_later()
        assert asthma.value() == "2026-05-04 12:00:00"

    @pytest.mark.parametrize("decision", ["stop", "start"])
    def test_a_dry_run_says_what_would_change_and_changes_nothing(
        self, asthma: Study, run: Run, decision: str
    ) -> None:
        if decision == "start":
            run("record", "asthma", "1", "stop", "--reason", "phoned")
        before, events = shown(asthma), len(list(asthma.ledger.entries("asthma")))
        result = run("record", "asthma", "1", decision, "--reason", "phoned", "--dry-run")
        assert {"stop": "would set", "start": "would clear"}[decision] in result.output
        assert (shown(asthma), len(list(asthma.ledger.entries("asthma")))) == (before, events)

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (("asthma", "77", "stop"), "asthma has no record 77"),
            (("other", "1", "stop"), "no project 'other'"),
            (("asthma", "1", "stop", "--at", "yesterday"), "YYYY-MM-DD HH:MM"),
            (("asthma", "1", "stop", "--at", "2999-01-01 10:00"), "not a time in the past"),
        ],
    )
    def test_what_cannot_be_recorded_says_why(
        self, asthma: Study, run: Run, arguments: tuple[str, ...], problem: str
    ) -> None:
        result = run("record", *arguments, "--reason", "phoned")
        assert result.exit_code == 2
        assert problem in result.output
        assert list(asthma.ledger.entries("asthma")) == []

    def test_while_redcap_is_away_a_known_record_is_recorded_and_written_later(
        self, asthma: Study, run: Run
    ) -> None:
        asthma.text(fictional_phone(2))
        asthma.work()  # the index knows the records
        asthma.redcap.faults.add("http_503", times=None)
        result = run("record", "asthma", "1", "stop", "--reason", "phoned")
        assert (result.exit_code, "recorded" in result.output) == (1, True)
        asthma.redcap.faults.clear()
        asthma.sweep_later()
        assert shown(asthma)[1] == "1"


class TestReview:
    def waiting(self, asthma: Study) -> str:
        event = asthma.text(fictional_phone(1), "", blocked=False)
        asthma.work()
        return event.event_id

    def test_what_waits_is_listed(self, asthma: Study, run: Run) -> None:
        event = self.waiting(asthma)
        asthma.clock.ahead += timedelta(minutes=10)
        [listed] = json.loads(run("review", "--json").output)
        assert (listed["event_id"], listed["change"], listed["records"]) == (event, "", ["1"])
        assert listed["waiting_seconds"] >= 600
        assert run("review", "--project", "asthma").output.split("\t")[2] == "unclear"

    def test_stop_writes_the_time_of_the_text_and_a_later_start_ends_it(
        self, asthma: Study, run: Run
    ) -> None:
        event = self.waiting(asthma)
        result = run("review", event, "stop", "--reason", "said so on the phone", "--by", "kim")
        assert result.exit_code == 0, result.output
        entry = asthma.ledger.load("asthma", event)
        assert entry is not None
        assert (entry.state, entry.change, entry.decided_by) == ("updated", "STOP", "kim")
        local = entry.occurred_at.astimezone(asthma.services.config.zone(asthma.config.projects["asthma"]))
        assert shown(asthma) == (local.strftime("%Y-%m-%d %H:%M:%S"), "1")
        assert asthma.mailer.subjects[-1] == "[asthma] Opt-out (STOP) saved: record 1"
        assert run("review", "--json").output.strip() == "[]"
        asthma.text(fictional_phone(1), "START")
        asthma.work()
        assert shown(asthma) == ("", "0")

    def test_dismiss_closes_it_and_writes_nothing(self, asthma: Study, run: Run) -> None:
        event = self.waiting(asthma)
        assert run("review", event, "dismiss").exit_code == 0
        assert (asthma.ledger.reviews("asthma"), shown(asthma)) == ([], ("", "0"))

    def test_a_decision_after_a_later_start_does_not_end_that_consent(self, asthma: Study, run: Run) -> None:
        event = self.waiting(asthma)
        asthma.text(fictional_phone(1), "START")
        asthma.work()
        run("review", event, "stop")
        entry = asthma.ledger.load("asthma", event)
        assert entry is not None
        assert (entry.state, shown(asthma)) == ("superseded", ("", "0"))

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (("SM1",), "give an EVENT"),
            (("SM1", "stop"), "there is no such event"),
            (("SM1", "maybe"), "is not one of 'stop', 'dismiss'"),
        ],
    )
    def test_what_cannot_be_decided_says_why(
        self, run: Run, arguments: tuple[str, ...], problem: str
    ) -> None:
        result = run("review", *arguments)
        assert result.exit_code == 2
        assert problem in result.output

    def test_what_was_decided_is_not_decided_again(self, asthma: Study, run: Run) -> None:
        event = self.waiting(asthma)
        run("review", event, "dismiss")
        assert "it is superseded" in run("review", event, "stop").output
