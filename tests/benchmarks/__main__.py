"""`make bench`: measures what matters beside its alternatives, and writes docs/explanation/benchmarks.md.

    python -m tests.benchmarks [--full] [--only ingress,storm]     with --only, nothing is written

`--only hospital` takes longer than all the others, and has a page of its own.

It lies under tests/ because it stands on the same processes and simulators, and so that the same strict types and
lint rules hold for it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from tests.benchmarks import (
    console,
    footprint,
    hospital,
    index,
    ingress,
    one_stop,
    reconciliation,
    storm,
    wishes,
)
from tests.benchmarks.report import HOSPITAL_PAGE, NOTES, PAGE, machine, page, print_section, write_charts

MEASURES = {
    "ingress": ingress.measure,
    "one_stop": one_stop.measure,
    "storm": storm.measure,
    "reconciliation": reconciliation.measure,
    "index": index.measure,
    "footprint": footprint.measure,
    "wishes": wishes.measure,
    "console": console.measure,
}
BY_ITSELF = {"hospital": hospital.measure}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--full", action="store_true", help="larger and longer")
    parser.add_argument("--only", help="comma-separated: " + ", ".join(MEASURES | BY_ITSELF))
    chosen = parser.parse_args()
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # processes start as they do where the program is installed
    names = chosen.only.split(",") if chosen.only else list(MEASURES)
    began, facts, sections = time.monotonic(), machine(), []
    with tempfile.TemporaryDirectory(prefix="optout-bench-") as folder:
        for name in names:
            before = time.monotonic()
            section = (MEASURES | BY_ITSELF)[name](Path(folder) / name, full=chosen.full)
            sections.append(section)
            print_section(section)
            print(f"[{name}: {time.monotonic() - before:.0f} s]\n", flush=True)
    seconds = time.monotonic() - began
    if not chosen.only:
        write_charts(sections)
        text = page(
            "Benchmarks", "make bench FULL=1" if chosen.full else "make bench", sections, facts, seconds
        )
        PAGE.write_text(f"{text}\n{NOTES.read_text()}")
    elif names == list(BY_ITSELF):
        command = "make bench HOSPITAL=1" if chosen.full else "python -m tests.benchmarks --only hospital"
        HOSPITAL_PAGE.write_text(page("Benchmark: a whole hospital", command, sections, facts, seconds))


if __name__ == "__main__":
    main()
