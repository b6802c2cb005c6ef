"""What is forgotten: expired events, a participant, a project."""

from collections.abc import Sequence
from datetime import datetime
from itertools import chain, product

from shared.domain.events import LISTED, milliseconds
from shared.ledger import keys
from shared.ledger.base import CHUNK
from shared.ledger.events.event_store import EventStore
from shared.ledger.events.failures import prune_failures
from shared.ledger.events.staff_actions import forget_actions
from shared.ledger.mails.mail_outbox import MailOutbox
from shared.ledger.opt_outs.blocks import Blocks
from shared.ledger.opt_outs.statuses import Statuses
from shared.ledger.work.background import BackgroundJobs
from shared.redis_types import RedisPipeline

# How many old ids are checked per project and call, once a minute: Redis does nothing else for a millisecond or two.
MOST_TRIMMED = 1_000


class Retention(EventStore, Statuses, MailOutbox):
    """Removes what is kept."""

    def prune_expired(self, projects: Sequence[str], *, now: datetime) -> int:
        """Forget the ids of events that have expired: of a thousand per project and call. Returns how many."""
        now_ms = milliseconds(now)
        oldest = now_ms - self._retention_seconds * 1000
        with self.redis.pipeline(transaction=False) as pipe:
            for project in projects:
                self._scripts["prune_expired"](
                    keys={"events": keys.events(project)},
                    args={
                        "event_prefix": keys.event(project, ""),
                        "lists": keys.ended(project, ""),
                        "oldest_ms": oldest,
                        "limit": MOST_TRIMMED,
                        "turn": now_ms // 60_000,
                    },
                    rest=sorted(LISTED),
                    client=pipe,
                )
            numbers = list(map(int, pipe.execute()))
        for project, number in zip(projects, numbers, strict=True):
            if number:
                prune_failures(project, self.redis)
        return sum(numbers)

    def forget(self, project: str, phone: str) -> dict[str, int]:
        """Remove all traces of a phone: status, pending, intent, its events and their due work. Returns how many."""
        entries = self.entries_of_phone(project, phone)
        ids = [entry.event_id for entry in entries]
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hdel(keys.status(project), phone)
            pipe.zrem(keys.pending(project), phone)
            pipe.hdel(keys.intents(project), phone)
            pipe.hdel(keys.failures(project), phone)
            for mailed in self.redis.scan_iter(match=keys.reviews_mailed(project, "*"), count=1000):
                pipe.hdel(mailed, phone)
            if records := set(chain.from_iterable(entry.records for entry in entries)):
                pipe.hdel(keys.written(project), *records)
            if ids:
                self._remove_events(project, ids, pipe)
            Blocks(project, self.redis).forget(phone, ids, pipe)
            status, pending, intents, *_ = pipe.execute()
        forget_actions(self.redis, project, ids)
        return {"status": status, "pending": pending, "intents": intents, "events": len(ids)}

    def _remove_events(self, project: str, ids: Sequence[str], pipe: RedisPipeline) -> None:
        """Remove events, their places in all lists and their due work."""
        pipe.delete(*(keys.event(project, event_id) for event_id in ids))
        for key in (keys.events, keys.unfinished, keys.mailing, keys.reviews, keys.seen_starts):
            pipe.zrem(key(project), *ids)
        for listed in keys.ended_lists(project):
            pipe.zrem(listed, *ids)
        for key, event_id in product((keys.arrived, keys.outbox), ids):
            pipe.lrem(key(project), 0, event_id)
        due = [f"{kind}|{project}|{event_id}" for event_id in ids for kind in ("lookup", "email")]
        pipe.zrem(keys.DUE, *due)
        pipe.hdel(keys.ATTEMPTS, *due)
        self._remove_from_digest(project, ids, "", pipe)

    def forget_project(self, project: str) -> dict[str, int]:
        """Remove all that is kept of a project but its figures. Returns how many statuses and events that were.

        It is noted last that this project is known: what a crash leaves is found by the next call.
        """
        removed = {"status": self.count_statuses(project), "events": self._forget_events(project)}
        due = [member for member, _ in self.redis.zscan_iter(keys.DUE, match=f"*|{project}|*", count=1000)]
        with self.redis.pipeline(transaction=True) as pipe:
            for start in range(0, len(due), CHUNK):
                pipe.zrem(keys.DUE, *due[start : start + CHUNK])
                pipe.hdel(keys.ATTEMPTS, *due[start : start + CHUNK])
            pipe.unlink(*keys.of_project(project))
            for key in (
                keys.PROBLEMS, keys.VERIFIED, keys.CHECKS, keys.CHECK_COUNTS, keys.SUMMARIES, keys.PROJECTS,
            ):  # fmt: skip
                pipe.hdel(key, project)
            pipe.zrem(keys.CHECKS_DUE, project)
            pipe.execute()
        BackgroundJobs(self.redis).forget_project(project)
        return removed

    def _forget_events(self, project: str) -> int:
        number = 0
        while ids := self.redis.zrange(keys.events(project), 0, CHUNK - 1):
            with self.redis.pipeline(transaction=True) as pipe:
                pipe.unlink(*(keys.event(project, event_id) for event_id in ids))
                pipe.zrem(keys.events(project), *ids)
                pipe.execute()
            number += len(ids)
        return number
