"""The command line, through click's runner over fake Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from click.testing import CliRunner, Result
from redis.exceptions import ConnectionError as RedisDown

from shared.ledger import keys
from shared.messaging.celery_config import TaskName
from tests.builders import config, hashed, project_table, sid
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.cli import main

pytestmark = pytest.mark.usefixtures("naps")
Run = Callable[..., Result]


@pytest.fixture
def asthma() -> Study:
    project = classic_study()
    enrol(project, 3)
    return study(project)


@pytest.fixture
def run(asthma: Study, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `optout ARGS` over the study's services."""
    for name in ("events", "status", "replay"):
        module = import_module(f"worker.cli.{name}")
        monkeypatch.setattr(module, "make_services", lambda: asthma.services)
    monkeypatch.setattr("worker.cli.configure_logging", lambda _level: None)
    return lambda *args, **more: CliRunner().invoke(main, args, **more)


class TestEvents:
    def test_those_of_a_project_that_was_taken_out_are_listed_too(self, asthma: Study, run: Run) -> None:
        event = asthma.text(fictional_phone(1), project="gone")
        asthma.redis.hset(keys.PROJECTS, "gone", "1777890030000")
        assert [shown["event_id"] for shown in json.loads(run("events", "--json").stdout)] == [event.event_id]

    def test_the_json_is_an_array_of_objects_newest_first(self, asthma: Study, run: Run) -> None:
        stop = asthma.text(fictional_phone(1), received=asthma.clock() - timedelta(minutes=1))
        asthma.work()
        unmatched = asthma.text("+16505559999")
        asthma.work()
        shown = json.loads(run("events", "--json").stdout)
        assert [event["event_id"] for event in shown] == [unmatched.event_id, stop.event_id]
        assert shown[1] == {
            "event_id": stop.event_id,
            "project": "asthma",
            "change": "STOP",
            "state": "updated",
            "reason": "",
            "source": "webhook",
            "occurred_at": shown[1]["occurred_at"],
            "received_at": shown[1]["received_at"],
            "records": ["1"],
            "mail": "sent",
        }
        assert shown[1]["occurred_at"].endswith("+00:00")

    def test_events_may_be_chosen_by_state_and_project(self, asthma: Study, run: Run) -> None:
        asthma.text(fictional_phone(1))
        asthma.work()
        asthma.text("+16505559999")
        asthma.work()
        assert len(json.loads(run("events", "--json", "--state", "updated").stdout)) == 1
        assert json.loads(run("events", "--json", "--state", "failed").stdout) == []
        assert len(json.loads(run("events", "--json", "--project", "asthma").stdout)) == 2

    def test_the_limit_takes_the_newest_of_all_projects(self, asthma: Study, run: Run) -> None:
        asthma.services.config = config({"asthma": project_table(), "sleep": project_table()})
        for minute, name in enumerate(["asthma", "sleep", "asthma", "sleep"]):
            asthma.text(
                fictional_phone(minute), project=name, received=asthma.clock() - timedelta(minutes=minute)
            )
        shown = json.loads(run("events", "--json", "--limit", "3").stdout)
        assert [event["project"] for event in shown] == ["asthma", "sleep", "asthma"]

    def test_without_a_terminal_each_event_is_a_plain_line(self, asthma: Study, run: Run) -> None:
        event = asthma.text(fictional_phone(1))
        asthma.work()
        [line] = run("events").stdout.splitlines()
        cells = line.split("\t")
        assert cells[1:6] == ["asthma", "STOP", "updated", "1", ""]
        assert cells[-1] == event.event_id

    def test_an_unknown_project_or_state_is_refused_with_the_known_ones(self, run: Run) -> None:
        result = run("events", "--project", "other")
        assert result.exit_code == 2
        assert "configured are: asthma" in result.stderr
        result = run("events", "--state", "lost")
        assert result.exit_code == 2
        assert "no_matching_record" in result.stderr

    def test_no_events_are_an_empty_array(self, run: Run) -> None:
        assert json.loads(run("events", "--json").stdout) == []
        assert run("events").stdout == ""


