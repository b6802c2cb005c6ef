"""What the commands show on narrow terminals, and the filters of lists."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.checks.findings import CATALOGUE
from worker.cli import main
from worker.cli.common import show_table

pytestmark = pytest.mark.usefixtures("naps")

SID = "SM" + "0123456789abcdef" * 2
HEADINGS = ("When (UTC)", "Project", "Change", "State", "Records", "Reason", "Mail", "Message")
ROW = ("2026-05-04 10:20:30", "asthma", "STOP", "failed", "17, 18", "REDCap rejected the value", "sent", SID)


def shown(width: int) -> str:
    out = io.StringIO()
    show_table(HEADINGS, [ROW, ROW], Console(file=out, width=width, force_terminal=True, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_width_cuts_a_message_sid(width: int) -> None:
    assert shown(width).count(SID) == 2


def test_eighty_columns_get_cards_and_a_wide_terminal_a_table() -> None:
    assert "Message     " in shown(80)
    assert "┃" not in shown(80)
    assert "┃" in shown(200)


@pytest.fixture(autouse=True)
def _without_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command configures the logging of a whole process, which other tests share."""
    monkeypatch.setattr("worker.cli.configure_logging", lambda _level: None)


@pytest.fixture
def asthma(monkeypatch: pytest.MonkeyPatch) -> Study:
    project = classic_study()
    enrol(project, 3)
    made = study(project)
    for name in ("events", "top"):
        monkeypatch.setattr(import_module(f"worker.cli.{name}"), "make_services", lambda: made.services)
    return made


def listed(*args: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(main, [*args, "--json"])
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_events_of_one_record(asthma: Study) -> None:
    for number in (1, 2):
        asthma.text(fictional_phone(number))
    asthma.work()
    [event] = listed("events", "--record", "2")
    assert event["records"] == ["2"]
    assert listed("events", "--record", "3") == []


def test_events_since_a_local_time_or_one_with_an_offset(asthma: Study) -> None:
    old = asthma.text(fictional_phone(1), received=asthma.clock() - timedelta(days=3))
    new = asthma.text(fictional_phone(2))
    zone = asthma.services.config.zone(asthma.services.config.projects["asthma"])
    yesterday = (asthma.clock() - timedelta(days=1)).astimezone(zone)
    for text in (yesterday.strftime("%Y-%m-%d %H:%M"), yesterday.strftime("%Y-%m-%dT%H:%M:%S%z")):
        assert [event["event_id"] for event in listed("events", "--since", text)] == [new.event_id]
    assert len(listed("events", "--since", f"{yesterday - timedelta(days=5):%Y-%m-%d}")) == 2
    assert old.event_id != new.event_id


def test_top_as_json_is_one_object_for_each_project(asthma: Study) -> None:
    asthma.text(fictional_phone(1))
    [project] = listed("top")
    assert (project["project"], project["unfinished"]) == ("asthma", 1)


@pytest.mark.parametrize("id_", ["config-unusable", "configuration-stale"])
def test_a_finding_is_explained_without_a_configuration(monkeypatch: pytest.MonkeyPatch, id_: str) -> None:
    monkeypatch.setenv("OPTOUT_CONFIG", "/nowhere.toml")
    result = CliRunner().invoke(main, ["check", "--explain", id_])
    assert result.exit_code == 0
    assert CATALOGUE[id_].why in result.stdout
    assert CATALOGUE[id_].fix in result.stdout


def test_an_unknown_finding_is_an_error() -> None:
    assert CliRunner().invoke(main, ["check", "--explain", "nothing-like-this"]).exit_code == 2
