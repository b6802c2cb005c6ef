"""1. How many signed webhooks one web process takes, beside what others would write."""

from __future__ import annotations

import time
from pathlib import Path

import requests

from tests.benchmarks.load import Load, closed_loop, open_loop, webhook
from tests.benchmarks.report import Section, spread, verdict
from tests.benchmarks.world import configuration, cpu_seconds, family, platform, web_command, whole_world
from tests.processes import Platform, Process, wait_until

CONNECTIONS = 16
ROUNDS = 3
APPLICATIONS = {
    "bare Flask route": "tests.benchmarks.routes:bare",
    "verify only": "tests.benchmarks.routes:verify_only",
    "textbook: verify, task.delay": "tests.benchmarks.routes:textbook",
    "ours: verify, route, store, dedupe, publish": "web.asgi:app",
}
TEXTBOOK, OURS = list(APPLICATIONS)[2:]


def measure(folder: Path, *, full: bool) -> Section:
    section = Section("1. Ingress")
    number = 6_000 if full else 2_000
    section.say(
        f"{number:,} signed webhooks of different participants over {CONNECTIONS} persistent connections, one web "
        "process (granian, 8 threads behind its event loop, all four alike), closed loop, then the next application; "
        f"{ROUNDS} rounds. The textbook route uses Celery's defaults and stores nothing. Both it and ours publish to "
        "the same store, which writes to disk before it answers."
    )
    prepared = [webhook(each) for each in range(number)]
    runs: dict[str, list[tuple[Load, float]]] = {name: [] for name in APPLICATIONS}
    with platform(folder, configuration("http://127.0.0.1:1/api/"), "redis") as made:
        for _ in range(ROUNDS):
            for name, application in APPLICATIONS.items():
                runs[name].append(_run(made, application, prepared))
    section.table(
        ["Application", "Requests/s", "p50 ms", "p99 ms", "CPU of web, ms/request", "CPU of generator"],
        [_row(name, results) for name, results in runs.items()],
    )
    rates = {name: sorted(load.per_second for load, _ in each)[ROUNDS // 2] for name, each in runs.items()}
    section.bars("ingress", "Signed webhooks per second, one web process", "/s", rates)
    section.say(
        f"Ours handles {rates[OURS] / rates[TEXTBOOK]:.2f} times as many as the textbook route.",
        verdict(
            rates[OURS] >= rates[TEXTBOOK], "at least as many as the textbook route, although it does more"
        ),
        "The load generator is one Python process with raw sockets and prepared requests; its share of a core is in "
        "the last column.",
    )
    _at_a_steady_rate(section, folder / "steady", seconds=30 if full else 12)
    return section


def _run(made: Platform, application: str, prepared: list[bytes]) -> tuple[Load, float]:
    """One round of one application: the load, and the CPU seconds of the web process per request."""
    made.redis.flushall()
    process = Process("web-measured", web_command(made, application), env=made.env, folder=made.folder)
    process.start()
    try:
        wait_until(lambda: requests.get(made.web_url, timeout=1) is not None, what="the web process answers")
        closed_loop(made.web_url, [webhook(10**6 + each) for each in range(200)], connections=CONNECTIONS)
        made.redis.flushall()
        before = cpu_seconds(*family(process))
        load = closed_loop(made.web_url, prepared, connections=CONNECTIONS)
        assert load.statuses == {200: len(prepared)}, load.statuses
        return load, (cpu_seconds(*family(process)) - before) / len(prepared)
    finally:
        process.stop()


def _row(name: str, results: list[tuple[Load, float]]) -> list[object]:
    loads = [load for load, _ in results]
    return [
        name,
        spread([load.per_second for load in loads]),
        spread([load.percentile(0.5) * 1000 for load in loads], "{:.1f}"),
        spread([load.percentile(0.99) * 1000 for load in loads], "{:.1f}"),
        spread([cpu * 1000 for _, cpu in results], "{:.2f}"),
        spread([load.cpu_seconds / load.seconds * 100 for load in loads], "{:.0f} %"),
    ]


def _at_a_steady_rate(section: Section, folder: Path, *, seconds: int) -> None:
    """Open loop beside everything else that the platform does with the same events."""
    number = 200 * seconds
    with whole_world(folder, records=5_000, config={"per_minute": 6000}) as world:
        closed_loop(world.platform.web_url, [webhook(10**6 + each) for each in range(64)], connections=16)
        time.sleep(2.0)
        prepared = [webhook(10**7 + each, phone=each + 1) for each in range(number)]
        load = open_loop(world.platform.web_url, prepared, per_second=200.0)
        assert load.statuses == {200: number}, load.statuses
    p50, p99 = load.percentile(0.5) * 1000, load.percentile(0.99) * 1000
    section.say(
        f"**At a steady 200 requests/s** for {seconds} s (open loop: latency counts from when a request was due). "
        "Worker, beat, Flower, store, REDCap simulator, mail server and load generator run on the same cores. Every "
        "STOP is looked up, written and mailed at the same time. Result: "
        f"p50 {p50:.1f} ms, p99 {p99:.1f} ms; {load.late} of {number:,} requests began more than 5 ms late.",
        verdict(p99 < 50, "p99 under 50 ms"),
    )
