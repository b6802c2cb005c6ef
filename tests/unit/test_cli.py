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

from shared.domain.events import OptOutEvent, Source
from shared.errors import (
    ConfigError,
    MailDeferred,
    MailRejected,
    OptOutError,
    ProjectProblem,
    RedcapUnavailable,
    TwilioRejected,
)
from shared.ledger import keys
from shared.messaging.tasks import TaskName
from tests.builders import config, hashed, project_table, sid
from tests.fakes import Study, command_line, study
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
    return command_line(asthma, monkeypatch)


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
        asthma.text(fictional_phone(1), "START", source=Source.EVENT_STREAM)
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


class TestReplayOfMails:
    def refused(self, asthma: Study, number: int = 1) -> OptOutEvent:
        asthma.mailer.errors.append(MailRejected("smtp_rejected", "code 554 5.6.0 at DATA"))
        event = asthma.text(fictional_phone(number))
        asthma.work()
        assert asthma.entry(event).mail == "refused: smtp_rejected: code 554 5.6.0 at DATA"
        return event

    def test_a_rejected_mail_is_sent_again_and_nothing_is_written(self, asthma: Study, run: Run) -> None:
        event = self.refused(asthma)
        imports = asthma.imports()
        assert run("replay", "--mails").stdout == "1 mail replayed\n"
        assert asthma.entry(event).notice == "saved"
        asthma.work()
        assert (asthma.entry(event).mail, len(asthma.mailer.sent)) == ("sent", 1)
        assert asthma.imports() == imports
        assert asthma.redis.zcard(keys.mailing("asthma")) == 0
        assert run("replay", "--mails").stdout == "0 mails replayed\n"

    def test_an_abandoned_mail_is_sent_again_and_has_another_week(self, asthma: Study, run: Run) -> None:
        asthma.mailer.errors.extend(MailDeferred("smtp_unreachable") for _ in range(3))
        event = asthma.text(fictional_phone(1))
        asthma.work()
        asthma.sweep_later(days=7, minutes=1)
        assert asthma.entry(event).mail == "given up: smtp_unreachable"
        run("replay", "--mails")
        asthma.work()
        assert (asthma.entry(event).notice, asthma.mailer.sent) == ("saved", [])
        asthma.sweep_later(days=6)
        assert asthma.entry(event).mail == "sent"

    def test_a_deferred_mail_is_sent_now(self, asthma: Study, run: Run) -> None:
        asthma.mailer.errors.append(MailDeferred("smtp_deferred", "code 451"))
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert run("replay", "--mails").stdout == "1 mail replayed\n"
        asthma.work()
        assert (asthma.entry(event).mail, len(asthma.mailer.sent)) == ("sent", 1)

    def test_a_recipient_that_was_accepted_does_not_receive_it_again(self, asthma: Study, run: Run) -> None:
        asthma.config = config({"asthma": project_table(notify=["a@example.edu", "b@example.edu"])})
        asthma.services = asthma.new_services()
        asthma.mailer.refuses = ["b@example.edu"]
        event = asthma.text(fictional_phone(1))
        asthma.work()
        assert asthma.entry(event).mail == "partly rejected: 1 of 2 addresses"
        asthma.mailer.refuses = []
        assert run("replay", "--mails").stdout == "1 mail replayed\n"
        asthma.work()
        assert asthma.mailer.sent_to == [("a@example.edu",), ("b@example.edu",)]
        assert asthma.entry(event).mail == "sent"

    def test_the_mail_of_one_event(self, asthma: Study, run: Run) -> None:
        one, other = self.refused(asthma, 1), self.refused(asthma, 2)
        assert run("replay", "--mails", one.event_id).stdout == "1 mail replayed\n"
        asthma.work()
        assert asthma.entry(one).mail == "sent"
        assert asthma.entry(other).mail.startswith("refused")

    def test_a_sent_or_unknown_mail_is_an_error_if_it_was_named(self, asthma: Study, run: Run) -> None:
        event = asthma.text(fictional_phone(1))
        asthma.work()
        for event_id in (event.event_id, sid()):
            result = run("replay", "--mails", event_id)
            assert (result.exit_code, result.stdout) == (1, "0 mails replayed\n")
            assert "no undelivered mail" in result.stderr
        assert (len(asthma.mailer.sent), run("replay", "--mails").exit_code) == (1, 0)

    def test_many_mails_share_messages(self, asthma: Study, run: Run) -> None:
        events = [self.refused(asthma, number) for number in (1, 2, 3)]
        assert run("replay", "--mails").stdout == "3 mails replayed\n"
        assert len(asthma.published.of(TaskName.EMAIL)) == 1
        asthma.work()
        assert {asthma.entry(event).mail for event in events} == {"sent"}
        assert len(asthma.mailer.sent) == 3

    def test_abandoned_changes_of_a_digest_go_into_one_digest(self, asthma: Study, run: Run) -> None:
        self.gather(asthma)
        asthma.mailer.errors.append(MailRejected("smtp_rejected", "code 554 5.6.0 at DATA"))
        asthma.sweep_later(minutes=11)
        assert run("replay", "--mails").stdout == "2 mails replayed\n"
        asthma.work()
        assert asthma.mailer.subjects == ["[asthma] 2 opt-outs (STOP)"]
        assert (asthma.redis.zcard(keys.gathered("asthma")), asthma.redis.zcard(keys.DUE)) == (0, 0)

    def test_a_deferred_digest_is_sent_now_and_one_whose_time_has_not_come_waits(
        self, asthma: Study, run: Run
    ) -> None:
        self.gather(asthma)
        assert run("replay", "--mails").stdout == "0 mails replayed\n"
        asthma.mailer.errors.append(MailDeferred("smtp_deferred", "code 451"))
        asthma.sweep_later(minutes=11)
        assert run("replay", "--mails").stdout == "2 mails replayed\n"
        asthma.work()
        assert asthma.mailer.subjects == ["[asthma] 2 opt-outs (STOP)"]

    def gather(self, asthma: Study) -> None:
        asthma.config = config({"asthma": project_table(notify_digest="10m")})
        asthma.services = asthma.new_services()
        for number in (1, 2):
            asthma.text(fictional_phone(number))
        asthma.work()

    def test_a_replayed_mail_outlives_the_retention_until_it_is_sent(self, asthma: Study, run: Run) -> None:
        event = self.refused(asthma)
        stored = keys.event("asthma", event.event_id)
        assert asthma.redis.ttl(stored) > 0
        run("replay", "--mails")
        assert asthma.redis.ttl(stored) == -1
        asthma.work()
        assert asthma.redis.ttl(stored) > 0

    def test_mails_and_failed_events_are_replayed_by_two_commands(self, run: Run) -> None:
        assert run("replay", "--mails", "--failed").exit_code == 2


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

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (RedcapUnavailable("redcap_timeout"), 4), (ProjectProblem("token_refused"), 4),
            (TwilioRejected("twilio_rejected"), 5), (MailDeferred("smtp_deferred"), 6),
            (ConfigError("config.toml", ["x: y"]), 2),
        ],
    )  # fmt: skip
    def test_the_exit_code_says_which_system_is_in_the_way(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, error: OptOutError, code: int
    ) -> None:
        def broken() -> None:
            raise error

        monkeypatch.setattr(import_module("worker.cli.events"), "make_services", broken)
        result = run("events")
        assert result.exit_code == code
        assert result.stderr.startswith("error: ")

    def test_headings_are_printed_in_pipes_if_asked_for(self, asthma: Study, run: Run) -> None:
        asthma.text(fictional_phone(1))
        heading, line = run("--headings", "events").stdout.splitlines()
        assert heading.split("\t")[0] == "When (UTC)"
        assert len(heading.split("\t")) == len(line.split("\t"))
        assert run("events").stdout.splitlines() == [line]

    def test_help_names_every_subcommand(self) -> None:
        result = CliRunner().invoke(main, ["-h"])
        assert result.exit_code == 0
        for name in ("events", "replay", "status"):
            assert name in result.output
