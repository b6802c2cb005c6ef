"""A whole hospital: hundreds of studies on one REDCap host, and STOPs that come in the night."""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from shared.ledger import keys
from shared.messaging.celery_config import make_celery
from shared.messaging.tasks import QUEUES, TaskName
from tests.benchmarks.hospital_services import RECORDS, number_of, service_of, token_of
from tests.benchmarks.load import exchange, percentile, webhook
from tests.benchmarks.report import Section, verdict
from tests.benchmarks.world import SECRETS, Redcap, running
from tests.processes import Platform, Process, wait_until
from tests.simulators.twilio import ACCOUNT_SID, PUBLIC_URL

PER_MINUTE = 300
TARGET_METRICS_MS = 60
SECONDS_BETWEEN_STOPS = 2.0
# An unchanged study costs two requests a night. A STOP reads and writes its record, and the study's index is read
# once more, as a further record may hold the number.
PER_STUDY, PER_STOP = 2, 3
SHARED = 50

HEAD = f"""\
public_url = "{PUBLIC_URL}"
[twilio.main]
account_sid = "{ACCOUNT_SID}"
auth_token = "env:BENCH_TWILIO_TOKEN"
"""
STUDY = """\
[projects.study{study}]
redcap_url = "{redcap_url}"
redcap_token = "file:{token}"
twilio = "main"
messaging_service_sid = "{service}"
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
opt_out_checkbox = "sms_opt_out"
"""


@dataclass(slots=True)
class Night:
    """What one night looked like."""

    studies: int
    workers: int
    is_paced: bool = True
    stops: list[float] = field(default_factory=list)  # seconds from webhook to the end of the event
    seconds: float = 0.0
    requests: int = 0
    failed: int = 0
    metrics_ms: float = 0.0
    metrics_lines: int = 0

    @property
    def least_seconds(self) -> float:
        """What the rate limit alone takes for the studies and for the STOPs of the night."""
        return (self.studies * PER_STUDY + len(self.stops) * PER_STOP) / PER_MINUTE * 60

    def row(self) -> list[object]:
        return [
            self.studies, self.workers, "paced" if self.is_paced else "not paced", len(self.stops),
            f"{statistics.median(self.stops):.1f}",
            f"{percentile(self.stops, 0.95):.1f}", f"{max(self.stops):.1f}", f"{self.seconds:.0f}",
            f"{self.seconds / self.least_seconds:.2f}", f"{self.requests / self.studies:.2f}",
        ]  # fmt: skip


def measure(folder: Path, *, full: bool) -> Section:
    section = Section("A night")
    section.say(
        f"Studies with {RECORDS} records each on one REDCap host, 150 ms a call, {PER_MINUTE} requests a minute. All "
        "nightly runs begin at once; a STOP comes every two seconds, for a random study, until the last run has "
        f"ended. The rate limit alone: {PER_STUDY} requests per study and {PER_STOP} per STOP, at {PER_MINUTE} a "
        "minute. Not paced, as in version 1, nightly runs may take all processes of a worker and the whole rate.",
    )
    sizes = [(200, 1), (500, 1), (500, 3)] if full else [(200, 1)]
    nights = [_night(folder / f"{studies}-{workers}", Night(studies, workers)) for studies, workers in sizes]
    unpaced = _night(folder / "unpaced", Night(*sizes[0], is_paced=False))
    section.table(
        [
            "Studies", "Workers", "Background work", "STOPs", "Text to field p50 s", "p95 s", "Longest s", "Night s",
            "Times the rate limit alone", "REDCap requests per study",
        ],
        [night.row() for night in (unpaced, *nights)],
    )  # fmt: skip
    section.say(
        *(
            verdict(
                percentile(night.stops, 0.95) <= 3 and max(night.stops) <= 8,
                f"{night.studies} studies, {night.workers} workers: p95 within 3 s, none above 8 s",
            )
            for night in nights
        ),
        *(
            verdict(night.seconds <= 1.3 * night.least_seconds and not night.failed, "night within 1.3 times")
            for night in nights
        ),
    )
    last = nights[-1]
    section.say(
        f"`/metrics` with {last.studies} studies: {last.metrics_ms:.0f} ms, {last.metrics_lines:,} lines.",
        verdict(last.metrics_ms < TARGET_METRICS_MS, f"less than {TARGET_METRICS_MS} ms"),
    )
    _measure_shared(section, folder / "shared")
    return section


def _measure_shared(section: Section, folder: Path) -> None:
    with _hospital(folder, SHARED, workers=1, shared=SHARED) as (made, redcap):
        redcap.clear()
        _send(made, 1, study=7, shared=SHARED)
        time.sleep(10)
        early = redcap.counts()["total"]
        wait_until(lambda: not _unfinished(made, SHARED), seconds=300, what="all studies have looked")
        total = redcap.counts()["total"]
    section.say(
        f"One STOP on a Messaging Service that {SHARED} studies share: {early} requests in the first ten seconds, "
        f"{total} until all studies had looked.",
        verdict(early <= 4, "at most 4 requests in the first ten seconds"),
    )


