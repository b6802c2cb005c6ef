"""`--record` and `--since` choose the same events in every command that lists or repeats several."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from click.testing import Result

from shared.domain.events import Change, State
from tests.fakes import Study, command_line, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone

pytestmark = pytest.mark.usefixtures("naps")
Run = Callable[..., Result]


@pytest.fixture
def asthma() -> Study:
    project = classic_study()
    enrol(project, 3)
    return study(project)


@pytest.fixture
def run(asthma: Study, monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(asthma, monkeypatch)


def three(asthma: Study, change: Change) -> tuple[list[str], str]:
    """One text of each record, a day apart. Returns their ids, and a time between the first and the second."""
    ids = []
    for number in (1, 2, 3):
        ids.append(asthma.text(fictional_phone(number), change).event_id)
        asthma.work()
        asthma.clock.ahead += timedelta(days=1)
    return ids, (asthma.clock() - timedelta(days=2.5)).isoformat(timespec="seconds")


@pytest.mark.parametrize("command", ["events", "review"])
def test_lists(asthma: Study, run: Run, command: str) -> None:
    (first, second, third), later = three(asthma, Change.UNCLEAR)

    def listed(*options: str) -> list[str]:
        return sorted(each["event_id"] for each in json.loads(run(command, "--json", *options).output))

    assert listed() == [first, second, third]
    assert listed("--record", "1") == [first]
    assert listed("--since", later) == [second, third]
    assert listed("--since", later, "--record", "1") == []


def test_the_audit_trail_of_a_record(asthma: Study, run: Run) -> None:
    (first, *_), _ = three(asthma, Change.STOP)
    rows = json.loads(run("export", "--project", "asthma", "--record", "1", "--format", "json").output)
    assert [(row["record"], row["event_id"]) for row in rows] == [("1", first)]


def test_replays(asthma: Study, run: Run) -> None:
    for record in ("1", "2", "3"):
        asthma.project.lock_record(record)
    _, later = three(asthma, Change.STOP)
    assert {entry.state for entry in asthma.ledger.entries("asthma")} == {State.FAILED}
    assert run("replay", "--failed", "--record", "none").output == "0 events replayed\n"
    assert run("replay", "--failed", "--since", later, "--record", "2").output == "1 event replayed\n"


def test_an_event_is_chosen_by_itself(run: Run) -> None:
    result = run("replay", "SM" + "0" * 32, "--record", "1")
    assert result.exit_code == 2
    assert "--record and --since choose among several events" in result.output
