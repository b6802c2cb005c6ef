"""1. How many signed webhooks one web process takes, beside what others would write and the physical floor."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import requests

from shared.batches import batches
from shared.redis_client import connect
from tests.benchmarks.load import Load, closed_loop, open_loop, percentile, webhook
from tests.benchmarks.report import Section, spread, verdict
from tests.benchmarks.world import (
    EVENT_LOOP,
    WAITRESS,
    WSGI,
    configuration,
    cpu_seconds,
    family,
    platform,
    web_command,
    whole_world,
)  # fmt: skip
from tests.processes import Platform, Process, wait_until

CONNECTIONS = 16
ROUNDS = 5


@dataclass
class Contestant:
    """An application on a server, and its rounds: the load, and the CPU seconds of the web process per request."""

    name: str
    application: str
    server: str
    rounds: list[tuple[Load, float]] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return median(load.per_second for load, _ in self.rounds)

    @property
    def cpu(self) -> float:
        return median(seconds for _, seconds in self.rounds)

    def row(self) -> list[object]:
        loads = [load for load, _ in self.rounds]
        return [
            self.name,
            spread([load.per_second for load in loads]),
            spread([load.percentile(0.5) * 1000 for load in loads], "{:.1f}"),
            spread([load.percentile(0.99) * 1000 for load in loads], "{:.1f}"),
            spread([cpu * 1000 for _, cpu in self.rounds], "{:.2f}"),
            spread([load.cpu_seconds / load.seconds * 100 for load in loads], "{:.0f} %"),
        ]


def measure(folder: Path, *, full: bool) -> Section:
    section = Section("1. Ingress")
    number = 6_000 if full else 2_000
    section.say(
        f"{number:,} signed webhooks of different participants over {CONNECTIONS} persistent connections, one web "
        f"process, closed loop, then the next application; {ROUNDS} rounds in turn. The textbook route verifies, "
        "calls `task.delay` with Celery's defaults, and stores nothing; it runs on granian's WSGI interface with 8 "
        "threads, the fastest server for it. Both it and ours publish to the same store, which writes to disk before "
        "it answers."
    )
    bare = Contestant("floor: HTTP alone", "tests.benchmarks.routes:http", EVENT_LOOP)
    textbook = Contestant("textbook: verify, task.delay", "tests.benchmarks.routes:textbook", WSGI)
    ours = Contestant("ours, in the event loop: as shipped", "web.asgi:app", EVENT_LOOP)
    contestants = [
        bare,
        Contestant("bare Flask route", "tests.benchmarks.routes:bare", WSGI),
        Contestant("verify only", "tests.benchmarks.routes:verify_only", WSGI),
        textbook,
        Contestant("ours, granian's WSGI interface, 8 threads", "web.wsgi:app", WSGI),
        Contestant("ours, waitress, 8 threads", "web.wsgi:app", WAITRESS),
        ours,
    ]
    prepared = [webhook(each) for each in range(number)]
    with platform(folder, configuration("http://127.0.0.1:1/api/"), "redis") as made:
        for _ in range(ROUNDS):
            for each in contestants:
                each.rounds.append(_run(made, each, prepared))
        floor = _floor_of_the_store(made)
    section.table(
        ["Application", "Requests/s", "p50 ms", "p99 ms", "CPU of web, ms/request", "CPU of generator"],
        [each.row() for each in contestants],
    )
    rates = {each.name: each.per_second for each in contestants}
    section.bars("ingress", "Signed webhooks per second, one web process", "/s", rates)
    by_rate, by_cpu = ours.per_second / textbook.per_second, textbook.cpu / ours.cpu
    section.say(
        f"Ours handles {by_rate:.2f} times as many as the textbook route; that takes {by_cpu:.2f} times as much CPU "
        "per request.",
        verdict(min(by_rate, by_cpu) >= 2.0, "at least 2.0 times the textbook route, by requests and by CPU"),
        f"The floor of the store: {floor} (median of {ROUNDS} rounds).",
        "The load generator is one Python process with raw sockets and prepared requests; its share of a core is in "
        "the last column. With WSGI, a slow sender occupies a thread, see [the decision](decisions/wsgi-server.md).",
    )
    _at_a_steady_rate(section, folder / "steady", seconds=30 if full else 12)
    return section


def _run(made: Platform, contestant: Contestant, prepared: list[bytes]) -> tuple[Load, float]:
    """One round of one application."""
    made.redis.flushall()
    command = web_command(made, contestant.application, contestant.server)
    process = Process("web-measured", command, env=made.env, folder=made.folder)
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


def _floor_of_the_store(made: Platform) -> str:
    """A script that sets one key, with nothing around it: alone, and sixteen in one transaction."""
    redis: Any = connect(made.redis_url)
    sha = redis.script_load("return redis.call('SET', KEYS[1], ARGV[1])")
    alone = [_calls(redis, sha, 1) for _ in range(ROUNDS)]
    together = [_calls(redis, sha, CONNECTIONS) for _ in range(ROUNDS)]
    redis.close()
    return (
        f"one `EVALSHA` on disk takes {median(alone) * 1000:.2f} ms; with {CONNECTIONS} in one transaction, "
        f"{median(together) * 1000:.2f} ms each"
    )


def _calls(redis: Any, sha: str, together: int) -> float:
    """Seconds per call."""
    taken = []
    for numbers in batches(range(640), together):
        began = time.perf_counter()
        with redis.pipeline(transaction=together > 1) as pipe:
            for number in numbers:
                pipe.evalsha(sha, 1, f"optout:bench:{number}", "x" * 600)
            pipe.execute()
        taken.append((time.perf_counter() - began) / together)
    return percentile(taken, 0.5)


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
        verdict(p99 < 10, "p99 under 10 ms"),
    )
