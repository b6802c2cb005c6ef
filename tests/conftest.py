"""Fixtures for all tests, how many cases Hypothesis tries, and in which order and process a test runs."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity.nap
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from tests.builders import SECRETS
from tests.fakes import fake_redis
from tests.forked import run_optout
from tests.processes import Platform

# Some hundred processes start, and read the program: without its bytecode they take a fifth more of the processors.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

Platform.optout = staticmethod(run_optout)

# The time of a case depends on its length and on what else the machine does: no deadline and no health check that
# measures time. "quick" tries the same cases in every run, so that a change is judged by itself; "thorough"
# (HYPOTHESIS_PROFILE=thorough) looks for new ones.
_common = settings(
    deadline=None,
    stateful_step_count=40,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
settings.register_profile("quick", _common, max_examples=60, derandomize=True)
settings.register_profile("thorough", _common, max_examples=4000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The secrets that the tests' configurations refer to, and nothing of the caller's own settings."""
    for name in list(os.environ):
        if name.startswith(("OPTOUT_", "FLOWER_")):
            monkeypatch.delenv(name)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def redis() -> Any:
    """An empty Redis in this process."""
    return fake_redis()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Collects the pauses between quick tries, which then take no time."""
    taken: list[float] = []
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=taken.append))
    return taken


# --- the order of the tests, and which process runs them --------------------------------------------------

# Files that share the platform of tests/integration/conftest.py: one process runs them, so that it is started once.
ONE_PLATFORM = {
    f"tests/integration/test_{name}.py"
    for name in ("block_story", "flower_browser", "invalid_messages", "privacy", "spine", "wishes_story")
}
# Files that take long, and mostly wait: they begin first, and the others run beside them.
LONG = (
    "integration/test_sentinel", "integration/test_block_story", "hostile/test_secrets", "integration/test_reconcile",
    "integration/test_rabbitmq", "integration/test_configuration_changes", "integration/", "hostile/",
)  # fmt: skip


class _Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """A file's tests in one process, and those of all files that share a platform."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "one platform" if file in ONE_PLATFORM else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return _Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((at for at, name in enumerate(LONG) if f"tests/{name}" in item.nodeid), len(LONG))

    items.sort(key=rank)
