"""How each study stands, read in a few round trips for all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.batches import batches
from shared.ledger import keys
from shared.ledger.base import LedgerBase
from shared.ledger.events.failures import failed_ids
from shared.ledger.projects.problems import KnownProblem, ProjectProblems
from shared.ledger.projects.reconciliations import Reconciliations


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


# Keys whose existence is asked for together: the fewer commands, the faster, with hundreds of studies.
_GROUP = 10


class Overview(LedgerBase):
    """Reads the studies."""

    def of(self, projects: Sequence[str]) -> list[StudyOverview]:
        """The studies, in the given order."""
        problems = ProjectProblems(self.redis).all()
        unfinished = self._counts(projects, keys.unfinished, "zcard")
        reviews = self._counts(projects, keys.reviews, "zcard")
        failures = self._counts(projects, keys.failures, "hlen")
        return [
            StudyOverview(
                project=project,
                problem=problems.get(project),
                unfinished=unfinished.get(project, 0),
                oldest_ms=self._oldest_ms(project) if project in unfinished else 0,
                reviews=reviews.get(project, 0),
                failures=len(failed_ids(project, self.redis)) if project in failures else 0,
                success_ms=success_ms,
                failure_ms=failure_ms,
                errors=self._errors(project) if failure_ms > success_ms else (),
            )
            for project, (success_ms, failure_ms) in zip(projects, self._reconciled(projects), strict=True)
        ]

    def _reconciled(self, projects: Sequence[str]) -> list[tuple[int, int]]:
        """When the last reconciliation of each succeeded, and when the last one failed."""
        with self.redis.pipeline(transaction=False) as pipe:
            for project in projects:
                pipe.hmget(keys.reconciled(project), "success_ms", "failure_ms")
            return [(int(success or 0), int(failure or 0)) for success, failure in pipe.execute()]

    def _counts(self, projects: Sequence[str], key: Callable[[str], str], command: str) -> dict[str, int]:
        """The sizes of a collection of each project, without those that are empty, as almost all are."""
        groups = list(batches(projects, _GROUP))
        with self.redis.pipeline(transaction=False) as pipe:
            for group in groups:
                pipe.exists(*map(key, group))
            filled = [
                name for group, number in zip(groups, pipe.execute(), strict=True) if number for name in group
            ]
            for name in filled:
                getattr(pipe, command)(key(name))
            return {name: number for name, number in zip(filled, pipe.execute(), strict=True) if number}

    def _oldest_ms(self, project: str) -> int:
        oldest = self.redis.zrange(keys.unfinished(project), 0, 0, withscores=True)
        return int(oldest[0][1]) if oldest else 0

    def due_mails(self, projects: Sequence[str]) -> int:
        """How many e-mails of the studies are due."""
        return sum(self._counts(projects, keys.mailing, "zcard").values())

    def opted_out(self, projects: Sequence[str]) -> dict[str, int]:
        """How many records of each study hold an opt-out that the program has entered."""
        with self.redis.pipeline(transaction=False) as pipe:
            for project in projects:
                pipe.hlen(keys.written(project))
            return dict(zip(projects, pipe.execute(), strict=True))

    def _errors(self, project: str) -> tuple[str, ...]:
        return tuple(Reconciliations(self.redis, project).report().get("errors", ()))
