"""The sign of life for container engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.celery_app import app
from worker.runtime.schedule import ConfiguredScheduler
from worker.runtime.watchdog import touch_heartbeat


def test_a_beat_touches_the_file_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTOUT_HEARTBEAT_FILE", str(tmp_path / "alive"))
    touch_heartbeat()
    assert (tmp_path / "alive").exists()


def test_no_file_is_written_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch_heartbeat()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTOUT_HEARTBEAT_FILE", str(tmp_path / "missing" / "alive"))
    touch_heartbeat()
    assert list(tmp_path.iterdir()) == []


def test_each_tick_of_the_clock_is_a_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTOUT_HEARTBEAT_FILE", str(tmp_path / "alive"))
    monkeypatch.setattr(ConfiguredScheduler, "setup_schedule", lambda self: None)
    ConfiguredScheduler(app=app).tick()
    assert (tmp_path / "alive").exists()
