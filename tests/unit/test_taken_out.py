"""A project that was taken out of the configuration: it rests, ends, goes; or comes back as it was."""

from __future__ import annotations

import inspect
from datetime import timedelta

import pytest

from shared.config import Config
from shared.ledger import keys
from shared.retry_policy import GRACE_PERIOD
from tests.builders import config, project_table
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from tests.unit.cli.test_forget import everything
from worker.steps.sweep import sweep

pytestmark = pytest.mark.usefixtures("naps")

MINUTES, HOUR = timedelta(minutes=2), timedelta(hours=1)
RETENTION = timedelta(days=400)


@pytest.fixture
def asthma() -> Study:
    project = classic_study()
    enrol(project, 3)
    asthma = study(project)
    asthma.sweep()
    return asthma


def configure(asthma: Study, wanted: Config) -> None:
    """As a worker that was restarted with another file."""
    asthma.config = wanted
    asthma.services = asthma.new_services()


def take_out(asthma: Study) -> Config:
    before = asthma.config
    configure(asthma, config({"sleep": project_table(notify=None)}))
    return before


def later(asthma: Study, ahead: timedelta) -> None:
    """Sweep then, and once more, as every minute."""
    asthma.clock.ahead += ahead
    for _ in range(2):
        asthma.sweep_later()


def left(asthma: Study) -> list[str]:
    """Keys that are the project's, or name it; its figures and counts aside."""
    figures = {keys.COUNTS, keys.METRICS}
    passing = (keys.lock(""), keys.queued(""), keys.circuit(""), keys.rate(""))
    return [
        key
        for key, text in everything(asthma.redis).items()
        if "asthma" in key + text and key not in figures and not key.startswith(passing)
    ]


class TestWrongForAnHour:
    @pytest.mark.parametrize("stage", ["looked up", "in the queue", "message lost"])
    def test_what_was_on_its_way_is_written_and_told_once_the_project_is_back(
        self, asthma: Study, stage: str
    ) -> None:
        event = asthma.text(fictional_phone(1))
        if stage == "looked up":
            asthma.run(asthma.published.messages.popleft())
        if stage == "message lost":
            asthma.published.messages.clear()
        before = take_out(asthma)
        later(asthma, HOUR)
        assert asthma.value() == ""
        configure(asthma, before)
        later(asthma, MINUTES)
        assert (asthma.state(event), asthma.value() != "") == ("updated", True)
        assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) saved: record 1"]

    def test_nothing_is_removed_and_its_work_rests(self, asthma: Study) -> None:
        event = asthma.text(fictional_phone(1))
        asthma.run(asthma.published.messages.popleft())
        asthma.published.messages.clear()
        take_out(asthma)
        asthma.clock.ahead += HOUR
        assert sum(sweep(asthma.services).values()) == 0
        assert (asthma.state(event), asthma.pending()) == ("pending", 1)

    def test_a_day_counts_from_when_it_was_last_taken_out(self, asthma: Study) -> None:
        event = asthma.text(fictional_phone(1))
        asthma.run(asthma.published.messages.popleft())
        asthma.redcap.faults.add("http_503", times=None)
        for _ in range(3):
            before = take_out(asthma)
            later(asthma, GRACE_PERIOD / 2)
            configure(asthma, before)
            later(asthma, MINUTES)
        assert asthma.entry(event).reason != "project_not_configured: it was taken out of the configuration"


