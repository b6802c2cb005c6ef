"""6. Memory of each process, idle and after work, and how long each takes to import."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.load import closed_loop, webhook
from tests.benchmarks.report import Section, verdict
from tests.benchmarks.world import World, family, pss_megabytes, whole_world
from tests.processes import ROOT, wait_until

IMPORTS = {
    "web": "import web.asgi",
    "worker": "import worker.celery_app as each; each.app.finalize(); each.app.loader.import_default_modules()",
    "beat": "import celery.bin.beat, worker.beat_app, worker.runtime.schedule",
    "flower": "import worker.beat_app, flower.command",
    "optout": "import worker.cli",
}
TARGET_MEGABYTES = 350
IMAGES = ("optout-web:", "optout-worker:", "optout-demo:")


def measure(folder: Path, *, full: bool) -> Section:
    section = Section("6. Footprint")
    stops = 5_000 if full else 1_500
    with whole_world(folder, records=10_000, config={"per_minute": 6000}) as world:
        time.sleep(5.0)
        idle = _memory(world)
        prepared = [webhook(each, phone=each) for each in range(1, stops + 1)]
        closed_loop(world.platform.web_url, prepared, connections=16)
        wait_until(world.is_told, seconds=300, what="all is written and mailed")
        time.sleep(2.0)
        after = _memory(world)
        imports = {name: f"{_import_seconds(world, code) * 1000:.0f}" for name, code in IMPORTS.items()}
    section.say(
        "Proportional set size (shared pages are divided among the processes) of all processes of a kind, with "
        f"an index of 10,000 phones, idle and after {stops:,} STOPs. Import time is the time beyond the "
        "interpreter's own (median of five)."
    )
    rows = [
        [
            name,
            f"{len(idle[name])}",
            f"{sum(idle[name]):.0f}",
            f"{sum(after[name]):.0f}",
            imports.get(name, ""),
        ]
        for name in idle
    ]
    whole, whole_after = (sum(map(sum, each.values())) for each in (idle, after))
    total = ["**all**", f"{sum(map(len, idle.values()))}", f"**{whole:.0f}**", f"**{whole_after:.0f}**", ""]
    section.table(
        ["", "Processes", "Idle MB", "After MB", "Import ms"],
        [*rows, total, ["optout (command line)", "", "", "", imports["optout"]]],
    )
    bars = {name: sum(each) for name, each in idle.items()}
    section.bars("footprint", "Memory of the idle platform (PSS)", "MB", {**bars, "all": whole})
    section.say(verdict(whole < TARGET_MEGABYTES, f"the whole platform idle under {TARGET_MEGABYTES} MB"))
    if images := _images():
        section.say("Images:")
        section.table(["Image", "Size"], images)
    return section


def _memory(world: World) -> dict[str, list[float]]:
    """Megabytes of each process."""
    return {
        name: [pss_megabytes(pid) for pid in family(process)]
        for name, process in world.platform.processes.items()
    }


def _import_seconds(world: World, code: str) -> float:
    """How much longer an interpreter takes with the imports than without."""
    return statistics.median(_run_seconds(world, code) - _run_seconds(world, "pass") for _ in range(5))


def _run_seconds(world: World, code: str) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code], env=world.platform.env, cwd=ROOT, check=True, capture_output=True
    )
    return time.perf_counter() - began


def _images() -> list[list[str]]:
    """Sizes of the project's container images, where an engine is there and has some."""
    docker = shutil.which("docker")
    if docker is None:
        return []
    listed = subprocess.run(
        [docker, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}\t{{.Size}}"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    return [
        line.split("\t") for line in sorted(listed.splitlines()) if line.startswith(("opt-out", "optout"))
    ]
