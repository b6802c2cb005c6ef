"""The safety net: what did not finish is published again; mended projects are noticed."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from shared.ledger import keys
from shared.messaging.tasks import TaskName
from shared.retry_policy import VERIFY_EVERY_MS
from tests.builders import opt_out_event
from tests.fakes import Study, study
from tests.simulators.redcap import Project, classic_study, enrol, fictional_phone
from worker.projects.problems import note_checked
from worker.steps.sweep import sweep

pytestmark = pytest.mark.usefixtures("naps")


def enrolled(count: int = 3, project: Project | None = None, **changes: Any) -> Study:
    project = project or classic_study()
    enrol(project, count)
    return study(project, **changes)


class TestLostMessages:
    def test_work_whose_messages_were_all_lost_is_finished_by_sweeps(self) -> None:
        asthma = enrolled()
        event = asthma.text(fictional_phone(1))
        for _ in range(3):  # lookup, update, mail: each message is lost once
            asthma.published.messages.clear()
            asthma.clock.ahead += timedelta(minutes=2)
            sweep(asthma.services)
            asthma.run(asthma.published.messages.popleft())
        assert asthma.state(event) == "updated"
        assert len(asthma.mailer.sent) == 1

    def test_nothing_is_published_before_it_is_due(self) -> None:
        asthma = enrolled()
        asthma.text(fictional_phone(1))
        asthma.published.messages.clear()
        note_checked("asthma", asthma.services)
        published = sweep(asthma.services)
        assert published == {"lookup": 0, "update": 0, "email": 0, "digest": 0}
        assert not asthma.published.messages

    def test_each_kind_is_published_to_its_task_and_counted(self) -> None:
        asthma = enrolled()
        asthma.text(fictional_phone(1))
        asthma.work()
        asthma.ledger.require_update("asthma", ["x"], now=asthma.clock())
        lookup = asthma.text(fictional_phone(2))
        asthma.redis.zadd(keys.DUE, {f"email|asthma|{lookup.event_id}": 0, "digest|asthma|": 0})
        asthma.published.messages.clear()
        asthma.clock.ahead += timedelta(minutes=2)
        note_checked("asthma", asthma.services)
        assert sweep(asthma.services) == {"lookup": 1, "update": 1, "email": 1, "digest": 1}
        assert {message.task for message in asthma.published.messages} == {
            TaskName.LOOKUP, TaskName.UPDATE, TaskName.EMAIL,
        }  # fmt: skip
        figures = asthma.redis.hgetall(keys.METRICS)
        assert [figures[f"swept|{kind}"] for kind in ("lookup", "update", "email", "digest")] == ["1"] * 4

    def test_a_broker_that_is_away_does_not_stop_the_sweep(self) -> None:
        asthma = enrolled()
        asthma.text(fictional_phone(1))
        asthma.clock.ahead += timedelta(minutes=2)
        asthma.published.error = ConnectionRefusedError()
        assert sweep(asthma.services)["lookup"] == 1

    def test_events_whose_retention_is_over_are_trimmed(self) -> None:
        asthma = enrolled()
        old = opt_out_event(phone_hash="")
        asthma.accept([old], now=asthma.clock() - timedelta(days=402))
        asthma.redis.delete(keys.event("asthma", old.event_id))  # as its expiry does
        sweep(asthma.services)
        assert asthma.redis.zcard(keys.events("asthma")) == 0


class TestProblems:
    def test_a_new_project_is_checked(self) -> None:
        asthma = enrolled(3, classic_study(opt_out_validation="date_ymd"))
        asthma.sweep()
        assert asthma.problem()["problem"] == "opt_out_field_holds_no_time"

    def test_a_project_whose_configuration_has_changed_is_checked(self) -> None:
        asthma = enrolled()
        asthma.sweep()
        before = len(asthma.redcap.requests)
        asthma.config = study(redcap_project_id=4711).config
        asthma.services = asthma.new_services()
        asthma.sweep()
        assert len(asthma.redcap.requests) > before
        assert asthma.problem()["problem"] == "redcap_wrong_project"

    def test_a_nightly_run_counts_as_a_check(self) -> None:
        asthma = enrolled()
        note_checked("asthma", asthma.services)
        asthma.sweep()
        assert asthma.redcap.requests == []

    def test_a_good_project_is_not_looked_at_every_minute(self) -> None:
        asthma = enrolled()
        asthma.sweep()
        before = len(asthma.redcap.requests)
        assert before > 0
        for _ in range(5):
            asthma.sweep()
        assert len(asthma.redcap.requests) == before
        asthma.clock.ahead += timedelta(milliseconds=VERIFY_EVERY_MS + 1)
        asthma.sweep()
        assert len(asthma.redcap.requests) > before

    def test_a_problem_is_lifted_when_it_is_mended_and_its_work_is_due_at_once(self) -> None:
        asthma = enrolled(3, classic_study(opt_out_validation="date_ymd"))
        event = asthma.text(fictional_phone(1))
        asthma.work()
        asthma.project.change_field("sms_opt_out_at", validation="datetime_seconds_ymd")
        asthma.sweep()
        assert asthma.problem() == {}
        asthma.sweep()
        asthma.work()
        assert asthma.state(event) == "updated"

    def test_another_problem_takes_the_place_of_the_first(self) -> None:
        asthma = enrolled(3, classic_study(opt_out_validation="date_ymd"))
        asthma.sweep()
        asthma.project.change_field("sms_opt_out_at", validation="", kind="notes")
        asthma.sweep()
        assert asthma.problem()["problem"] == "opt_out_field_is_no_text"

    def test_an_outage_is_no_problem_of_the_project_and_lifts_none(self) -> None:
        asthma = enrolled(3, classic_study(opt_out_validation="date_ymd"))
        asthma.sweep()
        asthma.redcap.faults.add("http_503", times=None)
        asthma.sweep()
        assert asthma.problem()["problem"] == "opt_out_field_holds_no_time"
        fine = enrolled()
        fine.redcap.faults.add("http_503", times=None)
        fine.sweep()
        assert fine.problem() == {}

    def test_a_problem_of_a_project_that_was_taken_out_is_forgotten(self) -> None:
        asthma = enrolled()
        asthma.redis.hset(keys.PROBLEMS, "gone", "{}")
        asthma.sweep()
        assert asthma.redis.hgetall(keys.PROBLEMS) == {}

    def test_two_sweeps_at_once_have_a_project_checked_once(self) -> None:
        asthma = enrolled()
        sweep(asthma.services)
        sweep(asthma.services)
        assert asthma.published.of(TaskName.VERIFY) == [("asthma",)]

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"opt_out_field": "texting_notes"}, "opt_out_field_is_no_text"),
            ({"opt_out_field": "age"}, "opt_out_field_holds_no_time"),
            ({"opt_out_field": "missing"}, "redcap_no_such_field"),
            ({"phone_field": "missing"}, "redcap_no_such_field"),
            ({"opt_out_checkbox": "sex"}, "opt_out_checkbox_unfit"),
        ],
    )
    def test_what_does_not_fit_is_seen_before_the_first_stop(
        self, changes: dict[str, Any], problem: str
    ) -> None:
        asthma = enrolled(1, **changes)
        asthma.sweep()
        assert asthma.problem()["problem"] == problem
        assert asthma.imports() == 0


class TestAnotherRedisServer:
    def answers_as(self, asthma: Study, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asthma.redis, "info", lambda _section: {"run_id": run_id})
        asthma.published.messages.clear()
        asthma.clock.ahead += timedelta(minutes=1)
        sweep(asthma.services)

    def reconciliations(self, asthma: Study) -> list[Any]:
        jobs = [json.loads(each) for each in asthma.redis.zrange(keys.BACKGROUND, 0, -1)]
        return [job for job in jobs if job[0] == TaskName.RECONCILE]

    def test_every_study_is_reconciled_from_a_little_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asthma = enrolled()
        self.answers_as(asthma, "a", monkeypatch)
        self.answers_as(asthma, "a", monkeypatch)
        assert not self.reconciliations(asthma)
        noted = asthma.clock()
        self.answers_as(asthma, "b", monkeypatch)
        [[_, project, since, nightly]] = self.reconciliations(asthma)
        assert (project, nightly) == ("asthma", "")
        before = noted - datetime.fromisoformat(since)
        assert timedelta(minutes=10) <= before <= timedelta(minutes=11)
        self.answers_as(asthma, "b", monkeypatch)
        assert len(self.reconciliations(asthma)) == 1
