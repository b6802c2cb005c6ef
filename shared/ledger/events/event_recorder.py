"""Where a STOP or START is recorded."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from secrets import token_hex

from shared.domain.events import Change, OptOutEvent, Source, milliseconds
from shared.ledger import keys
from shared.ledger.base import LedgerBase
from shared.ledger.events.models import Accepted, StaffDecision
from shared.ledger.lua_script import Argument
from shared.redis_client import execute_replicated, raise_first
from shared.redis_types import RedisPipeline
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
        self, event: OptOutEvent, now: datetime, pipe: RedisPipeline, *, lookups: bool, confirmed: bool
    ) -> None:
        script = self._scripts["accept"]
        names = script.source.keys(
            {"event": keys.event(event.project, event.event_id), **_project_keys(event.project)}
        )
        named = _arguments(event, milliseconds(now), confirmed=confirmed)
        named["retention"] = self._retention_seconds
        named["call"] = token_hex(8) if lookups else ""
        arguments = script.source.arguments(named)
        # The first one brings the script's whole text, so that the server knows it by its hash for the others:
        # redis-py would ask for that first, at the cost of a round trip.
        if len(pipe):
            pipe.evalsha(script.sha, len(names), *names, *arguments)
        else:
            pipe.eval(script.source.text, len(names), *names, *arguments)


@lru_cache(maxsize=1_000)
def _project_keys(project: str) -> Mapping[str, str]:
    return {
        "status": keys.status(project),
        "pending": keys.pending(project),
        "unfinished": keys.unfinished(project),
        "events": keys.events(project),
        "due": keys.DUE,
        "counts": keys.COUNTS,
        "intents": keys.intents(project),
        "arrived": keys.arrived(project),
        "waiting_lookup": keys.queued(f"lookup:{project}"),
        "attempts": keys.ATTEMPTS,
        "seen_starts": keys.seen_starts(project),
        "reviews": keys.reviews(project),
    }


def _arguments(event: OptOutEvent, now_ms: int, *, confirmed: bool) -> dict[str, Argument]:
    is_read_newest_first = event.source in {Source.MESSAGE_LOG, Source.BLOCKED_MESSAGE}
    is_exact = event.is_exact
    unconfirmed = (
        event.change is Change.START and event.source is Source.WEBHOOK and not (confirmed or is_exact)
    )
    return {
        "project": event.project,
        "id": event.event_id,
        "change": event.change,
        "occurred_ms": milliseconds(event.occurred_at),
        "received_ms": now_ms,
        "phone": event.phone_hash,
        "source": event.source,
        "due_ms": now_ms + FIRST_PAUSE_MS,
        "order": "oldest" if is_read_newest_first else "newest",
        "event_prefix": keys.event(event.project, ""),
        "lookup_waits_ms": LOOKUP_WAITS_MS,
        "scope": event.scope,
        "is_exact": int(is_exact),
        "is_blocked": int(event.blocked),
        "is_unconfirmed": int(unconfirmed),
        "is_confirmation": int(confirmed),
        "lists": keys.ended(event.project, ""),
    }
