"""One at a time, over all workers; and one message in place of many."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from redis.lock import Lock

from shared.ledger import keys
from shared.ledger.work import locks
from shared.ledger.work.deduplication import MessageDeduplicator
from shared.ledger.work.locks import try_lock
from shared.retry_policy import LOCK_LEASE_SECONDS


class TestHeld:
    def test_the_first_has_it_and_the_second_has_not(self, redis: Any) -> None:
        with try_lock(redis, "update:asthma") as acquired, try_lock(redis, "update:asthma") as also_mine:
            assert (acquired, also_mine) == (True, False)

    def test_it_is_free_again_after_the_block_and_after_an_error(self, redis: Any) -> None:
        with pytest.raises(ZeroDivisionError), try_lock(redis, "update:asthma"):
            raise ZeroDivisionError
        with try_lock(redis, "update:asthma") as acquired:
            assert acquired

    def test_locks_of_other_names_do_not_matter(self, redis: Any) -> None:
        with try_lock(redis, "update:asthma"), try_lock(redis, "update:sleep") as acquired:
            assert acquired

    def test_who_waits_gets_it_when_it_is_let_go(self, redis: Any) -> None:
        got: list[bool] = []
        entered, leave = threading.Event(), threading.Event()

        def holder() -> None:
            with try_lock(redis, "index:asthma"):
                entered.set()
                leave.wait(10)

        def waiter() -> None:
            with try_lock(redis, "index:asthma", wait_seconds=10) as acquired:
                got.append(acquired)

        threads = [threading.Thread(target=holder), threading.Thread(target=waiter)]
        threads[0].start()
        assert entered.wait(10)
        threads[1].start()
        leave.set()
        for thread in threads:
            thread.join(10)
        assert got == [True]

    def test_who_waits_too_long_does_not_get_it(self, redis: Any) -> None:
        with try_lock(redis, "index:asthma"), try_lock(redis, "index:asthma", wait_seconds=0.05) as acquired:
            assert not acquired

    def test_a_living_holder_keeps_it_beyond_its_lease(
        self, redis: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(locks, "LOCK_LEASE_SECONDS", 0.2)
        renewed = threading.Event()
        real = Lock.extend

        def extend(self: Any, *args: Any, **more: Any) -> Any:
            done = real(self, *args, **more)
            renewed.set()
            return done

        monkeypatch.setattr(Lock, "extend", extend)
        with try_lock(redis, "update:asthma"):
            assert renewed.wait(10)
            assert redis.exists(keys.lock("update:asthma"))

    def test_a_dead_holder_s_lease_ends_by_itself(self, redis: Any) -> None:
        with try_lock(redis, "update:asthma"):
            assert 0 < redis.ttl(keys.lock("update:asthma")) <= LOCK_LEASE_SECONDS

    def test_a_lock_that_was_lost_is_not_taken_from_its_next_holder(self, redis: Any) -> None:
        with try_lock(redis, "update:asthma"):
            redis.set(keys.lock("update:asthma"), "the next holder")
        assert redis.get(keys.lock("update:asthma")) == "the next holder"


class TestCoalescer:
    def test_only_the_first_of_many_is_sent_until_it_is_taken(self, redis: Any) -> None:
        deduplicator = MessageDeduplicator(redis)
        assert [deduplicator.claim("update:asthma", seconds=30) for _ in range(3)] == [True, False, False]
        deduplicator.release("update:asthma")
        assert deduplicator.claim("update:asthma", seconds=30)

    def test_a_lost_message_is_forgotten_after_a_time(self, redis: Any) -> None:
        MessageDeduplicator(redis).claim("update:asthma", seconds=30)
        assert 0 < redis.pttl(keys.queued("update:asthma")) <= 30_000

    def test_names_do_not_matter_to_each_other(self, redis: Any) -> None:
        deduplicator = MessageDeduplicator(redis)
        deduplicator.claim("update:asthma", seconds=30)
        assert deduplicator.claim("update:sleep", seconds=30)
