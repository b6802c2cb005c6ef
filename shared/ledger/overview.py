"""How each study stands, read in one round trip for all of them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.batches import batches
from shared.ledger import keys
from shared.ledger.failures import failed_ids
from shared.redis_client import RedisClient


@dataclass(frozen=True, slots=True)
class KnownProblem:
    """What keeps a study from being written; `detail` says what was observed and the fix."""

    code: str
    detail: str
    events_kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOverview:
    """One study at one moment. Times are in milliseconds since 1970, 0 if there is none."""

    project: str
    problem: KnownProblem | None
    unfinished: int
    oldest_ms: int
    reviews: int
    failures: int  # participants whose last change is not in REDCap
    success_ms: int
    failure_ms: int
    errors: tuple[str, ...]  # of the last reconciliation, if it failed


class Overview:
    """Reads the studies."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    def of(self, projects: Sequence[str]) -> list[StudyOverview]:
        """The studies, in the given order."""
        problems = self._redis.hgetall(keys.PROBLEMS)
        with self._redis.pipeline(transaction=False) as pipe:
            for project in projects:
                _ask(project, pipe)
            answers = list(pipe.execute())
        rows = zip(projects, batches(answers, _COMMANDS), strict=True)
        return [self._study(project, problems.get(project), row) for project, row in rows]

    def opted_out(self, projects: Sequence[str]) -> dict[str, int]:
        """How many records of each study hold an opt-out that the program has entered."""
        with self._redis.pipeline(transaction=False) as pipe:
            for project in projects:
                pipe.hlen(keys.written(project))
            return dict(zip(projects, pipe.execute(), strict=True))

    def removed(self, configured: Iterable[str]) -> list[str]:
        """Projects that are not configured any more, of which something is kept."""
        return sorted(set(self._redis.hkeys(keys.PROJECTS)) - set(configured))

    def _study(self, project: str, problem: str | None, row: Sequence[Any]) -> StudyOverview:
        oldest, reviews, failures, (success, failure) = row
        failed = int(failure or 0) > int(success or 0)
        return StudyOverview(
            project=project,
            problem=_decode(problem) if problem else None,
            unfinished=self._redis.zcard(keys.unfinished(project)) if oldest else 0,
            oldest_ms=int(oldest[0][1]) if oldest else 0,
            reviews=reviews,
            failures=len(failed_ids(project, self._redis)) if failures else 0,
            success_ms=int(success or 0),
            failure_ms=int(failure or 0),
            errors=self._errors(project) if failed else (),
        )

    def _errors(self, project: str) -> tuple[str, ...]:
        report = json.loads(self._redis.hget(keys.reconciled(project), "report") or "{}")
        return tuple(report.get("errors", ()))


# The fewer, the faster: hundreds of studies are read for one page.
_COMMANDS = 4


def _ask(project: str, pipe: Any) -> None:
    pipe.zrange(keys.unfinished(project), 0, 0, withscores=True)
    pipe.zcard(keys.reviews(project))
    pipe.hlen(keys.failures(project))
    pipe.hmget(keys.reconciled(project), "success_ms", "failure_ms")


def _decode(text: str) -> KnownProblem:
    stored = json.loads(text)
    return KnownProblem(stored["problem"], stored["detail"], stored.get("events_kept", True))
