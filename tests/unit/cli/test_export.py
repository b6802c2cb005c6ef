"""`optout export`: the audit trail, for those who have to show it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from click.testing import Result

from shared.domain.events import Change
from shared.errors import MailRejected
from shared.ledger import CHUNK, keys
from shared.ledger.events.audit_trail import AUDIT_COLUMNS
from shared.ledger.events.staff_actions import StaffAction, note_actions
from tests.builders import hashed, opt_out_event
from tests.fakes import Study, command_line, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone, fictional_phone_as_typed

pytestmark = pytest.mark.usefixtures("naps")
Run = Callable[..., Result]


@pytest.fixture
def asthma() -> Study:
    project = classic_study()
    enrol(project, 2)
    return study(project)


@pytest.fixture
def run(asthma: Study, monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(asthma, monkeypatch)


def exported(run: Run, *more: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(run("export", "--project", "asthma", *more).stdout)))


def test_a_row_per_event_and_record_with_all_times(asthma: Study, run: Run) -> None:
    asthma.project.set_value("2", "mobile", fictional_phone_as_typed(1))
    stop = asthma.text(fictional_phone(1))
    asthma.work()
    first, second = exported(run)
    assert tuple(first) == AUDIT_COLUMNS
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


def test_replays_name_who_and_why_in_rows_of_their_own(asthma: Study, run: Run) -> None:
    stop = asthma.text(fictional_phone(1))
    asthma.work()
    asthma.clock.ahead += timedelta(hours=1)
    run("replay", stop.event_id, "--reason", "=HYPERLINK(1)", "--by", "@kim")
    asthma.work()
    replayed, event = sorted(exported(run), key=lambda row: row["state"])
    assert (replayed["source"], replayed["decided_by"], replayed["reason"]) == (
        "replay", "'@kim", "'=HYPERLINK(1)",
    )  # fmt: skip
    assert (replayed["record"], replayed["change"], replayed["state"]) == ("1", "STOP", "")
    assert replayed["event_id"] == event["event_id"] == stop.event_id
    assert event["received_at"] < replayed["received_at"]
    assert event["decided_by"] == ""


def test_replayed_mails_name_who_too(asthma: Study, run: Run) -> None:
    asthma.mailer.errors.append(MailRejected("smtp_rejected", "code 550"))
    asthma.text(fictional_phone(1))
    asthma.work()
    run("replay", "--mails", "--by", "kim", "--reason", "mail server fixed")
    [row] = [row for row in exported(run) if row["source"] == "replay_mail"]
    assert (row["decided_by"], row["reason"]) == ("kim", "mail server fixed")


def test_a_replay_that_found_nothing_leaves_no_row(run: Run) -> None:
    assert run("replay", "SM0", "--by", "kim").exit_code == 1
    assert exported(run) == []


def test_decisions_about_reviews_name_who_and_why(asthma: Study, run: Run) -> None:
    text = asthma.text(fictional_phone(1), change=Change.UNCLEAR)
    asthma.work()
    run("review", text.event_id, "dismiss", "--reason", "meant the appointment", "--by", "lee")
    [row] = exported(run)
    assert (row["decided_by"], "meant the appointment" in row["reason"]) == ("lee", True)


def test_forgetting_a_number_forgets_its_replays(asthma: Study, run: Run) -> None:
    stop, other = asthma.text(fictional_phone(1)), asthma.text(fictional_phone(2))
    asthma.work()
    for event in (stop, other):
        run("replay", event.event_id, "--by", "kim")
    asthma.work()
    asthma.ledger.forget("asthma", hashed(fictional_phone(1)))
    assert {row["event_id"] for row in exported(run)} == {other.event_id}
    asthma.ledger.forget_project("asthma")
    assert not asthma.redis.exists(keys.staff_actions("asthma"))


def test_replays_leave_after_the_retention(asthma: Study, run: Run) -> None:
    retention = asthma.services.config.retention_days
    for name, days in (("old", retention + 1), ("new", 0)):
        at = asthma.clock() - timedelta(days=days)
        action = StaffAction(at=at, event_id=name, kind="replay", by="kim", reason="")
        note_actions(asthma.redis, "asthma", [action], retention_days=retention)
    assert [row["event_id"] for row in exported(run)] == ["new"]


def test_many_events_of_one_moment_are_read_a_page_at_a_time(asthma: Study, run: Run) -> None:
    moment = asthma.clock()
    several = [opt_out_event(fictional_phone(1), when=moment) for _ in range(CHUNK + 7)]
    asthma.accept(several, now=moment)
    asthma.accept(
        [opt_out_event(fictional_phone(1), when=moment) for _ in range(CHUNK)], now=moment + timedelta(1)
    )
    asthma.clock.ahead += timedelta(days=2)
    ids = [row["event_id"] for row in exported(run)]
    assert len(ids) == len(set(ids)) == 2 * CHUNK + 7


def test_json_lines_hold_the_same(asthma: Study, run: Run) -> None:
    asthma.text(fictional_phone(1))
    asthma.work()
    lines = run("export", "--project", "asthma", "--format", "jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == exported(run)


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\n", "＝"])
def test_no_cell_begins_like_a_formula(asthma: Study, run: Run, begin: str) -> None:
    run("record", "asthma", "1", "stop", "--reason", f"{begin}cmd|' /C calc'!A0", "--by", "kim")
    [row] = exported(run)
    assert row["reason"].startswith("'")


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
