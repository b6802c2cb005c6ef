"""`optout events` with more events than fit into memory at once, on a real Redis."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from shared.batches import batches
from shared.domain.events import Notice, State
from shared.ledger import EventOutcome, Ledger, keys
from shared.ledger.migration import migrate
from tests.builders import SECRETS, at, config, hashed, opt_out_event
from tests.processes import BIN, ROOT

CONFIG = """
public_url = "https://optout.example.edu"

[twilio.main]
account_sid = "AC00000000000000000000000000000000"
auth_token = "env:TEST_AUTH_TOKEN"

[projects.asthma]
redcap_url = "https://redcap.example.edu/api/"
redcap_token = "env:TEST_REDCAP_TOKEN"
twilio = "main"
senders = ["+16505550199"]
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
"""
FAILED = 7


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Any]:
    with Redis.from_url(valkey_url, decode_responses=True) as client:
        client.execute_command("FLUSHALL", "SYNC")
        yield client
        client.execute_command("FLUSHALL", "SYNC")


def fill(redis: Any, number: int) -> None:
    """Copies of one ended event, a second apart; the oldest have failed."""
    event = opt_out_event(when=at("2026-05-04T12:00:00"))
    Ledger(redis).accept([event], now=event.occurred_at)
    stored = redis.hgetall(keys.event("asthma", event.event_id))
    redis.flushall()
    with redis.pipeline(transaction=False) as pipe:
        for count in range(number):
            event_id, received = f"SM{count:032x}", int(stored["received_ms"]) + 1000 * count
            state = "failed" if count < FAILED else "updated"
            changes = {"event_id": event_id, "received_ms": received, "state": state, "reason": "x" * 200}
            pipe.hset(keys.event("asthma", event_id), mapping={**stored, **changes})
            pipe.zadd(keys.events("asthma"), {event_id: received})
            if count % 5000 == 0:
                pipe.execute()
        pipe.execute()


def run(valkey_url: str, folder: Path, *options: str) -> tuple[Any, int]:
    """The output of `optout events --json`, and the peak of the memory of all commands until now, in MB."""
    (folder / "config.toml").write_text(CONFIG)
    env = (
        os.environ | SECRETS | {"OPTOUT_CONFIG": str(folder / "config.toml"), "OPTOUT_REDIS_URL": valkey_url}
    )
    command = [str(BIN / "optout"), "events", "--json", *options]
    ended = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(ended.stdout), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024


def test_memory_does_not_grow_with_the_number_of_events(redis: Any, valkey_url: str, tmp_path: Path) -> None:
    fill(redis, 500)
    few, before = run(valkey_url, tmp_path)
    fill(redis, 30_000)
    many, after = run(valkey_url, tmp_path)
    assert (len(few), len(many)) == (500, 30_000)
    assert [event["event_id"] for event in many] == [f"SM{count:032x}" for count in reversed(range(30_000))]
    assert after - before < 15, "30,000 events take more than 60 MB when they are kept"


def test_before_the_migration_a_state_reads_the_others_states_only(
    redis: Any, valkey_url: str, tmp_path: Path
) -> None:
    fill(redis, 5_000)
    redis.config_resetstat()
    found, _ = run(valkey_url, tmp_path, "--state", "failed")
    assert [event["state"] for event in found] == ["failed"] * FAILED
    assert redis.info("commandstats")["cmdstat_hgetall"]["calls"] == FAILED


def test_events_are_found_by_the_list_of_their_state(redis: Any, valkey_url: str, tmp_path: Path) -> None:
    fill(redis, 5_000)
    migrate(redis, config(), hashed)
    redis.config_resetstat()
    found, _ = run(valkey_url, tmp_path, "--state", "failed", "--limit", "20")
    assert [event["event_id"] for event in found] == [f"SM{count:032x}" for count in reversed(range(FAILED))]
    calls = redis.info("commandstats")
    assert (calls["cmdstat_hgetall"]["calls"], calls.get("cmdstat_hget")) == (FAILED, None)


def used_by_data(redis: Any) -> int:
    redis.connection_pool.disconnect()  # buffers of a connection are no data
    memory = redis.info("memory")
    return int(memory["used_memory"]) - int(memory["mem_clients_normal"])


def test_an_event_takes_the_memory_that_the_documentation_names(redis: Any) -> None:
    """Opt-outs of as many numbers, from the webhook to the e-mail."""
    number, ledger, when = 10_000, Ledger(redis), at("2026-05-04T12:00:00")
    before = used_by_data(redis)
    for numbers in batches(range(number), 500):
        opt_outs = [
            opt_out_event(f"+1650{each:07}", when=when, event_id=f"SM{each:032x}") for each in numbers
        ]
        ledger.accept(opt_outs, now=when)
        ended = [
            EventOutcome(
                event_id=each.event_id, phone_hash=each.phone_hash, state=State.UPDATED, records=["1234"],
                notice=Notice.SAVED, written=["1234"],
            )
            for each in opt_outs
        ]  # fmt: skip
        statuses = ledger.statuses("asthma", [each.phone_hash for each in opt_outs])
        ledger.complete_events("asthma", ended, now=when, written=statuses)
        for entry in ledger.entries_of("asthma", [each.event_id for each in opt_outs]):
            ledger.record_mail_outcome(entry, Notice.SAVED, "sent", now=when)
    [named] = re.findall(r"An event takes about (\d+) bytes", (ROOT / "docs/how-to/scale-out.md").read_text())
    each = (used_by_data(redis) - before) / number
    assert each == pytest.approx(int(named), rel=0.1)


@pytest.mark.parametrize("state", ["received", "pending"])
def test_unfinished_events_are_found_by_their_index(
    redis: Any, valkey_url: str, tmp_path: Path, state: str
) -> None:
    fill(redis, 2_000)
    event = opt_out_event(event_id="SM" + "f" * 32)
    Ledger(redis).accept([event], now=event.occurred_at)
    redis.hset(keys.event("asthma", event.event_id), "state", state)
    redis.config_resetstat()
    found, _ = run(valkey_url, tmp_path, "--state", state)
    assert [each["event_id"] for each in found] == [event.event_id]
    calls = redis.info("commandstats")
    assert calls["cmdstat_hgetall"]["calls"] == 1
    assert calls.get("cmdstat_hget", {"calls": 0})["calls"] <= 1
