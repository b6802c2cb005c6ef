"""8. The console and the command line: how long each page and each list takes with many studies and events."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import requests

from shared.domain.events import State, milliseconds
from shared.ledger import keys
from shared.ledger.projects.change_counts import DAYS_COUNTED, LATENCY_BOUNDS_MS
from shared.ledger.projects.check_results import CheckResult, StoredFinding, store_result
from shared.ledger.projects.nights import NIGHTS_KEPT, Night, NightOutcome, Nights
from shared.ledger.version import LEDGER_VERSION
from tests.benchmarks.load import percentile
from tests.benchmarks.report import Section, verdict
from tests.benchmarks.world import family, peak_rss_megabytes, pss_megabytes
from tests.processes import BIN, CONSOLE_LOGIN, ROOT, Platform

STUDIES = 500
LARGE = "study-000"
TARGET_MS = 100
LISTS = (("--state", "failed", "--limit", "20"), ("--project", LARGE, "--limit", "20"), ("--json",))
TARGET_LIST_SECONDS, TARGET_MEGABYTES = 1, 120
REPEATS = 30
DAY_MS = 86_400_000

STUDY = """
[projects.{name}]
redcap_url = "https://redcap-{host}.example.edu/api/"
redcap_token = "env:REDCAP_TOKEN"
twilio = "main"
messaging_service_sid = "MG{number:032d}"
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
"""
HEAD = """
public_url = "https://optout.example.edu"
[twilio.main]
account_sid = "AC000000000000000000000000000000a1"
auth_token = "env:TWILIO_AUTH_TOKEN"
"""


@dataclass(slots=True)
class Times:
    """Of one page, in milliseconds."""

    page: str
    kilobytes: float
    p50: float
    worst: float


@dataclass(slots=True)
class Listing:
    """A call of `optout events`."""

    options: tuple[str, ...]
    events: int
    seconds: float
    peak_megabytes: float


def names() -> list[str]:
    return [f"study-{number:03d}" for number in range(STUDIES)]


def measure(folder: Path, *, full: bool) -> Section:
    section = Section("8. Console and command line")
    events = 1_000_000 if full else 100_000
    folder.mkdir(parents=True, exist_ok=True)
    studies = (STUDY.format(name=name, host=number % 5, number=number) for number, name in enumerate(names()))
    with Platform(folder, HEAD + "".join(studies), {}) as platform:
        platform.start("redis", "console")
        fill(platform.redis, events)
        times = [timed(platform, page) for page in pages(platform.redis)]
        lists = [listed(platform, folder, options) for options in LISTS]
        memory = sum(pss_megabytes(pid) for pid in family(platform["console"]))
        used = int(platform.redis.info("memory")["used_memory"]) / 2**20
    section.say(
        f"{STUDIES} studies with {events:,} events of 400 days, of which a tenth belong to one study; its pages are "
        f"measured. Each page is requested {REPEATS} times, one after the other, over one connection; the worst time "
        f"includes the first request. The store takes {used:.0f} MB, the console {memory:.0f} MB (PSS)."
    )
    section.table(
        ["Page", "kB", "p50 ms", "Worst ms"],
        [[each.page, f"{each.kilobytes:.0f}", f"{each.p50:.0f}", f"{each.worst:.0f}"] for each in times],
    )
    met = all(each.worst < TARGET_MS for each in times)
    section.say(verdict(met, f"each page in less than {TARGET_MS} ms"))
    section.table(
        ["`optout events`", "Events", "Seconds", "Peak RSS MB"],
        [
            [" ".join(each.options), f"{each.events:,}", f"{each.seconds:.1f}", f"{each.peak_megabytes:.0f}"]
            for each in lists
        ],
    )
    met = lists[0].seconds < TARGET_LIST_SECONDS and lists[-1].peak_megabytes < TARGET_MEGABYTES
    goal = f"the failed ones within {TARGET_LIST_SECONDS} s, all within {TARGET_MEGABYTES} MB"
    section.say(verdict(met, goal))
    return section


def listed(platform: Platform, folder: Path, options: tuple[str, ...]) -> Listing:
    """List events, with the interpreter's start and all imports."""
    output, peak = folder / "listed", 0.0
    began = time.perf_counter()
    with output.open("w") as out:
        env = {**platform.env, "PYTHONUNBUFFERED": ""}
        process = subprocess.Popen([str(BIN / "optout"), "events", *options], env=env, cwd=ROOT, stdout=out)
        while process.poll() is None:
            with suppress(FileNotFoundError, TypeError):  # it has just ended
                peak = peak_rss_megabytes(process.pid)
            time.sleep(0.01)
    seconds = time.perf_counter() - began
    assert process.returncode == 0
    lines = output.read_text().splitlines()
    events = sum(line.startswith('    "event_id"') for line in lines) if "--json" in options else len(lines)
    return Listing(options, events, seconds, peak)


