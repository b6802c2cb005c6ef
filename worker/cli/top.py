"""`optout top`: what is under way, live."""

import sys
import time
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from shared.domain.events import State
from shared.ledger import keys
from worker.cli.common import chosen_projects, make_services, print_json
from worker.services import Services

HEADINGS = (
    "Project",
    "Unfinished",
    "Oldest",
    "Pending",
    "Mails due",
    "Ended",
    "per min",
    "Failed",
    "REDCap/min",
    "Problem",
)


@dataclass(frozen=True, slots=True)
class Figures:
    """One project at one moment; all from the ledger."""

    project: str
    unfinished: int
    oldest_seconds: float
    pending: int
    mails_due: int
    ended: int
    failed: int
    redcap_last_minute: int
    redcap_limit: int
    problem: str


@click.command()
@click.option("--project", help="Only this project.")
@click.option("--once", is_flag=True, help="Print one frame and end; for scripts.")
@click.option("--json", "as_json", is_flag=True, help="One frame as an array of objects, one per project.")
@click.option(
    "--every", type=click.FloatRange(min=0.2), default=1.0, show_default=True, metavar="SECONDS",
    help="Time between frames.",
)  # fmt: skip
def top(project: str | None, once: bool, as_json: bool, every: float) -> None:
    """Show what waits and how fast it goes, by project. Reads the ledger only; ends with Ctrl-C."""
    services = make_services()
    names = chosen_projects(services, project, also_taken_out=True)
    if as_json:
        print_json([asdict(figures(services, name)) for name in names])
        return
    if once:
        _print_once(services, names)
        return
    _live(services, names, every)


def figures(services: Services, project: str) -> Figures:
    """A project's figures. Raises redis.RedisError."""
    redis = services.redis
    last_minute, limit = _requests(services, project)
    oldest = redis.zrange(keys.unfinished(project), 0, 0, withscores=True)
    ended = {
        field: int(count)
        for field, count in redis.hgetall(keys.COUNTS).items()
        if field.startswith(f"{project}|")
    }
    return Figures(
        project=project,
        unfinished=redis.zcard(keys.unfinished(project)),
        oldest_seconds=max(0.0, time.time() - oldest[0][1] / 1000) if oldest else 0.0,
        pending=redis.zcard(keys.pending(project)),
        mails_due=redis.zcard(keys.mailing(project)),
        ended=sum(ended.values()),
        failed=sum(count for field, count in ended.items() if field.endswith(f"|{State.FAILED}")),
        redcap_last_minute=last_minute,
        redcap_limit=limit,
        problem=_problem(services, project),
    )


def _requests(services: Services, project: str) -> tuple[int, int]:
    """Requests to the project's REDCap host within a minute, and how many may be."""
    config = services.project_config(project)
    if config is None:
        return 0, 0
    seconds, microseconds = services.redis.time()
    minute_ago = seconds * 1000 + microseconds // 1000 - 60_000
    host = urlsplit(config.redcap_url).netloc
    return services.redis.zcount(keys.rate(host), minute_ago, "+inf"), services.config.redcap_rate(config)


def _problem(services: Services, project: str) -> str:
    if services.project_config(project) is None:
        return "not configured"
    return "see /readyz" if services.redis.hexists(keys.PROBLEMS, project) else ""


def row(now: Figures, per_minute: float | None) -> tuple[str, ...]:
    """A line of the table."""
    return (
        now.project,
        str(now.unfinished),
        f"{now.oldest_seconds:.0f} s" if now.unfinished else "",
        str(now.pending),
        str(now.mails_due),
        str(now.ended),
        "" if per_minute is None else f"{per_minute:.0f}",
        str(now.failed),
        f"{now.redcap_last_minute}/{now.redcap_limit}",
        now.problem,
    )


def _print_once(services: Services, names: list[str]) -> None:
    lines = [row(figures(services, name), None) for name in names]
    if sys.stdout.isatty():
        Console().print(_table(lines))
        return
    for line in lines:
        click.echo("\t".join(line))


def _table(lines: list[tuple[str, ...]]) -> Table:
    table = Table(title="Opt-Out Bridge", caption="Ctrl-C ends; optout events lists single events")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in {"Project", "Problem"} else "right")
    for line in lines:
        table.add_row(*line, style="bold red" if line[-1] else None)
    return table


class Rates:
    """How many events of each project have ended per minute, over the last minute of watching."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[float, int]]] = {}

    def per_minute(self, project: str, ended: int, now: float) -> float | None:
        """The rate, or None on the first look. `now` in seconds of a steady clock."""
        seen = self._seen.setdefault(project, [])
        while len(seen) > 1 and seen[1][0] <= now - 60:
            seen.pop(0)
        seen.append((now, ended))
        since, before = seen[0]
        return (ended - before) * 60 / (now - since) if now > since else None


def _live(services: Services, names: list[str], every: float) -> None:
    rates = Rates()

    def frame() -> Table:
        found = [figures(services, name) for name in names]
        now = time.monotonic()
        return _table([row(each, rates.per_minute(each.project, each.ended, now)) for each in found])

    try:
        with Live(frame(), auto_refresh=False) as live:
            while True:
                time.sleep(every)
                live.update(frame(), refresh=True)
    except KeyboardInterrupt:
        return
