"""One at a time, over all workers: a lock in Redis that a living holder keeps renewing."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from redis.exceptions import LockError, RedisError
from redis.lock import Lock

from shared.ledger import keys
from shared.redis_client import RedisClient, redis_cause
from shared.retry_policy import LOCK_LEASE_SECONDS

log = structlog.get_logger(__name__)


@contextmanager
def try_lock(redis: RedisClient, name: str, *, wait_seconds: float = 0.0) -> Iterator[bool]:
    """Hold the lock `name` for the block; yields False where another process has it."""
    lock = Lock(redis, keys.lock(name), timeout=LOCK_LEASE_SECONDS, thread_local=False)
    if not lock.acquire(blocking=wait_seconds > 0, blocking_timeout=wait_seconds or None):
        yield False
        return
    stop = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lock, stop), daemon=True, name=f"lock-{name}")
    renewal.start()
    try:
        yield True
    finally:
        stop.set()
        renewal.join()
        _release(lock, name)


def count_held(redis: RedisClient, *names: str) -> int:
    """How many of the locks some process holds."""
    return redis.exists(*map(keys.lock, names))


def _renew(lock: Lock, stop: threading.Event) -> None:
    while not stop.wait(LOCK_LEASE_SECONDS / 4):
        try:
            lock.extend(LOCK_LEASE_SECONDS, replace_ttl=True)
        except (LockError, RedisError) as error:
            log.warning("lock_not_renewed", error=redis_cause(error))


def _release(lock: Lock, name: str) -> None:
    try:
        lock.release()
    except (LockError, RedisError) as error:
        # It expires by itself; its present holder is not disturbed.
        log.warning("lock_not_released", lock=name, error=redis_cause(error))
