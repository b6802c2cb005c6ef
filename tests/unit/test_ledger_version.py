"""What is stored has a version: older programs refuse newer ledgers, and older ledgers migrate by themselves."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.domain.events import Change, State, milliseconds
from shared.domain.precedence import decide
from shared.errors import ConfigError
from shared.ledger import EventOutcome, Ledger, keys
from shared.ledger.migration import migrate
from shared.ledger.projects.check_results import (
    PLATFORM,
    CheckResult,
    StoredFinding,
    finding_counts,
    store_result,
)
from shared.ledger.version import LEDGER_VERSION, require_ledger_version
from tests.builders import REDCAP_TOKEN, at, config, hashed, opt_out_event, project_table
from tests.fakes import Study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from tests.simulators.twilio import SERVICE_SID
from worker.redcap.opt_out_fields import RecordState
from worker.redcap.phone_index import PhoneIndex

# Written by version 1: two STOPs of phone 1; STOP and START of 2; START and STOP of 3; a STOP of 4, still waiting.
DUMP = json.loads((Path(__file__).parent / "ledger-of-version-1.json").read_text())


@pytest.mark.parametrize("stored", [None, LEDGER_VERSION - 1, LEDGER_VERSION])
def test_an_older_or_equal_version_is_accepted_and_noted(redis: Any, stored: int | None) -> None:
    if stored is not None:
        redis.set(keys.LEDGER_VERSION, stored)
    require_ledger_version(redis)
    migrate(redis, config(), hashed)
    assert redis.get(keys.LEDGER_VERSION) == str(LEDGER_VERSION)


def test_findings_that_version_3_did_not_count_are_counted(redis: Any) -> None:
    finding = StoredFinding(id="x", severity="error", subject="", title="", observed="", fix="", docs="")
    for scope in (PLATFORM, "asthma"):
        result = CheckResult(scope=scope, checked_at=at("2026-05-04T12:00:00"), findings=(finding,) * 2)
        store_result(redis, result)
    redis.delete(keys.CHECK_COUNTS)
    redis.set(keys.LEDGER_VERSION, 3)
    migrate(redis, config(), hashed)
    assert finding_counts(redis) == {PLATFORM: {"error": 2}, "asthma": {"error": 2}}


def test_a_newer_version_is_refused_and_left_alone(redis: Any) -> None:
    redis.set(keys.LEDGER_VERSION, LEDGER_VERSION + 1)
    with pytest.raises(ConfigError, match="newer version of the program"):
        require_ledger_version(redis)
    assert redis.get(keys.LEDGER_VERSION) == str(LEDGER_VERSION + 1)


def restored(redis: Any, **changes: Any) -> Study:
    """A study whose ledger and records are those of version 1."""
    for key, value in DUMP["keys"].items():
        [(kind, stored)] = value.items()
        match kind:
            case "hash":
                redis.hset(key, mapping=stored)
            case "zset":
                redis.zadd(key, stored)
            case "list":
                redis.rpush(key, *stored)
            case _:
                redis.set(key, stored)
    project = classic_study(opt_out_validation="")
    enrol(project, 6)
    for record, value in DUMP["shown"].items():
        project.set_value(record, "sms_opt_out_at", value)
    return Study(config({"asthma": project_table(**changes)}), {REDCAP_TOKEN: project}, redis=redis)


def test_statuses_have_their_scope_and_the_first_time_of_their_opt_out(redis: Any) -> None:
    asthma = restored(redis)
    migrate(redis, asthma.config, hashed)
    [first] = asthma.ledger.status("asthma", hashed(fictional_phone(1)))
    assert (first.scope, first.change, first.event_id) == (SERVICE_SID, Change.STOP, "SM" + "2" * 32)
    noon = int(at("2026-05-04T19:00:00").timestamp() * 1000)
    assert (first.since_ms, first.stop_ms) == (noon, noon + 3 * 3_600_000)
    [started] = asthma.ledger.status("asthma", hashed(fictional_phone(2)))
    assert (started.change, started.since_ms) == (Change.START, noon)
    assert not redis.exists("optout:ordinary:asthma")


@pytest.mark.usefixtures("naps")
def test_afterwards_a_start_clears_what_version_1_wrote_and_the_rest_goes_on(redis: Any) -> None:
    asthma = restored(redis)
    migrate(redis, asthma.config, hashed)
    for number in (1, 3):
        start = asthma.text(fictional_phone(number), "START")
        asthma.work()
        assert (asthma.value(str(number)), asthma.state(start)) == ("", "updated")
    asthma.sweep_later()
    assert asthma.value("4") == "2026-05-04 12:00:00"


@pytest.mark.usefixtures("naps")
def test_a_start_that_version_1_knew_changes_nothing(redis: Any) -> None:
    asthma = restored(redis)
    migrate(redis, asthma.config, hashed)
    redis.delete(keys.event("asthma", "SM" + "5" * 32))
    asthma.text(fictional_phone(3), "START", event_id="SM" + "5" * 32)
    asthma.work()
    assert asthma.value("3") == "2026-05-04 14:00:00"


@pytest.mark.usefixtures("naps")
def test_with_several_senders_the_scope_is_unknown_and_a_start_needs_a_person(redis: Any) -> None:
    asthma = restored(redis, senders=["+16505550177"])
    migrate(redis, asthma.config, hashed)
    start = asthma.text(fictional_phone(1), "START")
    asthma.work()
    assert (asthma.value("1"), asthma.state(start)) == ("2026-05-04 12:00:00", "needs_review")


def test_it_is_done_once_and_an_unchanged_ledger_of_version_2_stays(redis: Any) -> None:
    asthma = restored(redis)
    for _ in range(2):
        migrate(redis, asthma.config, hashed)
    before = redis.hgetall(keys.status("asthma"))
    redis.delete(keys.LEDGER_VERSION)
    migrate(redis, asthma.config, hashed)
    assert redis.hgetall(keys.status("asthma")) == before


def test_ended_events_of_version_2_are_listed_by_state_in_every_project_that_is_known(redis: Any) -> None:
    ledger = Ledger(redis)
    events = [
        opt_out_event(f"+1650555010{count}", project=name) for count, name in enumerate(["asthma", "old"])
    ]
    for event in events:
        ledger.accept([event], now=event.occurred_at)
        outcome = EventOutcome(
            event_id=event.event_id, phone_hash=event.phone_hash, state=State.FAILED, reason="locked"
        )
        ledger.complete_events(event.project, [outcome], now=event.occurred_at)
        of_version_2 = {"project": event.project, "event_id": event.event_id, "blocked": "0"}
        redis.hset(keys.event(event.project, event.event_id), mapping=of_version_2)
        redis.delete(keys.ended(event.project, "failed"))
    redis.hset(keys.PROJECTS, "old", "1")
    redis.set(keys.LEDGER_VERSION, 2)
    before = redis.hgetall(keys.status("asthma"))
    for event in events:
        assert [each.event_id for each in ledger.entries(event.project, states=[State.FAILED])] == [
            event.event_id
        ]
    migrate(redis, config(), hashed)
    for event in events:
        assert redis.zrange(keys.ended(event.project, "failed"), 0, -1) == [event.event_id]
        [entry] = ledger.entries(event.project, states=[State.FAILED])
        assert (entry.event_id, entry.project, entry.blocked) == (event.event_id, event.project, False)
    assert redis.hgetall(keys.status("asthma")) == before


def in_export(record_id: str, *phones: str) -> RecordState:
    return RecordState(record_id=record_id, phones=frozenset(phones), opt_out_value="", ticked=False)


def test_index_entries_of_version_3_become_shorter_and_lead_to_the_same_records(redis: Any) -> None:
    one, two = hashed(fictional_phone(1)), hashed(fictional_phone(2))
    index = PhoneIndex("asthma", redis)
    now = at("2026-05-04T12:00:00")
    index.rebuild([in_export("1", one, two), in_export("2", two)], now=now)
    redis.hset(
        keys.index_records("asthma"),
        mapping={"1": f"{milliseconds(now)}\n{one}\n{two}", "2": f"{milliseconds(now)}\n{two}"},
    )
    redis.set(keys.LEDGER_VERSION, 3)
    for _ in range(2):
        migrate(redis, config(), hashed)
        redis.set(keys.LEDGER_VERSION, 3)
    assert index.records([one, two]) == {one: ["1"], two: ["1", "2"]}
    index.put([in_export("1", two)], now=now - timedelta(minutes=1))  # began earlier
    index.put([in_export("2")], now=now + timedelta(minutes=1))
    assert index.records([one, two]) == {one: ["1"], two: ["1"]}


def test_without_a_migration_the_old_form_is_read_and_stays_opted_out(redis: Any) -> None:
    restored(redis)
    assert decide(Ledger(redis).status("asthma", hashed(fictional_phone(1)))).opted_out
