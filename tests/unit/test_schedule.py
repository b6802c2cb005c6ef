"""What beat starts, and when: also on the two nights a year when clocks change."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from celery import Celery

from shared.messaging.tasks import QUEUES, TaskName
from tests.builders import at, config, project_table
from tests.unit.test_config_files import MAIN, study
from worker.runtime.schedule import ConfiguredScheduler, ZonedCrontab, beat_entries

LOS_ANGELES = ZoneInfo("America/Los_Angeles")
BERLIN = ZoneInfo("Europe/Berlin")


def runs(hour: int, minute: int, zone: ZoneInfo, start: datetime, end: datetime) -> list[str]:
    """When beat would start an entry between two moments, looking every 15 seconds as it does at most."""
    app = Celery("test", set_as_current=False)
    app.conf.update(timezone="UTC", enable_utc=True)
    found: list[str] = []
    with time_machine.travel(start, tick=False) as traveller:
        nightly = ZonedCrontab(zone=zone, hour=hour, minute=minute, app=app)
        last, now = start, start
        while now < end:
            due, wait = nightly.is_due(last)
            if due:
                last = now
                found.append(now.astimezone(zone).isoformat())
            now += timedelta(seconds=min(max(wait, 15), 300))
            traveller.move_to(now)
    return found


def between(hour_of: str, found: list[str]) -> list[str]:
    return [text for text in found if text.startswith(hour_of)]


def test_an_ordinary_night_has_one_run_at_the_configured_time() -> None:
    found = runs(2, 30, LOS_ANGELES, at("2026-05-04T00:00"), at("2026-05-06T00:00"))
    assert [text[:16] for text in found] == ["2026-05-04T02:30", "2026-05-05T02:30"]


def test_a_time_that_the_clocks_skip_has_its_run_right_after_the_gap() -> None:
    """8 March 2026: 02:00 becomes 03:00 in Los Angeles."""
    found = runs(2, 30, LOS_ANGELES, at("2026-03-07T20:00"), at("2026-03-09T20:00"))
    assert len(between("2026-03-08", found)) == 1
    assert between("2026-03-08", found)[0][:13] == "2026-03-08T03"
    assert [text[:16] for text in between("2026-03-09", found)] == ["2026-03-09T02:30"]


def test_a_time_that_comes_twice_has_one_run() -> None:
    """1 November 2026: 02:00 becomes 01:00 again in Los Angeles."""
    found = runs(1, 30, LOS_ANGELES, at("2026-10-31T20:00"), at("2026-11-02T20:00"))
    assert len(between("2026-11-01", found)) == 1
    assert [text[:16] for text in between("2026-11-02", found)] == ["2026-11-02T01:30"]


@pytest.mark.parametrize(("day", "hour"), [("2026-03-29", 2), ("2026-10-25", 2)])
def test_the_nights_of_europe_have_one_run_too(day: str, hour: int) -> None:
    start = at(f"{day}T00:00") - timedelta(hours=6)
    found = runs(hour, 30, BERLIN, start, start + timedelta(hours=40))
    assert len(between(day, found)) == 1


@pytest.mark.parametrize("day", ["2026-03-08", "2026-11-01"])
def test_the_default_time_has_one_run_on_either_night(day: str) -> None:
    start = at(f"{day}T00:00")
    found = runs(2, 30, LOS_ANGELES, start, start + timedelta(hours=30))
    assert len(between(day, found)) == 1


def test_sweep_runs_each_minute_and_each_project_has_its_nightly_run() -> None:
    entries = beat_entries(config({"asthma": project_table(), "sleep": project_table()}))
    assert set(entries) == {"sweep", "reconcile-asthma", "reconcile-sleep"}
    sweep, nightly = entries["sweep"], entries["reconcile-sleep"]
    assert (sweep["task"], sweep["schedule"].seconds) == (TaskName.SWEEP, 60)
    assert sweep["options"] == {"queue": QUEUES[TaskName.SWEEP], "expires": 60.0}
    assert (nightly["task"], nightly["args"]) == (TaskName.RECONCILE, ("sleep",))
    assert nightly["kwargs"] == {"nightly": True}
    assert nightly["options"]["queue"] == QUEUES[TaskName.RECONCILE]


def test_the_nightly_run_is_at_the_configured_time_in_the_deployment_s_zone() -> None:
    entries = beat_entries(config(reconcile={"at": "23:05"}, time_zone="Europe/Berlin"))
    nightly = entries["reconcile-asthma"]["schedule"]
    assert (nightly.hour, nightly.minute, nightly.tz.key) == ({23}, {5}, "Europe/Berlin")


def test_a_change_of_the_configuration_changes_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(MAIN.replace('include = "studies/*.toml"', "") + study("asthma"))
    monkeypatch.setenv("OPTOUT_CONFIG", str(path))
    monkeypatch.setattr("worker.runtime.schedule.follow", lambda *_: None)
    app = Celery("test", set_as_current=False, broker="memory://")
    scheduler = ConfiguredScheduler(app)
    assert scheduler.live
    assert set(scheduler.schedule) == {"sweep", "reconcile-asthma"}
    path.write_text(f'{path.read_text()}{study("sleep")}[reconcile]\nat = "04:05"\n')
    scheduler.live.refresh()
    monkeypatch.setattr(scheduler, "apply_entry", lambda *_, **__: None)
    assert scheduler.tick() <= 5
    assert set(scheduler.schedule) == {"sweep", "reconcile-asthma", "reconcile-sleep"}
    nightly: Any = scheduler.schedule["reconcile-asthma"].schedule
    assert (nightly.hour, nightly.minute) == ({4}, {5})
    path.write_text(MAIN.replace('include = "studies/*.toml"', "") + study("sleep"))
    scheduler.live.refresh()
    scheduler.tick()
    assert set(scheduler.schedule) == {"sweep", "reconcile-sleep"}