def pages(redis: Any) -> list[str]:
    [newest] = redis.zrange(keys.events(LARGE), -1, -1)
    study = f"/studies/{LARGE}"
    return [
        "/", "/?page=10", "/?q=study-4", study, f"{study}/events", f"{study}/events?state=failed",
        f"{study}/events?record=none", f"{study}/events/{newest}", "/checks", "/platform",
    ]  # fmt: skip


def timed(platform: Platform, page: str) -> Times:
    taken, size = [], 0
    with requests.Session() as session:
        session.auth = CONSOLE_LOGIN
        for _ in range(REPEATS):
            began = time.perf_counter()
            answer = session.get(platform.console_url + page, timeout=60)
            taken.append((time.perf_counter() - began) * 1000)
            assert answer.status_code == 200, answer.text
            size = len(answer.content)
    taken.sort()
    return Times(page, size / 1024, percentile(taken, 0.5), taken[-1])


def fill(redis: Any, events: int) -> None:
    """Write what a ledger of that size holds: events, and what is kept beside them."""
    now = datetime.now(UTC)
    redis.set(keys.LEDGER_VERSION, LEDGER_VERSION)
    for number, (study, event_id, at_ms) in enumerate(made_events(events, now)):
        if number % 2_000 == 0:
            pipe = redis.pipeline(transaction=False)
        add_event(pipe, study, event_id, at_ms, number)
        if number % 2_000 == 1_999 or number == events - 1:
            pipe.execute()
    for number, name in enumerate(names()):
        add_counts(redis, name, number, now)


def made_events(events: int, now: datetime) -> Iterator[tuple[str, str, int]]:
    """A tenth belong to the first study."""
    others, now_ms = names()[1:], milliseconds(now)
    for number in range(events):
        study = LARGE if number % 10 == 0 else others[number % len(others)]
        yield study, f"SM{number:032x}", now_ms - (events - number) * (400 * DAY_MS // events)


def add_event(pipe: Any, study: str, event_id: str, at_ms: int, number: int) -> None:
    """As the scripts of the ledger store and list it; one of a thousand has failed."""
    state = State.FAILED if number % 1_000 == 0 else State.UPDATED
    fields = {
        "project": study, "event_id": event_id, "change": "START" if number % 12 == 0 else "STOP",
        "occurred_ms": at_ms, "received_ms": at_ms, "arrived_ms": at_ms, "phone": f"{number:044x}",
        "source": "webhook", "scope": "MG0", "blocked": "1", "state": state.value, "reason": "",
        "records": json.dumps([str(number)]), "finished_ms": at_ms + 900, "written_ms": at_ms + 900,
        "mail": "sent", "noticed": "saved ", "notified_ms": at_ms + 1_400,
    }  # fmt: skip
    pipe.hset(keys.event(study, event_id), mapping=fields)
    pipe.zadd(keys.events(study), {event_id: at_ms})
    if state is State.FAILED:
        pipe.zadd(keys.ended(study, state), {event_id: at_ms})


def add_counts(redis: Any, name: str, number: int, now: datetime) -> None:
    today = milliseconds(now) // DAY_MS
    days = range(today - DAYS_COUNTED + 1, today + 1)
    counts = {f"{day}|{change}": 1 + (day * number) % 9 for day in days for change in ("STOP", "START")}
    bounds = [*map(str, LATENCY_BOUNDS_MS), "more"]
    weeks = {f"{today // 7 - week}|{bound}": 7 for week in range(13) for bound in bounds}
    redis.hset(keys.change_counts(name), mapping=counts)
    redis.hset(keys.latencies(name), mapping=weeks)
    redis.hset(keys.written(name), mapping={str(record): "0||x" for record in range(300)})
    redis.hset(keys.reconciled(name), "success_ms", milliseconds(now - timedelta(hours=5)))
    if number % 50 == 0:
        waiting = redis.zrange(keys.events(name), -3, -1)
        redis.zadd(keys.reviews(name), dict.fromkeys(waiting, milliseconds(now)))
    add_nights(redis, name, now)
    store_result(redis, CheckResult(scope=name, checked_at=now, findings=findings(name, number)))


def add_nights(redis: Any, name: str, now: datetime) -> None:
    """One as the reconciliation keeps it, on each of the days."""
    Nights(redis).record(name, now.date(), Night(outcome=NightOutcome.PROVED, ended_at=now))
    [stored] = redis.hvals(keys.nights(name))
    days = {str(now.date() - timedelta(days=ago)): stored for ago in range(NIGHTS_KEPT)}
    redis.hset(keys.nights(name), mapping=days)


def findings(name: str, number: int) -> tuple[StoredFinding, ...]:
    finding = StoredFinding(
        id="webhook-only", severity="note", subject=name, title="Only the webhook reports STOPs",
        observed="Event Streams is not set up", fix="optout setup", docs="docs/reference/checks.md#webhook-only",
    )  # fmt: skip
    return (finding,) * (1 + number % 3)
