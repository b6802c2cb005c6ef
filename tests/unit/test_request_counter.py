"""Figures of requests that store nothing: gathered, then written and told together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDown

from shared.ledger import Ledger, keys
from tests.processes import wait_until
from web.monitoring.request_counter import RequestCounter


class Flushes:
    """Keeps what is to be done in a second."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def __call__(self, flush: Callable[[], None]) -> None:
        self.waiting.append(flush)

    def a_second_passes(self) -> None:
        waiting, self.waiting = self.waiting, []
        for flush in waiting:
            flush()


@pytest.fixture
def flushes() -> Flushes:
    return Flushes()


class Lines(list[dict[str, Any]]):
    """A log that keeps its lines."""

    def warning(self, event: str, **fields: Any) -> None:
        self.append({"event": event, **fields})

    error = warning


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    kept = Lines()
    monkeypatch.setattr("web.monitoring.request_counter.log", kept)
    return kept


@pytest.fixture
def tally(redis: Any, flushes: Flushes) -> RequestCounter:
    return RequestCounter(Ledger(redis), flushes)


def test_a_flood_is_one_write_and_one_line(
    tally: RequestCounter, flushes: Flushes, redis: Any, lines: Lines
) -> None:
    for _ in range(1000):
        tally.add("inbound", "wrong_signature", 403)
    assert (len(flushes.waiting), redis.hgetall(keys.METRICS)) == (1, {})
    flushes.a_second_passes()
    assert redis.hgetall(keys.METRICS) == {"webhooks|inbound|wrong_signature": "1000"}
    assert lines == [
        {
            "event": "request_rejected",
            "endpoint": "inbound",
            "status": 403,
            "reason": "wrong_signature",
            "times": 1000,
        }
    ]


def test_each_outcome_is_told_by_itself_and_what_was_not_refused_is_only_counted(
    tally: RequestCounter, flushes: Flushes, redis: Any, lines: Lines
) -> None:
    tally.add("inbound", "ignored")
    tally.add("events", "no_sid", 400)
    flushes.a_second_passes()
    tally.add("events", "no_sid", 400)
    flushes.a_second_passes()
    assert redis.hgetall(keys.METRICS) == {"webhooks|inbound|ignored": "1", "webhooks|events|no_sid": "2"}
    assert [line["times"] for line in lines] == [1, 1]


def test_a_store_that_is_away_costs_the_figure_and_is_told(
    tally: RequestCounter, flushes: Flushes, redis: Any, lines: Lines
) -> None:
    def down(*_: Any, **__: Any) -> None:
        raise RedisDown

    redis.execute_command = down
    tally.add("inbound", "wrong_signature", 403)
    flushes.a_second_passes()
    assert [line["event"] for line in lines] == ["request_rejected", "not_counted"]


def test_it_is_written_by_itself(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real timer."""
    monkeypatch.setattr("web.monitoring.request_counter.FLUSH_AFTER_SECONDS", 0.01)
    RequestCounter(Ledger(redis)).add("inbound", "ignored")
    wait_until(lambda: redis.hgetall(keys.METRICS), seconds=30, what="it is counted")