class TestStatus:
    @pytest.mark.parametrize("spelling", ["+16505550001", "(650) 555-0001", "650.555.0001"])
    def test_any_spelling_shows_the_latest_status(self, asthma: Study, run: Run, spelling: str) -> None:
        event = asthma.text(fictional_phone(1))
        asthma.work()
        [shown] = json.loads(run("status", spelling, "--json").stdout)
        assert (shown["status"], shown["records"], shown["pending"]) == ("opted_out", ["1"], False)
        assert (shown["event_id"], shown["event"]["state"]) == (event.event_id, "updated")

    def test_after_a_start_it_is_opted_in(self, asthma: Study, run: Run) -> None:
        asthma.text(fictional_phone(1), "START")
        [shown] = json.loads(run("status", fictional_phone(1), "--json").stdout)
        assert (shown["status"], shown["pending"]) == ("opted_in", False)

    def test_a_number_that_nobody_texted_from_is_unknown(self, run: Run) -> None:
        [shown] = json.loads(run("status", "+16505559999", "--json").stdout)
        assert (shown["status"], shown["since"], shown["event"]) == ("unknown", "", None)

    def test_a_status_that_waits_says_so(self, asthma: Study, run: Run) -> None:
        asthma.text(fictional_phone(1))
        asthma.ledger.require_update("asthma", [hashed(fictional_phone(1))], now=asthma.clock())
        line = run("status", fictional_phone(1)).stdout
        assert "\tyes\t" in line

    def test_the_number_may_come_from_standard_input(self, asthma: Study, run: Run) -> None:
        asthma.text(fictional_phone(1))
        [shown] = json.loads(run("status", "-", "--json", input="650-555-0001\n").stdout)
        assert shown["status"] == "opted_out"

    def test_the_number_is_not_repeated(self, asthma: Study, run: Run) -> None:
        asthma.text(fictional_phone(1))
        for more in ([], ["--json"]):
            assert "5550001" not in run("status", "+16505550001", *more).output

    @pytest.mark.parametrize("number", ["hello", "", "650-555-0001 or 650-555-0002"])
    def test_what_is_not_one_number_is_refused(self, run: Run, number: str) -> None:
        result = run("status", number)
        assert result.exit_code == 2
        assert "is not one phone number" in result.stderr


class TestReplay:
    def failed(self, asthma: Study) -> Any:
        asthma.project.lock_record("1")
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert asthma.state(event) == "failed"
        asthma.project.locked_records.clear()
        return event

    def test_an_event_goes_through_lookup_and_update_again(self, asthma: Study, run: Run) -> None:
        event = self.failed(asthma)
        result = run("replay", event.event_id)
        assert (result.exit_code, result.stdout) == (0, "1 event replayed\n")
        assert asthma.published.of(TaskName.LOOKUP) == [("asthma", event.event_id)]
        asthma.work()
        assert asthma.state(event) == "updated"

    def test_all_failed_events_may_be_replayed_at_once(self, asthma: Study, run: Run) -> None:
        failed = self.failed(asthma)
        fine = asthma.text(fictional_phone(2))
        asthma.work()
        assert run("replay", "--failed").stdout == "1 event replayed\n"
        assert asthma.published.of(TaskName.LOOKUP) == [("asthma", failed.event_id)]
        assert asthma.state(fine) == "updated"

    def test_an_unknown_event_is_an_error(self, run: Run) -> None:
        result = run("replay", sid())
        assert result.exit_code == 1
        assert "see optout events" in result.stderr

    def test_nothing_failed_is_no_error(self, run: Run) -> None:
        result = run("replay", "--failed")
        assert (result.exit_code, result.stdout) == (0, "0 events replayed\n")

    @pytest.mark.parametrize("args", [[], ["SM1", "--failed"]])
    def test_either_an_event_or_all_failed_ones(self, run: Run, args: list[str]) -> None:
        result = run("replay", *args)
        assert result.exit_code == 2
        assert "give either" in result.stderr

    def test_an_event_is_replayed_even_where_the_broker_is_away(self, asthma: Study, run: Run) -> None:
        event = self.failed(asthma)
        asthma.published.error = ConnectionRefusedError()
        assert run("replay", event.event_id).exit_code == 0
        assert f"lookup|asthma|{event.event_id}" in asthma.redis.zrange(keys.DUE, 0, -1)


class TestErrors:
    def test_a_missing_configuration_is_one_clear_line(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPTOUT_CONFIG", str(tmp_path / "none.toml"))
        monkeypatch.setattr("worker.cli.configure_logging", lambda _level: None)
        result = CliRunner().invoke(main, ["events"])
        assert result.exit_code == 2
        assert "copy config.example.toml" in result.stderr
        assert "Traceback" not in result.output

    def test_a_redis_that_does_not_answer_is_one_clear_line(self, asthma: Study, run: Run) -> None:
        def down(*_: Any, **__: Any) -> None:
            raise RedisDown

        asthma.redis.execute_command = down
        result = run("events")
        assert result.exit_code == 2
        assert "Redis does not answer (ConnectionError); is OPTOUT_REDIS_URL right?" in result.stderr

    def test_help_names_every_subcommand(self) -> None:
        result = CliRunner().invoke(main, ["-h"])
        assert result.exit_code == 0
        for name in ("events", "replay", "status"):
            assert name in result.output
