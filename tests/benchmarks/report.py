"""The benchmarks' results as a page: tables, charts, the machine, and the hand-written notes."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tests.benchmarks.chart import bar_chart
from tests.processes import ROOT, valkey_binary

PAGE = ROOT / "docs/explanation/benchmarks.md"
HOSPITAL_PAGE = ROOT / "docs/explanation/benchmark-hospital.md"
CHARTS = ROOT / "docs/explanation/benchmarks"
NOTES = Path(__file__).parent / "notes.md"

PACKAGES = (
    "celery", "kombu", "redis", "hiredis", "flask", "granian", "uvloop", "waitress", "flower", "twilio",
    "phonenumbers",
)  # fmt: skip


@dataclass(slots=True)
class Section:
    """One measured question."""

    title: str
    lines: list[str] = field(default_factory=list)
    charts: dict[str, str] = field(default_factory=dict)  # file name -> SVG

    def say(self, *paragraphs: str) -> None:
        for paragraph in paragraphs:
            self.lines += [paragraph, ""]

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Columns after the first are figures, to the right."""
        self.lines.append("| " + " | ".join(headings) + " |")
        self.lines.append("| --- |" + " ---: |" * (len(headings) - 1))
        self.lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
        self.lines.append("")

    def bars(self, name: str, title: str, unit: str, values: dict[str, float]) -> None:
        """A bar chart, shown here."""
        self.charts[f"{name}.svg"] = bar_chart(title, unit, values)
        self.lines += [f"![{title}](benchmarks/{name}.svg)", ""]


def spread(values: Sequence[float], form: str = "{:.0f}") -> str:
    """Median, and smallest and largest where there are several."""
    middle = form.format(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))}–{form.format(max(values))})"


def verdict(met: bool, target: str) -> str:
    """A target, and whether this run met it."""
    return f"Target: {target}. **{'Met' if met else 'Not met'}** in this run."


def machine() -> list[tuple[str, str]]:
    """What it ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    before = time.perf_counter()
    sum(number * number for number in range(3_000_000))
    loop = time.perf_counter() - before
    return [
        ("Processor", f"{_cpu_name()}, {os.cpu_count()} cores"),
        ("Memory", f"{memory:.0f} GiB"),
        ("System", f"{platform.system()} {platform.release()}"),
        ("Python", platform.python_version()),
        ("Store", _store_version()),
        ("Packages", ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)),
        ("Flush to disk (fdatasync of 1 kB)", _flush_time()),
        ("Load before the run (1 min)", f"{os.getloadavg()[0]:.2f}"),
        ("Summing 3 million squares", f"{loop:.2f} s"),
    ]


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _store_version() -> str:
    said = subprocess.run([valkey_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    version = next((word for word in said.split() if word.startswith("v=")), "")
    return f"{said.split()[0]} {version.removeprefix('v=')}, appendfsync always"


def _flush_time() -> str:
    path = ROOT / ".flush-time"
    taken = []
    with path.open("wb") as file:
        for _ in range(200):
            file.write(b"x" * 1024)
            file.flush()
            before = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - before) * 1000)
    path.unlink()
    taken.sort()
    return f"p50 {taken[100]:.2f} ms, p99 {taken[197]:.2f} ms"


def write_charts(sections: Sequence[Section]) -> None:
    """Write the charts of docs/explanation/benchmarks.md in place of the former ones."""
    CHARTS.mkdir(exist_ok=True)
    for old in CHARTS.glob("*.svg"):
        old.unlink()
    for section in sections:
        for name, svg in section.charts.items():
            (CHARTS / name).write_text(svg)


def page(
    title: str, command: str, sections: Sequence[Section], facts: Sequence[tuple[str, str]], seconds: float
) -> str:
    """A page of docs/explanation with what `command` measured on a machine with these `facts`."""
    lines = [
        f"# {title}",
        "",
        f"Written by `{command}` ({datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.1f} minutes). Do not edit this page: "
        "edit `tests/benchmarks/`.",
        "",
        "Values are the median, with the smallest and largest of several runs in brackets. All processes share the "
        "cores of one machine, including load generator and simulators. Absolute times therefore depend on the "
        "machine; the ratios matter. Each alternative was measured in the same run, with the same server, store and "
        "requests.",
        "",
        "| Machine | Value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in facts),
        "",
    ]
    for section in sections:
        lines += [f"## {section.title}", "", *section.lines]
    return "\n".join(lines).rstrip() + "\n"


def print_section(section: Section) -> None:
    """Print a section while the benchmarks run."""
    sys.stdout.write("\n".join([f"## {section.title}", "", *section.lines]) + "\n")
    sys.stdout.flush()
