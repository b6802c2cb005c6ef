"""`optout top`: what is under way, live."""

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from shared.domain.events import State
from shared.ledger.platform.counters import Counters
from shared.ledger.platform.platform_status import HostBudget, PlatformStatus
from shared.ledger.projects.figures import age_seconds, project_figures
from shared.ledger.projects.problems import ProjectProblems
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
        print_json([asdict(each) for each in figures(services, names)])
        return
    if once:
        _print_once(services, names)
        return
    _live(services, names, every)


def figures(services: Services, projects: Sequence[str]) -> list[Figures]:
    """The figures of some projects, in a few round trips for all of them. Raises redis.RedisError."""
    ended, budgets = _ended(services), _budgets(services)
    broken = ProjectProblems(services.redis).projects()
    waiting = project_figures(services.redis, projects)
    return [
        Figures(
            project=project,
            unfinished=waiting[project].unfinished,
            oldest_seconds=age_seconds(waiting[project].oldest_unfinished_ms),
            pending=waiting[project].pending,
            mails_due=waiting[project].due_mails,
            ended=ended[project].total(),
            failed=ended[project][State.FAILED],
            redcap_last_minute=budgets[project].requests if project in budgets else 0,
            redcap_limit=budgets[project].limit if project in budgets else 0,
            problem=_problem(project, services, broken),
        )
        for project in projects
    ]


def _ended(services: Services) -> dict[str, Counter[str]]:
    """How many events of each project have ended, by state."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (project, *_, state), number in Counters(services.redis).ended().items():
        found[project][state] += number
    return found


def _budgets(services: Services) -> dict[str, HostBudget]:
    """The budget of each project's REDCap host."""
    found = PlatformStatus(services.redis).budgets(services.config.redcap_rates)
    of_hosts = {budget.host: budget for budget in found}
    return {name: of_hosts[config.redcap_host] for name, config in services.config.projects.items()}


def _problem(project: str, services: Services, broken: set[str]) -> str:
    if services.project_config(project) is None:
        return "not configured"
    return "see /readyz" if project in broken else ""


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
    lines = [row(each, None) for each in figures(services, names)]
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
        found = figures(services, names)
        now = time.monotonic()
        return _table([row(each, rates.per_minute(each.project, each.ended, now)) for each in found])

    try:
        with Live(frame(), auto_refresh=False) as live:
            while True:
                time.sleep(every)
                live.update(frame(), refresh=True)
    except KeyboardInterrupt:
        return
