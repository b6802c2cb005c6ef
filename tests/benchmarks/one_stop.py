"""2. One STOP in a quiet system: from the request to the field, beside the two REDCap calls alone."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import requests

from shared.ledger import keys
from tests.benchmarks.load import exchange, percentile, webhook
from tests.benchmarks.report import Section, verdict
from tests.benchmarks.world import PROJECT, REDCAP_TOKEN, configuration, platform
from tests.processes import Platform, wait_until
from tests.simulators.redcap import RedcapSimulator, classic_study, enrol

RECORDS = 1_000
_numbers = itertools.count(1)


def measure(folder: Path, *, full: bool) -> Section:
    section = Section("2. One STOP, quiet system")
    number = 100 if full else 40
    simulator = RedcapSimulator({REDCAP_TOKEN: classic_study()})
    enrol(simulator.projects[REDCAP_TOKEN], RECORDS)
    with (
        simulator.serve() as served,
        platform(folder, configuration(served.url, per_minute=6000)) as made,
    ):
        wait_until(
            lambda: made.redis.hexists(keys.index_state(PROJECT), "built_ms"), what="the index is built"
        )
        time.sleep(1.0)
        _one(made, simulator)
        taken, asked = zip(*(_one(made, simulator) for _ in range(number)), strict=True)
        floor = [_floor(served.url, str(each)) for each in range(RECORDS - number, RECORDS)]
    p50, p95 = percentile(taken, 0.5) * 1000, percentile(taken, 0.95) * 1000
    section.say(
        f"{number} STOPs, one after the other, REDCap simulator without added latency. From sending the request "
        "until REDCap has written the field. The lower bound is the export and the import alone, called directly."
    )
    section.table(
        ["", "p50 ms", "p95 ms", "largest ms"],
        [
            [name, *(f"{1000 * percentile(each, part):.1f}" for part in (0.5, 0.95, 1.0))]
            for name, each in (("the two REDCap calls alone", floor), ("ours, webhook to field", taken))
        ],
    )
    per_stop = sum(asked) / len(asked)
    section.bars(
        "one-stop", "One STOP until REDCap shows it, p50", "ms",
        {"the two REDCap calls alone": percentile(floor, 0.5) * 1000, "ours, webhook to field": p50},
    )  # fmt: skip
    section.say(
        f"REDCap requests per STOP until it shows: {per_stop:.2f} (export, import; the first STOP of an hour also "
        "reads the project's structure). Afterwards the index is refreshed, at most once in ten seconds, in case "
        "another record also holds the number.",
        verdict(
            p50 < 150 and p95 < 400 and per_stop <= 3,
            "p50 under 150 ms, p95 under 400 ms, at most 3 requests",
        ),
    )
    return section


def _one(made: Platform, simulator: RedcapSimulator) -> tuple[float, int]:
    """Text one STOP. Answers the seconds until it is written, and how many requests that took."""
    number = next(_numbers)
    time.sleep(0.3)
    request, seen = webhook(number), len(simulator.requests)
    sent = time.monotonic()
    assert exchange(made.web_url, request) == 200
    wait_until(lambda: any(each.kind == "import" and each.status for each in simulator.requests[seen:]))
    requests_made = simulator.requests[seen:]
    place = next(place for place, each in enumerate(requests_made) if each.kind == "import")
    written = requests_made[place].at + requests_made[place].seconds
    return written - sent, place + 1


def _floor(url: str, record: str) -> float:
    """Export one record and write its field, over a kept connection."""
    session = _session
    common = {
        "token": REDCAP_TOKEN,
        "content": "record",
        "format": "json",
        "returnFormat": "json",
        "type": "flat",
    }
    row = {"record_id": record, "sms_opt_out_at": "2026-01-02 03:04:05", "sms_opt_out___1": "1"}
    began = time.monotonic()
    fields = {f"fields[{place}]": name for place, name in enumerate(row) if not name.endswith("___1")}
    session.post(url, data={**common, **fields, "records[0]": record}, timeout=10).raise_for_status()
    write = {"overwriteBehavior": "overwrite", "returnContent": "ids", "data": json.dumps([row])}
    session.post(url, data={**common, **write}, timeout=10).raise_for_status()
    return time.monotonic() - began


_session = requests.Session()
