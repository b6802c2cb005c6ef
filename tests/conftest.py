"""Fixtures for all tests, and how many cases Hypothesis tries."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity.nap
from hypothesis import HealthCheck, settings

from tests.builders import SECRETS
from tests.fakes import fake_redis

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
