"""Which numbers belong to which Messaging Service, as keyed hashes: the worker lists them, web looks them up.

An Event Streams message may lack the SID of the service that received it; then its recipient shows which it was.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from shared.domain.addresses import PhoneHasher
from shared.ledger import keys
from shared.redis_client import RedisClient

CACHED_SECONDS = 60.0
# The worker lists the senders again in every reconciliation.
KEPT_SECONDS = 400 * 86_400


class ServiceSenders:
    """The senders of Messaging Services. Methods may raise redis.RedisError."""

    def __init__(
        self,
        redis: RedisClient,
        hasher: PhoneHasher,
        *,
        clock: Callable[[], float] = time.monotonic,
        before_read: Callable[[], None] = lambda: None,
    ) -> None:
        self._redis = redis
        self._hasher = hasher
        self._clock = clock
        self._before_read = before_read
        self._cache: dict[str, frozenset[str]] = {}
        self._read_at = -CACHED_SECONDS

    def save(self, service_sid: str, addresses: Iterable[str]) -> None:
        """Replace what is known of a service."""
        key, hashes = keys.service_senders(service_sid), [self._hasher(address) for address in addresses]
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(key)
            if hashes:
                pipe.sadd(key, *hashes)
                pipe.expire(key, KEPT_SECONDS)
            pipe.execute()

    def services_of(self, address: str, services: Sequence[str]) -> list[str]:
        """Return those of the services that have this sender."""
        known = self._cache
        if self._clock() - self._read_at >= CACHED_SECONDS or not known.keys() >= set(services):
            known = self._read(services)
        hashed = self._hasher(address)
        return [sid for sid in services if hashed in known[sid]]

    def _read(self, services: Sequence[str]) -> dict[str, frozenset[str]]:
        self._before_read()
        with self._redis.pipeline(transaction=False) as pipe:
            for sid in services:
                pipe.smembers(keys.service_senders(sid))
            found = pipe.execute()
        known = {sid: frozenset(members) for sid, members in zip(services, found, strict=True)}
        self._cache, self._read_at = known, self._clock()
        return known
