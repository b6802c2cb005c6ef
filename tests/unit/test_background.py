"""Background work waits in the ledger, not in a worker process, and leaves a share of REDCap's budget."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from shared.ledger import keys
from shared.ledger.work.background import BackgroundJobs
from shared.ledger.work.locks import try_lock
from shared.messaging.tasks import TaskName
from shared.retry_policy import GATHER_FOR, JOB_PUBLISHED_FOR_MS
from tests import builders
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.projects.problems import note_checked
from worker.steps.background import PLACES, NotNow, publish_jobs, request_job, run_job

pytestmark = pytest.mark.usefixtures("naps")

NIGHTLY = (TaskName.RECONCILE, "asthma", "", "nightly")


def jobs(asthma: Study) -> BackgroundJobs:
    return BackgroundJobs(asthma.redis)


class TestPlaces:
    @pytest.fixture
    def asthma(self) -> Study:
        return study()

    def test_no_more_jobs_run_at_a_time_than_there_are_places(self, asthma: Study) -> None:
        depth: list[int] = []

        def work() -> int:
            depth.append(len(depth))
            run_job(asthma.services, work, TaskName.VERIFY, f"study{len(depth)}")
            return len(depth)

        assert run_job(asthma.services, work, TaskName.VERIFY, "study0") == PLACES
        assert jobs(asthma).count() == 1

    def test_a_job_without_a_place_comes_again_when_one_is_free(self, asthma: Study) -> None:
        with try_lock(asthma.redis, "background:0"), try_lock(asthma.redis, "background:1"):
            assert run_job(asthma.services, lambda: "done", *NIGHTLY) is None
            assert not asthma.published.messages
        publish_jobs(asthma.services)
        assert asthma.published.of(TaskName.RECONCILE) == [NIGHTLY[1:]]

    def test_each_job_that_ends_publishes_the_next_one(self, asthma: Study) -> None:
        request_job(asthma.services, TaskName.VERIFY, "asthma")
        for number in range(3):
            request_job(asthma.services, TaskName.VERIFY, f"study{number}")
        asthma.published.messages.clear()
        asthma.clock.ahead += timedelta(milliseconds=JOB_PUBLISHED_FOR_MS)
        run_job(asthma.services, lambda: None, TaskName.VERIFY, "asthma")
        assert asthma.published.of(TaskName.VERIFY) == [("study0",), ("study1",)]

    def test_a_refresh_goes_before_runs_that_were_asked_for_earlier(self, asthma: Study) -> None:
        with try_lock(asthma.redis, "background:0"), try_lock(asthma.redis, "background:1"):
            request_job(asthma.services, TaskName.RECONCILE, "asthma", "", "nightly")
            request_job(asthma.services, TaskName.REFRESH, "asthma")
        assert jobs(asthma).claim(now=asthma.clock()) == (TaskName.REFRESH, "asthma")
        assert jobs(asthma).claim(now=asthma.clock()) == NIGHTLY
        assert jobs(asthma).claim(now=asthma.clock()) is None

    def test_a_lost_message_delays_a_job_by_a_minute(self, asthma: Study) -> None:
        request_job(asthma.services, TaskName.VERIFY, "asthma")
        asthma.published.messages.clear()
        publish_jobs(asthma.services)
        assert not asthma.published.messages
        asthma.clock.ahead += timedelta(milliseconds=JOB_PUBLISHED_FOR_MS)
        publish_jobs(asthma.services)
        assert asthma.published.of(TaskName.VERIFY) == [("asthma",)]

    def test_a_job_that_could_not_be_done_is_tried_again_after_a_minute(self, asthma: Study) -> None:
        def refused() -> None:
            raise NotNow

        run_job(asthma.services, refused, TaskName.REFRESH, "asthma")
        assert jobs(asthma).claim(now=asthma.clock()) is None
        assert jobs(asthma).claim(now=asthma.clock() + timedelta(minutes=1)) == (TaskName.REFRESH, "asthma")

    def test_a_job_that_breaks_off_is_not_forgotten(self, asthma: Study) -> None:
        def killed() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_job(asthma.services, killed, *NIGHTLY)
        assert jobs(asthma).claim(now=asthma.clock()) is None
        assert jobs(asthma).claim(now=asthma.clock() + timedelta(hours=1)) == NIGHTLY


class TestSharedService:
    """Three studies on one Messaging Service; the first one's record 1 holds the number."""

    @pytest.fixture
    def hospital(self) -> Study:
        tokens = {"asthma": builders.REDCAP_TOKEN, "sleep": "B" * 32, "heart": "C" * 32}
        projects = {token: classic_study(name) for name, token in tokens.items()}
        enrol(projects[builders.REDCAP_TOKEN], 3)
        for name in ("sleep", "heart"):
            projects[tokens[name]].add_record("1", mobile="650-555-0099")
        tables = {
            name: builders.project_table(redcap_token=f"env:TOKEN_{name.upper()}")
            for name in ("sleep", "heart")
        }
        hospital = Study(builders.config({"asthma": builders.project_table(), **tables}), projects)
        for name in tokens:
            hospital.services.index(name).refresh(hospital.services.project(name), since=hospital.clock())
            note_checked(name, hospital.services)
        return hospital

    @pytest.fixture(autouse=True)
    def tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TOKEN_SLEEP", "B" * 32)
        monkeypatch.setenv("TOKEN_HEART", "C" * 32)

    def text(self, hospital: Study, number: int) -> list[Any]:
        phone = fictional_phone(number)
        first = hospital.text(phone)
        copies = [
            builders.opt_out_event(phone, when=first.occurred_at, project=name, event_id=first.event_id)
            for name in ("sleep", "heart")
        ]
        hospital.accept(copies)
        return [first, *copies]

    def test_only_the_study_that_knows_the_number_is_asked_at_first(self, hospital: Study) -> None:
        before = len(hospital.redcap.requests)
        events = self.text(hospital, 1)
        hospital.work()
        assert [hospital.state(event) for event in events] == ["updated", "received", "received"]
        assert len(hospital.redcap.requests) - before <= 4

    def test_the_others_are_asked_once_for_all_that_has_gathered(self, hospital: Study) -> None:
        first, second = self.text(hospital, 1), self.text(hospital, 2)
        hospital.work()
        hospital.redcap.projects["B" * 32].add_record("7", mobile="650-555-0002")
        before = hospital.redcap.count("export")
        hospital.clock.ahead += GATHER_FOR
        hospital.sweep_later()
        states = [hospital.state(event) for event in [*first, *second]]
        assert states[:3] == ["updated", "no_matching_record", "no_matching_record"]
        assert states[3:] == ["updated", "updated", "no_matching_record"]
        assert hospital.redcap.projects["B" * 32].value("7", "sms_opt_out_at") != ""
        # heart once; sleep once, once to write record 7, and once to look again
        assert hospital.redcap.count("export") - before <= 4

    def test_all_are_asked_at_once_where_none_knows_the_number(self, hospital: Study) -> None:
        hospital.redcap.projects["C" * 32].add_record("8", mobile="650-555-0077")
        events = self.text(hospital, 77)
        hospital.work()
        assert [hospital.state(event) for event in events] == [
            "no_matching_record", "no_matching_record", "updated",
        ]  # fmt: skip

    def test_an_index_of_the_day_before_yesterday_is_not_relied_upon(self, hospital: Study) -> None:
        hospital.clock.ahead += timedelta(days=2)
        events = self.text(hospital, 1)
        hospital.work()
        assert [hospital.state(event) for event in events] == [
            "updated", "no_matching_record", "no_matching_record",
        ]  # fmt: skip

    def test_what_the_background_does_not_do_in_time_is_done_all_the_same(self, hospital: Study) -> None:
        events = self.text(hospital, 1)
        hospital.work()
        for number in range(PLACES):
            hospital.redis.set(keys.lock(f"background:{number}"), "another worker")
        for _ in range(10):
            hospital.sweep_later()
        assert [hospital.state(event) for event in events] == [
            "updated", "no_matching_record", "no_matching_record",
        ]  # fmt: skip
