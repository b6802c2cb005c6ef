"""REDCap's request budget is never exceeded, and a failing host opens its circuit breaker."""

from __future__ import annotations

import threading
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import time_machine
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import RedcapUnavailable
from shared.ledger import keys
from shared.retry_policy import REDCAP_BACKOFF_AFTER_BAN_SECONDS, REDCAP_BACKOFF_SECONDS
from tests.builders import at
from tests.fakes import fake_redis
from worker.redcap.circuit_breaker import CircuitBreaker
from worker.redcap.rate_limit import RateLimiter

NOON = at("2026-05-04T12:00:00")
HOST = "redcap.example.edu"


class Time:
    """A clock that `sleep` advances."""

    def __init__(self, traveller: time_machine.Traveller) -> None:
        self._traveller = traveller
        self.now = NOON

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self._traveller.move_to(self.now)


@pytest.fixture
def time() -> Any:
    with time_machine.travel(NOON, tick=False) as traveller:
        yield Time(traveller)


def most_in_any_minute(moments: list[float]) -> int:
    """The largest number of requests in any 60 seconds."""
    return max((sum(start <= other < start + 60 for other in moments) for start in moments), default=0)


class TestRateLimiter:
    def test_the_limit_is_reached_and_never_exceeded_in_any_minute(self, time: Time, redis: Any) -> None:
        limiter = RateLimiter(redis, HOST, 20, sleep=time.pass_by)
        moments = []
        for number in range(100):
            limiter.acquire()
            moments.append(time.now.timestamp())
            time.pass_by(0.3 if number % 7 else 2.0)
        assert most_in_any_minute(moments) == 20

    def test_background_requests_are_spread_evenly_and_leave_a_share(self, time: Time, redis: Any) -> None:
        limiter = RateLimiter(redis, HOST, 60, background=True, sleep=time.pass_by)
        moments = []
        for _ in range(120):
            limiter.acquire()
            moments.append(time.now.timestamp())
        assert most_in_any_minute(moments) == 51
        assert max(later - earlier for earlier, later in pairwise(moments)) < 1.5
        waits: list[float] = []
        urgent = RateLimiter(redis, HOST, 60, sleep=waits.append)
        for _ in range(9):
            urgent.acquire()
        assert waits == []

    def test_background_requests_give_way_to_urgent_ones(self, time: Time, redis: Any) -> None:
        urgent = RateLimiter(redis, HOST, 60, sleep=time.pass_by)
        for _ in range(51):
            urgent.acquire()
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            time.pass_by(seconds)

        RateLimiter(redis, HOST, 60, background=True, sleep=wait).acquire()
        assert sum(waits) == pytest.approx(60, abs=1)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(
        limit=st.integers(1, 8),
        gaps=st.lists(st.floats(0, 40, allow_nan=False), min_size=1, max_size=30),
    )
    def test_no_minute_exceeds_the_limit_at_any_request_pattern(self, limit: int, gaps: list[float]) -> None:
        with time_machine.travel(NOON, tick=False) as traveller:
            clock = Time(traveller)
            limiter = RateLimiter(fake_redis(), HOST, limit, sleep=clock.pass_by)
            moments = []
            for gap in gaps:
                limiter.acquire()
                moments.append(clock.now.timestamp())
                clock.pass_by(gap)
        assert most_in_any_minute(moments) <= limit

    def test_several_workers_share_one_budget(self, time: Time, redis: Any) -> None:
        waited: list[float] = []

        def wait(seconds: float) -> None:
            waited.append(seconds)
            time.pass_by(seconds)

        workers = [RateLimiter(redis, HOST, 6, sleep=wait) for _ in range(3)]
        for worker in workers * 2:
            worker.acquire()
        assert waited == []
        workers[0].acquire()
        assert sum(waited) == pytest.approx(60, abs=0.1)

    def test_each_host_has_its_own_budget(self, time: Time, redis: Any) -> None:
        def no_waiting(_: float) -> None:
            raise AssertionError("the other host's budget was taken")

        RateLimiter(redis, HOST, 1, sleep=no_waiting).acquire()
        RateLimiter(redis, "other.example.edu", 1, sleep=no_waiting).acquire()

    def test_concurrent_threads_do_not_exceed_the_limit(self, redis: Any) -> None:
        taken: list[int] = []

        def too_late(_: float) -> None:
            raise RedcapUnavailable("waits")

        def take() -> None:
            try:
                RateLimiter(redis, HOST, 10, sleep=too_late).acquire()
            except RedcapUnavailable:
                return
            taken.append(1)

        threads = [threading.Thread(target=take) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 10


class TestCircuitBreaker:
    def test_each_consecutive_failure_opens_the_circuit_for_longer(self, time: Time, redis: Any) -> None:
        breaker = CircuitBreaker(redis, HOST)
        for pause in (2, 4, 8, 16, 32, 60, 60):
            breaker.record_failure()
            time.pass_by(pause - 0.5)
            with pytest.raises(RedcapUnavailable, match="redcap_circuit_open"):
                breaker.check()
            time.pass_by(0.6)
            breaker.check()

    def test_after_a_day_of_failures_the_pause_is_still_one_minute(self, time: Time, redis: Any) -> None:
        redis.hset(keys.circuit(HOST), "failures", 1_100)
        breaker = CircuitBreaker(redis, HOST)
        breaker.record_failure()
        time.pass_by(59.5)
        with pytest.raises(RedcapUnavailable, match="redcap_circuit_open"):
            breaker.check()
        time.pass_by(0.6)
        breaker.check()

    def test_a_success_closes_the_circuit_and_resets_the_failures(self, time: Time, redis: Any) -> None:
        breaker = CircuitBreaker(redis, HOST)
        for _ in range(4):
            breaker.record_failure()
        breaker.record_success()
        breaker.check()
        breaker.record_failure()
        time.pass_by(REDCAP_BACKOFF_SECONDS[0] + 0.1)
        breaker.check()

    def test_a_ban_opens_the_circuit_for_minutes(self, time: Time, redis: Any) -> None:
        breaker = CircuitBreaker(redis, HOST)
        breaker.record_failure(banned=True)
        time.pass_by(REDCAP_BACKOFF_AFTER_BAN_SECONDS - 1)
        with pytest.raises(RedcapUnavailable):
            breaker.check()
        time.pass_by(1.1)
        breaker.check()

    def test_an_open_circuit_uses_no_budget(self, time: Time, redis: Any) -> None:
        breaker = CircuitBreaker(redis, HOST)
        breaker.record_failure()
        for _ in range(5):
            with pytest.raises(RedcapUnavailable):
                breaker.check()
        breaker.record_success()
        breaker.check()

    def test_all_workers_share_the_circuit(self, time: Time, redis: Any) -> None:
        CircuitBreaker(redis, HOST).record_failure()
        with pytest.raises(RedcapUnavailable):
            CircuitBreaker(redis, HOST).check()
