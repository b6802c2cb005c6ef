"""What is waiting in the ledger, of all projects at once: for `/metrics` and the sweep."""

import time
from collections.abc import Iterable
from typing import NamedTuple

from shared.ledger import keys
from shared.ledger.lua_script import LuaScript
from shared.redis_client import RedisClient


class ProjectFigures(NamedTuple):
    """The figures of one project, in the order of the script; times in ms, 0 where there is none."""

    unfinished: int
    oldest_unfinished_ms: int
    pending: int  # phones whose status has to be written to REDCap
    due_mails: int
    gathered: int  # changes that wait for a digest
    reviews: int
    oldest_review_ms: int
    indexed_phones: int
    blocks_waiting: int  # opt-outs that Twilio has yet to be asked to block
    blocks_failed: int
    success_ms: int  # of the reconciliation
    failure_ms: int
    refused: int  # texts after an opt-out, in the last reconciliation
    delivered: int
    block_faults: int  # texts that Twilio delivered although it was asked to block
    # The share of messages that Twilio's log still had; None before the first reconciliation.
    log_covered: float | None


def project_figures(redis: RedisClient, projects: Iterable[str]) -> dict[str, ProjectFigures]:
    """Return the figures of these projects, and of those that have been taken out of the configuration."""
    count = LuaScript(redis, "figures")
    rows = count(
        keys={"projects": keys.PROJECTS, "attempts": keys.ATTEMPTS},
        args={"prefix": keys.PREFIX},
        rest=projects,
    )
    return {
        name: ProjectFigures._make((*counts, float(covered) if covered else None))
        for name, *counts, covered in rows
    }


def age_seconds(since_ms: int) -> float:
    """How long ago one of the times was; 0 if there is none."""
    return max(0.0, time.time() - since_ms / 1000) if since_ms else 0.0
