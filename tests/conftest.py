"""Fixtures for all tests."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import tenacity.nap

from tests.builders import SECRETS
from tests.fakes import fake_redis


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
