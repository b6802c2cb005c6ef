"""`optout export`: the audit trail, for those who have to show it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from importlib import import_module

import pytest
from click.testing import CliRunner, Result

from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone, fictional_phone_as_typed
from worker.cli import main
from worker.cli.export import COLUMNS

pytestmark = pytest.mark.usefixtures("naps")
Run = Callable[..., Result]


@pytest.fixture
def asthma() -> Study:
    project = classic_study()
    enrol(project, 2)
    return study(project)


@pytest.fixture
def run(asthma: Study, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in ("export", "record"):
        monkeypatch.setattr(import_module(f"worker.cli.{name}"), "make_services", lambda: asthma.services)
    monkeypatch.setattr("worker.cli.configure_logging", lambda _level: None)
    return lambda *args: CliRunner().invoke(main, args)


def exported(run: Run, *more: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run("export", "--project", "asthma", *more).stdout)))


def test_a_row_per_event_and_record_with_all_times(asthma: Study, run: Run) -> None:
    asthma.project.set_value("2", "mobile", fictional_phone_as_typed(1))
    stop = asthma.text(fictional_phone(1))
    asthma.work()
    first, second = exported(run)
    assert tuple(first) == COLUMNS
    assert (first["record"], second["record"], first["event_id"]) == ("1", "2", stop.event_id)
    assert (first["change"], first["state"], first["source"]) == ("STOP", "updated", "webhook")
    texted, received, written, notified = (
        datetime.fromisoformat(first[name])
        for name in ("texted_at", "received_at", "written_at", "notified_at")
    )
    assert texted <= received <= written <= notified


def test_decisions_of_staff_name_who_and_why(asthma: Study, run: Run) -> None:
    run("record", "asthma", "1", "stop", "--reason", "phoned", "--by", "kim")
    [row] = exported(run)
    assert (row["source"], row["decided_by"], row["reason"]) == ("staff", "kim", "phoned")


def test_json_holds_the_same(asthma: Study, run: Run) -> None:
    asthma.text(fictional_phone(1))
    asthma.work()
    asthma.text("+16505559999")
    asthma.work()
    rows = json.loads(run("export", "--project", "asthma", "--format", "json").stdout)
    assert rows == exported(run)
    assert rows[1]["record"] == ""


def test_nothing_is_an_empty_table(run: Run) -> None:
    assert exported(run) == []
    assert json.loads(run("export", "--project", "asthma", "--format", "json").stdout) == []


def test_a_day_limits_it(asthma: Study, run: Run) -> None:
    asthma.text(fictional_phone(1))
    asthma.work()
    tomorrow = (asthma.clock() + timedelta(days=1)).strftime("%Y-%m-%d")
    assert exported(run, "--since", tomorrow) == []
    assert len(exported(run, "--since", "2026-01-01")) == 1


def test_a_cell_that_looks_like_a_formula_is_text(asthma: Study, run: Run) -> None:
    asthma.project.add_record("=1+1", mobile=fictional_phone_as_typed(5))
    asthma.text(fictional_phone(5))
    asthma.work()
    assert [row["record"] for row in exported(run)] == ["'=1+1"]


def test_it_holds_no_number(asthma: Study, run: Run) -> None:
    asthma.text(fictional_phone(1))
    asthma.work()
    assert fictional_phone(1)[2:] not in run("export", "--project", "asthma").stdout


def test_an_unknown_project_is_named(run: Run) -> None:
    result = run("export", "--project", "other")
    assert (result.exit_code, "no project 'other'" in result.output) == (2, True)