class TestTakenOut:
    def test_its_unfinished_events_end_after_a_day_and_nothing_is_swept_any_more(self, asthma: Study) -> None:
        pending, received = asthma.text(fictional_phone(1)), asthma.text(fictional_phone(2))
        asthma.run(asthma.published.messages.popleft())
        asthma.published.messages.clear()
        take_out(asthma)
        later(asthma, MINUTES)
        later(asthma, GRACE_PERIOD)
        assert [asthma.state(event) for event in (pending, received)] == ["failed", "failed"]
        assert asthma.entry(pending).reason.startswith("project_not_configured")
        assert asthma.redis.zcard(keys.unfinished("asthma")) == 0
        assert not [member for member in asthma.redis.zrange(keys.DUE, 0, -1) if "asthma" in member]
        assert asthma.redis.hgetall(keys.ATTEMPTS) == {}
        assert int(asthma.redis.hget(keys.COUNTS, "asthma|webhook|failed")) == 2
        assert asthma.mailer.sent == []

    def test_back_after_its_events_have_ended_it_goes_on_where_it_was(self, asthma: Study) -> None:
        event = asthma.text(fictional_phone(1))
        asthma.run(asthma.published.messages.popleft())
        before = take_out(asthma)
        later(asthma, MINUTES)
        later(asthma, GRACE_PERIOD * 30)
        assert asthma.state(event) == "failed"
        configure(asthma, before)
        later(asthma, MINUTES)
        assert (asthma.state(event), asthma.value() != "", asthma.pending()) == ("updated", True, 0)

    def test_a_failure_of_another_kind_is_not_replayed_when_it_is_back(self, asthma: Study) -> None:
        asthma.project.lock_record("1")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        ended = asthma.entry(event)
        before = take_out(asthma)
        later(asthma, MINUTES)
        configure(asthma, before)
        later(asthma, MINUTES)
        assert asthma.entry(event) == ended

    def test_a_correction_that_was_due_is_still_made_when_it_is_back(self, asthma: Study) -> None:
        event = asthma.text(fictional_phone(1))
        asthma.work()
        asthma.project.set_value("1", "sms_opt_out_at", "")
        asthma.ledger.require_update("asthma", [event.phone_hash], now=asthma.clock())
        before = take_out(asthma)
        later(asthma, MINUTES)
        later(asthma, GRACE_PERIOD)
        assert asthma.pending() == 1
        configure(asthma, before)
        later(asthma, MINUTES)
        assert (asthma.value() != "", asthma.pending()) == (True, 0)

    def test_all_of_it_goes_after_the_retention_and_no_other_project(self, asthma: Study) -> None:
        asthma.text(fictional_phone(1))
        asthma.work()
        asthma.text(fictional_phone(2))
        asthma.text(fictional_phone(3), project="sleep")
        asthma.redis.hset(keys.reconciled("asthma"), "watermark_ms", 1)
        take_out(asthma)
        later(asthma, MINUTES)
        later(asthma, RETENTION)
        assert asthma.redis.hlen(keys.status("asthma")) == 2
        later(asthma, GRACE_PERIOD)
        assert left(asthma) == []
        assert asthma.redis.hlen(keys.status("sleep")) == 1
        assert list(asthma.ledger.entries("sleep"))

    def test_work_of_a_project_that_was_never_configured_here_ends_and_goes_too(self, asthma: Study) -> None:
        """The web process was restarted with a new project, the worker was not, and never is."""
        event = asthma.text(fictional_phone(1), project="new")
        asthma.published.messages.clear()
        later(asthma, MINUTES)
        assert asthma.state(event) == "received"
        later(asthma, GRACE_PERIOD)
        assert asthma.state(event) == "failed"
        later(asthma, RETENTION)
        assert not asthma.redis.exists(*keys.of_project("new"))

    def test_more_than_a_chunk_of_it_goes_too(self, asthma: Study, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shared.ledger.retention.CHUNK", 2)
        for number in range(1, 6):
            asthma.text(fictional_phone(number))
        take_out(asthma)
        assert asthma.ledger.forget_project("asthma") == {"status": 5, "events": 5}
        assert left(asthma) == []


def test_the_keys_of_a_project_are_all_that_are_made_of_its_name_alone() -> None:
    makers = [
        function
        for _, function in inspect.getmembers(keys, inspect.isfunction)
        if list(inspect.signature(function).parameters) == ["project"]
        and function not in {keys.of_project, keys.ended_lists}
    ]
    made = [*(maker("asthma") for maker in makers), *keys.ended_lists("asthma")]
    assert sorted(keys.of_project("asthma")) == sorted(made)