def _night(folder: Path, night: Night) -> Night:
    studies = night.studies
    with _hospital(folder, studies, workers=night.workers, is_paced=night.is_paced) as (made, redcap):
        section_requests = redcap.counts()["total"]
        began, sent = time.time(), 0
        app = make_celery(made.redis_url)
        for study in range(studies):
            args, queue = (f"study{study}",), QUEUES[TaskName.RECONCILE]
            app.send_task(TaskName.RECONCILE, args=args, kwargs={"nightly": True}, queue=queue)
        chance = random.Random(7)
        while _reconciled(made, studies, began) < studies:
            sent += 1
            _send(made, sent, study=chance.randrange(studies), shared=0)
            time.sleep(SECONDS_BETWEEN_STOPS)
        night.seconds = time.time() - began
        wait_until(lambda: not _unfinished(made, studies), seconds=120, what="all STOPs are handled")
        night.stops = list(_latencies(made, studies))
        assert len(night.stops) == sent, (len(night.stops), sent)
        night.requests = redcap.counts()["total"] - section_requests - PER_STOP * sent
        night.metrics_ms, night.metrics_lines = _metrics(made)
        night.failed = sum(bool(_failure(made, study)) for study in range(studies))
        return night


@contextmanager
def _hospital(
    folder: Path, studies: int, *, workers: int, shared: int = 0, is_paced: bool = True
) -> Iterator[tuple[Platform, Redcap]]:
    """The platform with its studies; every project has been verified once."""
    folder.mkdir(parents=True)
    addresses = folder / "addresses"
    command = [
        sys.executable, "-m", "tests.benchmarks.hospital_services", str(studies), str(shared), str(addresses),
    ]  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(running(Process("simulators", command, env=os.environ, folder=folder)))
        wait_until(lambda: addresses.exists() and addresses.read_text(), seconds=300, what="the simulators")
        urls = json.loads(addresses.read_text())
        secrets = {**SECRETS, "OPTOUT_TWILIO_API_URL": urls["twilio"]}
        made = stack.enter_context(
            Platform(folder, _config(folder, studies, shared, urls["redcap"]), secrets)
        )
        if not is_paced:
            made["worker"].command[1:] = ["-m", "tests.benchmarks.unpaced_worker", "worker"]
        made.start("redis")
        for number in range(1, workers):
            more = Process(f"worker{number}", made["worker"].command, env=made.env, folder=folder)
            stack.enter_context(running(more))
        redcap = Redcap(urls["redcap"])
        with _without_rate_limit(made):
            made.start("web", "worker", "beat")
            wait_until(
                lambda: made.redis.hlen(keys.VERIFIED) == studies,
                seconds=900,
                what="every project is verified",
            )
        yield made, redcap


@contextmanager
def _without_rate_limit(made: Platform) -> Iterator[None]:
    """Only the preparation is quick: the window of the limiter is emptied all the time."""
    stop = threading.Event()

    def empty() -> None:
        while not stop.wait(0.02):
            made.redis.delete(*made.redis.keys(keys.rate("") + "*") or ["-"])

    thread = threading.Thread(target=empty, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _config(folder: Path, studies: int, shared: int, redcap_url: str) -> str:
    parts = [HEAD]
    for study in range(studies):
        token = folder / f"token-{study}"
        token.write_text(token_of(study))
        service = service_of(study, shared)
        parts.append(STUDY.format(study=study, redcap_url=redcap_url, token=token, service=service))
    return "\n".join(parts)


def _send(made: Platform, number: int, *, study: int, shared: int) -> None:
    phone = study * RECORDS + 1 + number % RECORDS
    request = webhook(number, phone=phone, service=service_of(study, shared), to=number_of(study))
    assert exchange(made.web_url, request) == 200


def _reconciled(made: Platform, studies: int, began: float) -> int:
    with made.redis.pipeline(transaction=False) as pipe:
        for study in range(studies):
            pipe.hmget(keys.reconciled(f"study{study}"), "success_ms", "failure_ms")
        ended = [max(int(each or 0) for each in pair) for pair in pipe.execute()]
    return sum(moment >= began * 1000 for moment in ended)


def _failure(made: Platform, study: int) -> Any:
    return made.redis.hget(keys.reconciled(f"study{study}"), "failure_ms")


def _unfinished(made: Platform, studies: int) -> int:
    with made.redis.pipeline(transaction=False) as pipe:
        for study in range(studies):
            pipe.zcard(keys.unfinished(f"study{study}"))
        return sum(pipe.execute())


def _latencies(made: Platform, studies: int) -> Iterator[float]:
    for study in range(studies):
        project = f"study{study}"
        for event_id in made.redis.zrange(keys.events(project), 0, -1):
            entry = made.redis.hgetall(keys.event(project, str(event_id)))
            yield (int(entry["finished_ms"]) - int(entry["received_ms"])) / 1000


def _metrics(made: Platform) -> tuple[float, int]:
    """How many milliseconds `/metrics` takes, the median of five requests, and how many lines it has."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        page = requests.get(f"{made.web_url}/metrics", timeout=30)
        times.append((time.perf_counter() - began) * 1000)
        page.raise_for_status()
    return statistics.median(times), page.text.count("\n")
