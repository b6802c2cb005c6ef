"""Real processes: those that are stopped withdraw their heartbeat, one that is killed leaves it and is missing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from shared.ledger import keys
from shared.ledger.platform.heartbeats import silent_processes
from tests.integration.test_configuration_changes import Deployment, deployment
from tests.processes import Process, wait_until


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("silent")) as found:
        yield found


def kinds(running: Deployment) -> list[str]:
    found: list[str] = running.world.platform.redis.hkeys(keys.HEARTBEATS)
    return sorted(field.split("|")[0] for field in found)


def test_a_killed_worker_is_missing_and_stopped_processes_are_not(running: Deployment) -> None:
    platform = running.world.platform
    second = Process(
        "second",
        [*platform["worker"].command, "--hostname=second@%h"],
        env=platform.env,
        folder=running.folder,
    )
    second.start()
    try:
        wait_until(lambda: kinds(running) == ["beat", "web", "worker", "worker"], what="all publish")
        process_id = str(second.pid)
    finally:
        second.kill()
    for name in ("web", "worker", "beat"):
        platform[name].stop()
    assert kinds(running) == ["worker"]
    in_a_minute = time.time_ns() // 1_000_000 + 60_000
    [missing] = silent_processes(platform.redis, now_ms=in_a_minute)
    assert (missing.kind, missing.process_id) == ("worker", process_id)
