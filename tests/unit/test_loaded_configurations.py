"""What each process has loaded: equal for the same values, different after any change, gone when the process ends."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from shared.config import parse_config
from shared.ledger import keys
from shared.ledger.platform.heartbeats import ENDED_AFTER_MS
from shared.ledger.platform.loaded_configurations import (
    LoadedConfiguration,
    loaded_configurations,
    publish,
)
from tests.builders import config, document, project_table
from tests.fakes import fake_redis
from worker.checks.configuration import check_loaded
from worker.checks.findings import Finding, Passed

NOW = datetime(2026, 5, 4, 10, 20, 30, tzinfo=UTC)
NOW_MS = int(NOW.timestamp() * 1000)


def test_the_digest_is_that_of_the_values_whatever_their_order() -> None:
    assert config().digest == parse_config(dict(reversed(document().items()))).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"notify": ["else@example.edu"]},
        {"phone_field": "phone"},
        {"redcap_token": "env:ANOTHER"},
        {"keyword_fallback": True},
    ],
)
def test_any_change_changes_the_digest(changes: dict[str, object]) -> None:
    assert config({"asthma": project_table(**changes)}).digest != config().digest


def test_the_digest_is_the_same_in_another_process() -> None:
    """No hash of Python's, which differs between processes."""
    code = "from tests.builders import config; print(config().digest)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == config().digest


def test_a_process_that_stopped_publishing_is_forgotten() -> None:
    redis = fake_redis()
    publish(redis, "web|one|7", "aaaa", now_ms=NOW_MS - ENDED_AFTER_MS - 1)
    publish(redis, "web|two|7", "bbbb", now_ms=NOW_MS - ENDED_AFTER_MS)
    assert list(loaded_configurations(redis, now_ms=NOW_MS)) == [LoadedConfiguration("web on two", "bbbb")]
    assert redis.hkeys(keys.CONFIGURATIONS) == ["web|two|7"]


def test_check_passes_where_all_processes_have_loaded_the_file() -> None:
    redis = fake_redis()
    for kind in ("web", "worker", "beat"):
        publish(redis, f"{kind}|host|7", config().digest, now_ms=NOW_MS)
    [passed] = check_loaded(config(), redis, lambda: NOW)
    assert isinstance(passed, Passed)
    assert "3 processes" in passed.text


def test_check_names_each_process_that_has_loaded_something_else() -> None:
    redis = fake_redis()
    publish(redis, "web|host|7", config().digest, now_ms=NOW_MS)
    publish(redis, "worker|host|8", "0123abcd", now_ms=NOW_MS)
    [finding] = check_loaded(config(), redis, lambda: NOW)
    assert isinstance(finding, Finding)
    assert (finding.id, finding.observed.split(" has ")[0]) == ("configuration-stale", "worker on host")
    assert "make apply" in finding.kind.fix


def test_where_no_process_runs_nothing_is_said() -> None:
    assert list(check_loaded(config(), fake_redis(), lambda: NOW)) == []
