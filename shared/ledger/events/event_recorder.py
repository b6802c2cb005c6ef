"""Where a STOP or START is recorded."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, partial
from secrets import token_hex
from typing import Any

from shared.domain.events import Change, OptOutEvent, Source, milliseconds
from shared.ledger import keys
from shared.ledger.base import LedgerBase, load_script
from shared.ledger.events.models import Accepted, StaffDecision
from shared.redis_client import execute_replicated, raise_first
from shared.retry_policy import FIRST_PAUSE_MS, LOOKUP_WAITS_MS


class EventRecorder(LedgerBase):
    """Records events, each once, and makes them the latest change of their phone. The script is `accept.lua`."""

    def accept(
        self,
        events: Sequence[OptOutEvent],
        *,
        now: datetime,
        lookups: bool = False,
        confirmed: bool = False,
    ) -> list[Accepted]:
        """Record events all together or not at all, each once. Raises redis.RedisError where that failed.

        Of two changes in the same millisecond, the one handed in later counts as the later one, except
        from the message log, which is read newest first.

        With `lookups`, the answer says for which events the caller has to publish a lookup: only if none of the
        project waits in the queue, as that one includes the others (`take_arrived`).

        A START by webhook counts only once its time is `confirmed`, by a second call for the same event.
        """
        with self.redis.pipeline(transaction=True) as pipe:
            for event in events:
                self._accept_one(event, now, pipe, lookups=lookups, confirmed=confirmed)
            return [Accepted(answer) for answer in pipe.execute()]

    def accept_decision(self, event: OptOutEvent, decision: StaffDecision, *, now: datetime) -> None:
        """Record a decision of staff as an event with who decided, all or nothing, and wait for a replica.

        Only with sentinels are there replicas. Raises redis.RedisError where that failed.
        """
        with self.redis.pipeline(transaction=True) as pipe:
            self._accept_one(event, now, pipe, lookups=False, confirmed=False)
            pipe.hset(keys.event(event.project, event.event_id), mapping=decision.fields)
            raise_first(execute_replicated(self.redis, pipe))

    def accept_each(
        self, arrived: Sequence[tuple[OptOutEvent, datetime]], *, counted: Mapping[str, int]
    ) -> list[Accepted | Exception]:
        """Record events with their times of receipt, each with an outcome of its own; the caller publishes lookups.

        All of them wait for the disk once, and for a replica if there are any, together with the metrics of
        `/metrics` that are `counted`, which also make a repeated event wait. Raises redis.RedisError if the store is
        unavailable.
        """
        with self.redis.pipeline(transaction=True) as pipe:
            for event, now in arrived:
                self._accept_one(event, now, pipe, lookups=True, confirmed=False)
            for label, number in counted.items():
                pipe.hincrby(keys.METRICS, label, number)
            answers = execute_replicated(self.redis, pipe)[: len(arrived)]
        return [answer if isinstance(answer, Exception) else Accepted(answer) for answer in answers]

    def _accept_one(
        self, event: OptOutEvent, now: datetime, pipe: Any, *, lookups: bool, confirmed: bool
    ) -> None:
        project, now_ms = event.project, milliseconds(now)
        newest_first = event.source in {Source.MESSAGE_LOG, Source.BLOCKED_MESSAGE}
        names = [
            keys.event(project, event.event_id),
            keys.status(project),
            keys.pending(project),
            keys.unfinished(project),
            keys.events(project),
            keys.DUE,
            keys.COUNTS,
            keys.intents(project),
            keys.arrived(project),
            keys.queued(f"lookup:{project}"),
            keys.ATTEMPTS,
            keys.seen_starts(project),
            keys.reviews(project),
        ]
        unconfirmed = (
            event.change is Change.START
            and event.source is Source.WEBHOOK
            and not (confirmed or event.is_exact)
        )
        # The first one brings the script's whole text, so that the server knows it by its hash for the others:
        # redis-py would ask for that first, at the cost of a round trip.
        script = (
            partial(pipe.evalsha, self._accept_hash) if len(pipe) else partial(pipe.eval, self._accept_script)
        )
        script(
            len(names),
            *names,
            project,
            event.event_id,
            event.change,
            milliseconds(event.occurred_at),
            now_ms,
            event.phone_hash,
            event.source,
            now_ms + FIRST_PAUSE_MS,
            "oldest" if newest_first else "newest",
            keys.event(project, ""),
            self._retention_seconds,
            token_hex(8) if lookups else "",
            LOOKUP_WAITS_MS,
            event.scope,
            "1" if event.is_exact else "0",
            "1" if event.blocked else "0",
            "1" if unconfirmed else "0",
            "1" if confirmed else "0",
            keys.ended(project, ""),
        )

    @cached_property
    def _accept_script(self) -> str:
        return load_script("accept")

    @cached_property
    def _accept_hash(self) -> str:
        return hashlib.sha1(self._accept_script.encode(), usedforsecurity=False).hexdigest()
