"""Clocks are set back and forth: what came last counts as last, and nothing waits for the old time to return."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import time_machine

from shared.errors import RedcapUnavailable
from tests.builders import sid
from tests.fakes import Study, fake_redis, host, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.redcap import rate_limit
from worker.redcap.circuit_breaker import CircuitBreaker

NOON = datetime(2026, 5, 4, 19, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
PHONE = fictional_phone(1)


@pytest.fixture
def clock() -> Iterator[time_machine.Traveller]:
    with time_machine.travel(NOON, tick=False) as traveller:
        yield traveller


@pytest.fixture
def asthma(clock: time_machine.Traveller, monkeypatch: pytest.MonkeyPatch) -> Study:
    # The pauses of the rate limit take only this clock's time.
    monkeypatch.setattr(rate_limit, "time", SimpleNamespace(sleep=clock.shift))
    project = classic_study()
    enrol(project, 3)
    return study(project)


def text(asthma: Study, change: str) -> str:
    """A webhook comes now; answers the state of its event once the workers are done."""
    event = asthma.text(PHONE, change)
    asthma.work()
    return asthma.state(event)


def test_a_stop_after_the_clock_was_set_back_is_not_taken_for_an_old_one(
    asthma: Study, clock: time_machine.Traveller
) -> None:
    assert [text(asthma, "STOP"), text(asthma, "START")] == ["updated", "updated"]
    clock.shift(-HOUR)
    assert (text(asthma, "STOP"), asthma.value()) == ("updated", "2026-05-04 11:00:03")
    assert len(asthma.mailer.sent) == 3


def test_a_repeated_stop_after_the_clock_was_set_back_keeps_the_first_time(
    asthma: Study, clock: time_machine.Traveller
) -> None:
    text(asthma, "START")
    clock.shift(-HOUR)
    text(asthma, "STOP")
    clock.shift(timedelta(minutes=5))
    assert (text(asthma, "STOP"), asthma.value()) == ("already_current", "2026-05-04 11:00:02")


def test_a_start_after_the_clock_ran_ahead_and_was_mended_counts(
    asthma: Study, clock: time_machine.Traveller
) -> None:
    clock.shift(24 * HOUR)
    stop = asthma.text(PHONE, "STOP")
    asthma.text_times[stop.event_id] = NOON  # as Twilio's clock says
    asthma.work()
    clock.shift(-24 * HOUR)
    assert (text(asthma, "START"), asthma.value()) == ("updated", "")


def test_an_old_webhook_that_is_played_again_after_the_clock_was_set_back_changes_nothing(
    asthma: Study, clock: time_machine.Traveller
) -> None:
    old = sid()
    asthma.text(PHONE, "STOP", event_id=old)
    asthma.work()
    text(asthma, "START")
    clock.shift(-HOUR)
    asthma.text(PHONE, "STOP", event_id=old)
    asthma.work()
    assert asthma.value() == ""


def test_what_a_lost_message_leaves_is_found_after_the_clock_went_ahead(asthma: Study) -> None:
    event = asthma.text(PHONE)
    asthma.published.messages.clear()
    asthma.sweep_later(hours=3)
    assert asthma.state(event) == "updated"


def test_a_host_is_not_left_alone_for_longer_because_the_clock_was_set_back(
    clock: time_machine.Traveller,
) -> None:
    breaker = CircuitBreaker(fake_redis(), host())
    breaker.record_failure()
    with pytest.raises(RedcapUnavailable):
        breaker.check()
    clock.shift(-HOUR)
    breaker.check()
