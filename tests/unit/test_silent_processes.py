"""Which processes are missing: killed ones are, until they are replaced; those that were stopped never are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from shared.ledger import Ledger, keys
from shared.ledger.platform import loaded_configurations
from shared.ledger.platform.heartbeats import ENDED_AFTER_MS, FORGOTTEN_AFTER_MS, silent_processes
from shared.ledger.platform.loaded_configurations import Follower, publish
from tests.builders import config
from tests.fakes import fake_redis
from web.monitoring.metrics import LedgerCollector

START_MS = 1_780_000_000_000
SECOND, MINUTE = 1_000, 60_000


class Host:
    """Processes in a time that the test sets. Each publishes every ten seconds while it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = START_MS
        self.redis = fake_redis()
        self.running: dict[str, Follower] = {}
        monkeypatch.setattr(loaded_configurations, "_now_ms", lambda: self.now_ms)
        monkeypatch.setattr(loaded_configurations, "PUBLISH_EVERY_SECONDS", 0)

    def start(self, field: str) -> None:
        live: Any = SimpleNamespace(config=config(), problem=None, needs_restart=(), refresh=lambda: None)
        self.running[field] = Follower(self.redis, field, live, lambda _before: None)
        self.running[field].step()

    def kill(self, *fields: str) -> None:
        for field in fields:
            del self.running[field]

    def stop(self, field: str) -> None:
        follower = self.running.pop(field)
        follower.stop()
        follower.run()

    def pass_(self, milliseconds: int) -> None:
        end_ms = self.now_ms + milliseconds
        while self.now_ms < end_ms:
            self.now_ms = min(end_ms, self.now_ms + 10 * SECOND)
            for follower in self.running.values():
                follower.step()

    def silent(self) -> list[str]:
        return [each.field for each in silent_processes(self.redis, now_ms=self.now_ms)]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_one_that_is_killed_is_missing_since_its_last_heartbeat(host: Host) -> None:
    for field in ("worker|one|7", "worker|two|7"):
        host.start(field)
    host.pass_(5 * MINUTE)
    killed_ms = host.now_ms
    host.kill("worker|two|7")
    host.pass_(ENDED_AFTER_MS)
    assert host.silent() == []
    host.pass_(SECOND)
    [missing] = silent_processes(host.redis, now_ms=host.now_ms)
    assert (missing.field, missing.since_ms) == ("worker|two|7", killed_ms)


def test_it_is_missing_however_young_the_others_are(host: Host) -> None:
    host.start("worker|one|7")
    host.start("worker|two|7")
    host.pass_(20 * SECOND)
    host.kill("worker|two|7")
    host.pass_(10 * MINUTE)
    assert host.silent() == ["worker|two|7"]


def test_one_that_is_stopped_is_not_missing(host: Host) -> None:
    for field in ("worker|one|7", "worker|two|7"):
        host.start(field)
    host.pass_(MINUTE)
    host.stop("worker|two|7")
    host.pass_(10 * MINUTE)
    assert host.silent() == []
    assert host.redis.hkeys(keys.CONFIGURATIONS) == ["worker|one|7"]


@pytest.mark.parametrize("successor", ["worker|two|7", "worker|two|99", "worker|c0ffee|7"])
def test_a_restart_or_a_recreation_takes_its_place(host: Host, successor: str) -> None:
    for field in ("worker|one|7", "worker|two|7"):
        host.start(field)
    host.pass_(MINUTE)
    host.kill("worker|two|7")
    host.pass_(5 * SECOND)
    host.start(successor)
    host.pass_(MINUTE)
    assert host.silent() == []
    host.stop(successor)
    host.pass_(MINUTE)
    assert host.silent() == []


def test_a_deployment_that_kills_and_recreates_all_leaves_none_missing(host: Host) -> None:
    old = [f"{kind}|old{number}|7" for kind in ("web", "worker") for number in range(3)]
    for field in old:
        host.start(field)
    host.pass_(MINUTE)
    host.kill(*old)
    for field in old:
        host.start(field.replace("old", "new"))
    host.pass_(MINUTE)
    assert host.silent() == []


def test_a_successor_replaces_one_process_on_another_host(host: Host) -> None:
    for field in ("worker|one|7", "worker|two|7", "worker|three|7"):
        host.start(field)
    host.pass_(MINUTE)
    host.kill("worker|two|7")
    host.pass_(10 * SECOND)
    host.kill("worker|three|7")
    host.start("worker|four|7")
    host.pass_(MINUTE)
    assert host.silent() == ["worker|three|7"]


def test_another_kind_replaces_nothing(host: Host) -> None:
    for field in ("worker|one|7", "worker|two|7"):
        host.start(field)
    host.pass_(MINUTE)
    host.kill("worker|two|7")
    host.start("web|two|8")
    host.pass_(MINUTE)
    assert host.silent() == ["worker|two|7"]


def test_a_crash_loop_leaves_none_behind_when_it_ends(host: Host) -> None:
    for process_id in range(10, 15):
        host.start(f"worker|one|{process_id}")
        host.pass_(20 * SECOND)
        host.kill(f"worker|one|{process_id}")
    host.start("worker|one|15")
    host.pass_(MINUTE)
    assert host.silent() == []


def test_one_that_hung_and_goes_on_is_not_missing_any_more(host: Host) -> None:
    host.start("worker|one|7")
    hung = host.running.pop("worker|one|7")
    host.pass_(MINUTE)
    assert host.silent() == ["worker|one|7"]
    host.running["worker|one|7"] = hung
    host.pass_(10 * SECOND)
    assert host.silent() == []


def test_it_is_forgotten_after_a_day(host: Host) -> None:
    host.start("worker|gone|7")
    host.kill("worker|gone|7")
    host.now_ms += FORGOTTEN_AFTER_MS
    assert host.silent() == ["worker|gone|7"]
    host.now_ms += 1
    assert host.silent() == []
    host.start("web|one|7")
    host.pass_(MINUTE)
    assert host.redis.hkeys(keys.HEARTBEATS) == ["web|one|7"]


def test_metrics_count_them_by_kind_and_host(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: START_MS * 1_000_000)
    for field, age_ms in {"worker|one|7": 60_000, "worker|one|8": 60_000, "worker|two|7": 0}.items():
        publish(redis, field, "aaaa", now_ms=START_MS - age_ms)
    registry = CollectorRegistry()
    registry.register(LedgerCollector(Ledger(redis), []))
    labels = {"kind": "worker", "host": "one"}
    assert registry.get_sample_value("optout_silent_processes", labels) == 2
    assert registry.get_sample_value("optout_silent_processes", {**labels, "host": "two"}) is None
