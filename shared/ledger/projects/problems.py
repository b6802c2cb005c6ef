"""What keeps projects from being written, and when each was last found to be without a problem."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.domain.events import milliseconds
from shared.ledger import keys
from shared.ledger.base import LedgerBase


@dataclass(frozen=True, slots=True)
class KnownProblem:
    """What keeps a project from being written; `detail` says what was observed and the fix."""

    code: str
    detail: str
    events_kept: bool  # until it is fixed


class ProjectProblems(LedgerBase):
    """The known problem of each project that has one."""

    def note(self, project: str, problem: KnownProblem) -> bool:
        """Keep a problem. Returns whether it was unknown."""
        stored = {"problem": problem.code, "detail": problem.detail, "events_kept": problem.events_kept}
        text = json.dumps(stored, sort_keys=True)
        if self.redis.hget(keys.PROBLEMS, project) == text:
            return False
        self.redis.hset(keys.PROBLEMS, project, text)
        return True

    def remove(self, project: str) -> bool:
        """Forget a problem. Returns whether there was one."""
        return bool(self.redis.hdel(keys.PROBLEMS, project))

    def of(self, project: str) -> KnownProblem | None:
        """A project's problem, or None."""
        text = self.redis.hget(keys.PROBLEMS, project)
        return _decode(json.loads(text)) if text else None

    def all(self) -> dict[str, KnownProblem]:
        """The problems by project."""
        return {project: _decode(stored) for project, stored in self.as_json().items()}

    def as_json(self) -> dict[str, dict[str, Any]]:
        """The problems by project, as `/readyz` shows them."""
        return {project: json.loads(text) for project, text in self.redis.hgetall(keys.PROBLEMS).items()}

    def projects(self) -> set[str]:
        """The projects that have a problem."""
        return set(self.redis.hkeys(keys.PROBLEMS))


def _decode(stored: dict[str, Any]) -> KnownProblem:
    return KnownProblem(stored["problem"], stored["detail"], stored.get("events_kept", True))


@dataclass(frozen=True, slots=True)
class Verified:
    """When a project was found to be without a problem, and the digest of its configuration then."""

    at_ms: int
    digest: str


class VerifiedProjects(LedgerBase):
    """The last check of each project against REDCap."""

    def note(self, project: str, digest: str, *, now: datetime) -> None:
        """The project fits this configuration."""
        self.redis.hset(keys.VERIFIED, project, f"{milliseconds(now)} {digest}")

    def all(self) -> dict[str, Verified]:
        """The last checks by project."""
        parts = {project: text.partition(" ") for project, text in self.redis.hgetall(keys.VERIFIED).items()}
        return {project: Verified(int(at_ms), digest) for project, (at_ms, _, digest) in parts.items()}
