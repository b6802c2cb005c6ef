"""3. A text blast: thousands of STOPs at once, into a large project whose REDCap is slow and bans the impatient."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import requests

from tests.benchmarks.load import Load, closed_loop, webhook
from tests.benchmarks.report import Section, verdict
from tests.benchmarks.world import (
    WSGI,
    World,
    configuration,
    family,
    mail_server,
    peak_rss_megabytes,
    platform,
    redcap,
    web_command,
    whole_world,
)
from tests.processes import BIN, Process, wait_until
from worker.steps.send_email import MOST_PER_DIGEST

CONNECTIONS = 16
RECORDS = 100_000
SLOW = {"latency_seconds": 0.15, "seconds_per_record_written": 0.002}
LIMIT = 600  # requests per minute; one more is a ban
# The alternatives would be banned at once, so that they are measured on fewer STOPs, without a limit.
SAMPLE = 200


@dataclass(slots=True)
class EventOutcome:
    """What a storm cost."""

    stops: int
    load: Load
    requests: int
    shown_seconds: float  # after the last webhook's answer, until REDCap shows all
    told_seconds: float  # until all mails are out
    mails: int
    banned: bool = False


def measure(folder: Path, *, full: bool) -> Section:
    section = Section("3. Storm")
    stops = 10_000
    section.say(
        f"{stops:,} STOPs of different participants, as fast as they are accepted ({CONNECTIONS} connections), into "
        f"a project of {RECORDS:,} records; REDCap simulator with 150 ms per call and 2 ms per record written, "
        f"which bans an address above {LIMIT} requests a minute. Ours is limited to 300 a minute, its default.",
        f"The alternatives were measured on {SAMPLE} STOPs, in a project of 1,000 records and without a limit, all "
        "in their favour, and extrapolated proportionally: (a) does lookup, update and mail inside the web request "
        "(8 threads), (b) is one Celery chain of lookup, update and mail per event (4 processes).",
    )
    ours, memory = _ours(folder / "ours", stops)
    inside = _alternative(folder / "inside", "inside_the_request")
    chained = _alternative(folder / "chain", "chain_per_event")
    factor = stops / SAMPLE
    section.table(
        [
            "", "REDCap requests", "Webhooks answered after s", "REDCap shows all after s", "Mails out after s",
            "Webhook p50 ms", "p99 ms", "Mails",
        ],
        [
            _row(f"(a) inside the request, × {factor:.0f}", inside, factor),
            _row(f"(b) chain per event, × {factor:.0f}", chained, factor),
            _row("ours, as measured", ours, 1),
        ],
    )  # fmt: skip
    section.bars(
        "storm-requests", f"REDCap requests for {stops:,} STOPs", "",
        {"(a) inside the request": inside.requests * factor, "(b) chain per event": chained.requests * factor,
         "ours": ours.requests},
    )  # fmt: skip
    whole = {
        "(a) inside the request": _whole(inside) * factor,
        "(b) chain per event": _whole(chained) * factor,
        "ours": _whole(ours),
    }
    section.bars(
        "storm-seconds", f"Seconds from the first of {stops:,} STOPs until REDCap shows all", "s", whole
    )
    polite = chained.requests * factor / LIMIT
    section.say(
        f"(a) and (b) would be banned {LIMIT / (chained.requests / SAMPLE):.0f} STOPs into the storm. Held at the "
        f"limit, they would take at least {polite:.0f} minutes. From first webhook to last field, ours took "
        f"{_whole(ours):.0f} s, (b) {whole['(b) chain per event']:.0f} s at a rate that exceeds the limit.",
        verdict(not ours.banned and ours.requests <= 150, f"no ban, at most 150 requests ({ours.requests})"),
        verdict(
            ours.shown_seconds <= 90, f"shown within 90 s of the last webhook ({ours.shown_seconds:.0f} s)"
        ),
        verdict(
            chained.requests * factor >= 30 * ours.requests
            and _later(chained, factor) >= 10 * ours.shown_seconds,
            f"30 times fewer requests than (b) ({chained.requests * factor / ours.requests:.0f} times) and 10 times "
            f"sooner after the last webhook ({_later(chained, factor) / max(ours.shown_seconds, 0.1):.0f} times)",
        ),
        "Without `notify_digest` there is one mail per participant; with it, the same storm makes "
        f"{-(-stops // MOST_PER_DIGEST)} mails of at most {MOST_PER_DIGEST} changes each.",
        memory,
    )
    return section


def _whole(outcome: EventOutcome) -> float:
    return outcome.load.seconds + outcome.shown_seconds


def _later(outcome: EventOutcome, factor: float) -> float:
    """Of an alternative: how long after the last webhook, were they to come as fast as it takes them."""
    return outcome.shown_seconds * factor


def _row(name: str, outcome: EventOutcome, factor: float) -> list[object]:
    return [
        name,
        f"{outcome.requests * factor:,.0f}",
        f"{outcome.load.seconds * factor:.0f}",
        f"{_whole(outcome) * factor:.0f}",
        f"{(outcome.load.seconds + outcome.told_seconds) * factor:.0f}",
        f"{outcome.load.percentile(0.5) * 1000:.0f}",
        f"{outcome.load.percentile(0.99) * 1000:.0f}",
        f"{outcome.mails * factor:,.0f}",
    ]


# --- ours -------------------------------------------------------------------------------------------------


def _ours(folder: Path, stops: int) -> tuple[EventOutcome, str]:
    prepared = [webhook(each, phone=each) for each in range(1, stops + 1)]
    with whole_world(folder, records=RECORDS, config={}, **SLOW, requests_per_minute=LIMIT) as world:
        before = int(world.platform.redis.info("memory")["used_memory"])
        load = closed_loop(world.platform.web_url, prepared, connections=CONNECTIONS)
        assert load.statuses == {200: stops}, load.statuses
        last = time.monotonic()
        wait_until(world.is_drained, seconds=600, what="REDCap shows all")
        shown = time.monotonic() - last
        wait_until(world.is_told, seconds=600, what="all mails are out")
        told = time.monotonic() - last
        counts = world.redcap.counts()
        assert counts["records_written"] == stops, counts
        outcome = EventOutcome(
            stops, load, counts["total"], shown, told, world.mail.mails(), banned=bool(counts["banned"])
        )
        return outcome, _memory(world, before, stops)


def _memory(world: World, before: int, stops: int) -> str:
    used = world.platform.redis.info("memory")
    workers = family(world.platform["worker"])
    peaks = ", ".join(f"{peak_rss_megabytes(pid):.0f}" for pid in workers)
    events = (int(used["used_memory"]) - before) / stops
    return (
        f"Memory: store {before / 2**20:.1f} MB before (index of {RECORDS:,} phones), peak "
        f"{int(used['used_memory_peak']) / 2**20:.1f} MB; {events:.0f} bytes are kept per event. Peak resident "
        f"sets of the worker and its children: {peaks} MB; of web: "
        f"{max(peak_rss_megabytes(pid) for pid in family(world.platform['web'])):.0f} MB."
    )


def _is_ready(worker: Process) -> bool:
    return " ready." in worker.text()


# --- the alternatives -------------------------------------------------------------------------------------


def _alternative(folder: Path, application: str) -> EventOutcome:
    prepared = [webhook(each, phone=each) for each in range(1, SAMPLE + 1)]
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        served = stack.enter_context(redcap(folder, records=1_000, **SLOW))
        mail = stack.enter_context(mail_server(folder))
        made = stack.enter_context(platform(folder, configuration(served.url), "redis", smtp_url=mail.url))
        env = {**made.env, "BENCH_REDCAP_URL": served.url}
        commands = {
            "web-alternative": web_command(made, f"tests.benchmarks.alternatives:{application}", WSGI)
        }
        if application == "chain_per_event":
            celery = [
                str(BIN / "celery"),
                "-A",
                "tests.benchmarks.alternatives:celery",
                "worker",
                "-l",
                "info",
            ]
            commands["worker-alternative"] = celery
        for name, command in commands.items():
            process = Process(name, command, env=env, folder=folder)
            stack.callback(process.stop)
            process.start()
            if "celery" in command[0]:
                wait_until(partial(_is_ready, process), what="the worker is ready")
        wait_until(lambda: requests.get(made.web_url, timeout=1) is not None, what="the web process answers")
        served.clear()
        load = closed_loop(made.web_url, prepared, connections=CONNECTIONS)
        last = time.monotonic()
        assert load.statuses == {200: SAMPLE}, load.statuses
        wait_until(lambda: served.counts()["records_written"] == SAMPLE, seconds=300, what="all are written")
        shown = time.monotonic() - last
        wait_until(lambda: mail.mails() == SAMPLE, seconds=300, what="all mails are out")
        told = time.monotonic() - last
        return EventOutcome(SAMPLE, load, served.counts()["total"], shown, told, mail.mails())
