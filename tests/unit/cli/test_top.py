"""`optout top`: its figures are the ledger's."""

from __future__ import annotations

import importlib
from datetime import timedelta

import pytest
from click.testing import CliRunner

from shared.ledger import keys
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone

command = importlib.import_module("worker.cli.top")


@pytest.fixture
def asthma(monkeypatch: pytest.MonkeyPatch) -> Study:
    project = classic_study()
    enrol(project, 3)
    asthma = study(project)
    monkeypatch.setattr(command, "make_services", lambda: asthma.services)
    return asthma


def test_it_counts_what_waits_and_what_has_ended(asthma: Study) -> None:
    asthma.text(fictional_phone(1))
    asthma.work()
    asthma.text(fictional_phone(2), received=asthma.clock() - timedelta(minutes=4))
    [found] = command.figures(asthma.services, ["asthma"])
    assert (found.unfinished, found.ended, found.failed, found.mails_due) == (1, 1, 0, 0)
    assert found.oldest_seconds >= 180
    assert found.redcap_last_minute == len(asthma.redcap.requests)


def test_one_frame_for_scripts_is_a_line_per_project(asthma: Study) -> None:
    asthma.redis.hset(keys.PROBLEMS, "asthma", "{}")
    result = CliRunner().invoke(command.top, ["--once"])
    assert result.exit_code == 0
    assert result.stdout == "asthma\t0\t\t0\t0\t0\t\t0\t0/6000\tsee /readyz\n"


def test_a_failed_event_shows(asthma: Study) -> None:
    asthma.project.lock_record("1")
    asthma.text(fictional_phone(1))
    asthma.work()
    [found] = command.figures(asthma.services, ["asthma"])
    assert found.failed == 1


def test_many_projects_cost_no_more_requests_to_redis_than_one(
    asthma: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[object, ...]] = []
    execute = asthma.redis.execute_command

    def counted(*args: object, **options: object) -> object:
        sent.append(args)
        return execute(*args, **options)

    command.figures(asthma.services, ["asthma"])  # from now on Redis knows the script
    monkeypatch.setattr(asthma.redis, "execute_command", counted)
    command.figures(asthma.services, ["asthma"])
    alone = len(sent)
    command.figures(asthma.services, ["asthma", "stroke", "heart"])
    assert 0 < len(sent) == 2 * alone


def test_the_rate_is_that_of_the_last_minute() -> None:
    rates = command.Rates()
    assert rates.per_minute("asthma", 10, now=0) is None
    assert rates.per_minute("asthma", 20, now=30) == 20
    assert rates.per_minute("asthma", 20, now=60) == 10
    assert rates.per_minute("asthma", 20, now=91) == 0


def test_a_project_with_a_problem_is_marked(asthma: Study) -> None:
    asthma.redis.hset(keys.PROBLEMS, "asthma", "{}")
    [found] = command.figures(asthma.services, ["asthma"])
    row = command.row(found, 12.4)
    assert (row[6], row[-1]) == ("12", "see /readyz")


def test_a_project_that_was_taken_out_shows_with_what_it_has_left(asthma: Study) -> None:
    asthma.text(fictional_phone(1), project="gone")
    asthma.redis.hset(keys.PROJECTS, "gone", "1")
    lines = CliRunner().invoke(command.top, ["--once"]).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["asthma", "gone"]
    assert lines[1].split("\t")[1] == "1"
    assert lines[1].endswith("\tnot configured")
