"""The worker's consumer gathers the events of tasks for Flower."""

from __future__ import annotations

from typing import Any

import pytest
from celery.worker import consumer as celery_consumer

from worker.runtime.consumer import EVENT_DELAY_SECONDS, Consumer


class Hub:
    def __init__(self) -> None:
        self.timers: list[Any] = []

    def call_later(self, _delay: float, callback: Any) -> None:
        self.timers.append(callback)


class Dispatcher:
    def __init__(self) -> None:
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("worker.runtime.consumer.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def consumer() -> Any:
    made: Any = Consumer.__new__(Consumer)
    made.hub, made.event_dispatcher = Hub(), Dispatcher()
    return made


def test_the_events_of_a_moment_are_sent_together(consumer: Any, clock: list[float]) -> None:
    for _ in range(3):
        consumer.on_send_event_buffered()
    [flush] = consumer.hub.timers
    flush()
    consumer.on_send_event_buffered()
    assert (consumer.event_dispatcher.flushed, len(consumer.hub.timers)) == (1, 2)


def test_a_timer_that_was_lost_with_a_connection_is_made_anew(consumer: Any, clock: list[float]) -> None:
    consumer.on_send_event_buffered()
    clock[0] += EVENT_DELAY_SECONDS
    consumer.on_send_event_buffered()
    assert len(consumer.hub.timers) == 2


def test_what_waits_at_the_end_is_sent(
    consumer: Any, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher, ended = consumer.event_dispatcher, []
    monkeypatch.setattr(celery_consumer.Consumer, "shutdown", lambda _self: ended.append(dispatcher.flushed))
    consumer.on_send_event_buffered()
    consumer.shutdown()
    consumer.event_dispatcher = None  # not connected
    consumer.shutdown()
    assert ended == [1, 1]
