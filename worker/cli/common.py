"""What the subcommands share: services, and how results are shown."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from textwrap import indent
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.batches import batches
from shared.config import broker_url, load_config, redis_url
from shared.ledger import StoredEvent
from shared.ledger.opt_outs.blocks import BlockState
from shared.ledger.projects.tracked import TrackedProjects
from shared.messaging.tasks import Publisher, TaskName
from shared.redis_client import connect
from worker.services import Services

# A terminal's table is laid out as a whole, so a long list becomes several.
ROWS_PER_TABLE = 1_000


def make_services() -> Services:
    """The services of one command. Raises ConfigError."""
    if broker_url() != redis_url():
        _publisher()  # an address that Celery cannot use is reported before anything is changed
    return Services(config=load_config(), redis=connect(redis_url()), publish=_publish)


@cache
def _publisher() -> Publisher:
    # Celery is loaded only where a command publishes: most only read, and are done sooner.
    publisher: Publisher = import_module("shared.messaging.publisher").make_publisher()
    return publisher


def _publish(task: TaskName, *args: str, delay_seconds: float = 0) -> None:
    _publisher()(task, *args, delay_seconds=delay_seconds)


def chosen_projects(services: Services, name: str | None, *, also_taken_out: bool = False) -> list[str]:
    """All projects, or the one that was named. Raises click.BadParameter for an unknown one."""
    gone = TrackedProjects(services.redis).removed(services.config.projects) if also_taken_out else []
    return select_projects(list(services.config.projects), name, gone)


def select_projects(configured: list[str], name: str | None, gone: Sequence[str] = ()) -> list[str]:
    """The named one of the configured and removed projects, or all. Raises click.BadParameter."""
    names = [*configured, *gone]
    if name is None:
        return names
    if name not in names:
        known = ", ".join(configured) + ("; taken out were: " + ", ".join(gone) if gone else "")
        raise click.BadParameter(f"no project {name!r}; configured are: {known}", param_hint="--project")
    return [name]


def print_json(value: Any) -> None:
    """For machines."""
    click.echo(json.dumps(value, indent=2))


def print_json_array(values: Iterable[Any]) -> None:
    """An array as `print_json` prints it, one value at a time."""
    opened = False
    for value in values:
        click.echo(("," if opened else "[") + "\n" + indent(json.dumps(value, indent=2), "  "), nl=False)
        opened = True
    click.echo("\n]" if opened else "[]")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere a line per row, fields separated by tabs, with headings if asked for.

    Where the terminal is too narrow for a table without cutting a word, such as a message SID, each row is a card.
    """
    if not sys.stdout.isatty():
        context = click.get_current_context(silent=True)
        if context and (context.obj or {}).get("headings"):
            click.echo("\t".join(headings))
        for row in rows:
            click.echo("\t".join(row))
        return
    for batch in batches(rows, ROWS_PER_TABLE):
        show_table(headings, batch, Console(highlight=False))


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """The rows as a table, or as cards if the terminal is too narrow."""
    columns = list(zip(headings, *rows, strict=True))
    if sum(map(_longest_word, columns)) + 3 * len(headings) + 1 <= console.width:
        table = Table()
        for heading, *cells in columns:
            table.add_column(heading, no_wrap=not any(" " in cell for cell in cells))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
        return
    for row in rows:
        _show_card(dict(zip(headings, row, strict=True)), console)


def _show_card(cells: Mapping[str, str], console: Console) -> None:
    """A row as a line per column, without empty ones."""
    width = max(map(len, cells)) + 2
    for heading, cell in cells.items():
        if cell:
            console.print(Text(heading.ljust(width), "bold") + Text(cell), soft_wrap=True)
    console.print()


def _longest_word(cells: Sequence[str]) -> int:
    return max(len(word) for cell in cells for word in [*cell.split(), ""])


def describe(entry: StoredEvent) -> dict[str, Any]:
    """An event as `optout events --json` shows it; times are ISO 8601 in UTC."""
    return {
        "event_id": entry.event_id,
        "project": entry.project,
        "change": entry.change.value,
        "state": entry.state.value,
        "reason": entry.reason,
        "source": entry.source.value,
        "occurred_at": entry.occurred_at.isoformat(timespec="milliseconds"),
        "received_at": entry.received_at.isoformat(timespec="milliseconds"),
        "records": list(entry.records),
        "mail": "due" if entry.notice else entry.mail,
    } | _at_twilio(entry)


def _at_twilio(entry: StoredEvent) -> dict[str, Any]:
    """How far its block at Twilio has come; nothing if Twilio was not to be asked."""
    block = entry.block
    if block.state is BlockState.NONE:
        return {}
    since = block.at.isoformat(timespec="milliseconds") if block.at else ""
    return {"at_twilio": {"state": block.state.value, "since": since, "reason": block.reason}}
