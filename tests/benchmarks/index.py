"""5. The phone index: building it, what it takes, looking up, refreshing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.domain.addresses import PhoneHasher
from shared.domain.phone import numbers_in
from shared.ledger import keys
from shared.redis_client import connect
from tests.benchmarks.load import percentile
from tests.benchmarks.report import Section
from tests.benchmarks.world import PROJECT, configuration, platform
from tests.simulators.redcap import fictional_phone, fictional_phone_as_typed
from worker.redcap.opt_out_fields import RecordState
from worker.redcap.phone_index import PhoneIndex

NUMBERS = (10_000, 100_000, 1_000_000)
LOOKUPS = 2_000
CHANGED = 100

_hashed = PhoneHasher("a-key-for-benchmarks-only")


@dataclass(slots=True)
class Figures:
    """Of an index of one size; times in seconds."""

    number: int
    parse: float
    build: float
    bytes_each: float
    lookup_p50: float
    lookup_p99: float
    refresh: float


def measure(folder: Path, *, full: bool) -> Section:
    section = Section("5. Phone index")
    section.say(
        "Records are in the form of an export, one phone each in common spellings. Parsing normalises a number "
        "(libphonenumber) and hashes it. Building writes all records into the store, without the export itself. "
        f"Look-ups are {LOOKUPS:,} random phones, one at a time, through the worker's client. The refresh writes "
        f"{CHANGED} changed records, as from an incremental export."
    )
    figures = [_figures(folder / str(number), number) for number in NUMBERS]
    section.table(
        [
            "Numbers",
            "Parse s",
            "Build s",
            "Bytes per number",
            "Look-up p50 ms",
            "p99 ms",
            f"{CHANGED} changed, ms",
        ],
        [
            [
                f"{each.number:,}",
                f"{each.parse:.1f}",
                f"{each.build:.1f}",
                f"{each.bytes_each:.0f}",
                f"{each.lookup_p50 * 1000:.2f}",
                f"{each.lookup_p99 * 1000:.2f}",
                f"{each.refresh * 1000:.1f}",
            ]
            for each in figures
        ],
    )
    section.bars(
        "index", f"Refreshing {CHANGED} changed records", "ms",
        {f"in {each.number:,}": each.refresh * 1000 for each in figures},
    )  # fmt: skip
    section.say("Look-ups and refresh do not grow with the index, because both are by key.")
    return section


def _figures(folder: Path, number: int) -> Figures:
    with platform(folder, configuration("http://127.0.0.1:1/api/"), "redis") as made:
        redis = connect(made.redis_url)
        index = PhoneIndex(PROJECT, redis)
        began = time.perf_counter()
        hashes = [_hash_of(each) for each in range(number)]
        parse = time.perf_counter() - began
        before = _used(redis)
        began = time.perf_counter()
        index.rebuild(_states(hashes), now=datetime.now(UTC))
        build = time.perf_counter() - began
        used = _used(redis) - before
        lookups = sorted(_timed(index, hashes[place * 7919 % number]) for place in range(LOOKUPS))
        began = time.perf_counter()
        changed = [_hashed(fictional_phone(number + each)) for each in range(CHANGED)]
        index.put(_states(changed), now=datetime.now(UTC))
        refresh = time.perf_counter() - began
        assert redis.hlen(keys.index_records(PROJECT)) == number
        redis.close()
    return Figures(
        number, parse, build, used / number, percentile(lookups, 0.5), percentile(lookups, 0.99), refresh
    )


def _hash_of(number: int) -> str:
    (e164,) = numbers_in(fictional_phone_as_typed(number), "US")
    return _hashed(e164)


def _states(hashes: list[str]) -> Iterator[RecordState]:
    for place, phone in enumerate(hashes):
        yield RecordState(record_id=str(place), phones=frozenset({phone}), opt_out_value="", ticked=False)


def _timed(index: PhoneIndex, phone: str) -> float:
    began = time.perf_counter()
    assert index.records([phone])
    return time.perf_counter() - began


def _used(redis: Any) -> int:
    return int(redis.info("memory")["used_memory"])
