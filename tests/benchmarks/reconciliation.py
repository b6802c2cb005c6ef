"""4. The nightly run: wall time, CPU, memory and requests, as messages and records grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.report import Section, verdict
from tests.benchmarks.world import Redcap, configuration, platform, running
from tests.processes import BIN, ROOT, Process, wait_until


@dataclass(slots=True)
class Run:
    """One run of `optout reconcile`, in a process of its own."""

    number: int
    seconds: float
    cpu_seconds: float
    peak_megabytes: float
    report: dict[str, Any]
    redcap_requests: int


def measure(folder: Path, *, full: bool) -> Section:
    section = Section("4. Reconciliation")
    numbers = [1_000, 10_000, 100_000]
    section.say(
        "`optout reconcile` in a separate process, with as many messages in Twilio's log as records in REDCap, "
        "simulators without added latency. One message in ten is a STOP or START without a webhook. It "
        "is recovered and, if it is the participant's latest, written."
    )
    runs = [_run(folder / str(number), number) for number in numbers]
    section.table(
        [
            "Messages and records",
            "Wall s",
            "CPU s",
            "Peak RSS MB",
            "Requests to Twilio",
            "to REDCap",
            "Recovered",
        ],
        [
            [
                f"{run.number:,}",
                f"{run.seconds:.1f}",
                f"{run.cpu_seconds:.1f}",
                f"{run.peak_megabytes:.0f}",
                _twilio_requests(run),
                run.redcap_requests,
                f"{run.report['changes_recovered']:,}",
            ]
            for run in runs
        ],
    )
    section.bars(
        "reconciliation", "Reconciliation: CPU per thousand messages and records", "ms",
        {f"{run.number:,}": run.cpu_seconds * 1e6 / run.number for run in runs},
    )  # fmt: skip
    last, before = runs[-1], runs[-2]
    growth = last.cpu_seconds / before.cpu_seconds / (last.number / before.number)
    section.say(
        f"From {before.number:,} to {last.number:,}, CPU grew {growth:.2f} times as much as the work.",
        verdict(growth < 1.2, "linear growth"),
        verdict(
            last.seconds < 60 and last.peak_megabytes < 300,
            f"100,000 and 100,000 within 60 s and 300 MB (seen: {last.number:,})",
        ),
    )
    return section


def _twilio_requests(run: Run) -> int:
    """Pages of the log, and the three lists that name a service's senders."""
    return int(run.report["pages_read"]) + 3


def _run(folder: Path, number: int) -> Run:
    folder.mkdir(parents=True)
    addresses = folder / "addresses"
    command = [sys.executable, "-m", "tests.benchmarks.twilio_log", str(number), str(addresses)]
    with running(Process("simulators", command, env=os.environ, folder=folder)):
        wait_until(
            lambda: addresses.exists() and addresses.read_text(), seconds=120, what="the simulators are up"
        )
        urls = json.loads(addresses.read_text())
        config = configuration(urls["redcap"], per_minute=6000)
        with platform(folder, config, "redis") as made:
            env = {**made.env, "OPTOUT_TWILIO_API_URL": urls["twilio"]}
            began = time.monotonic()
            with (folder / "report").open("w") as out:
                process = subprocess.Popen(
                    [str(BIN / "optout"), "reconcile", "--json"], env=env, cwd=ROOT, stdout=out, stderr=out
                )
                _, _, used = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
        text = (folder / "report").read_text()
        report = json.loads(text[text.index("[\n") :])[0]
        assert not report["errors"], report
        counts = Redcap(urls["redcap"]).counts()
        return Run(
            number, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, report, counts["total"]
        )
