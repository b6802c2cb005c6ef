"""Options by which several commands choose events."""

from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import click

from shared.ledger import StoredEvent
from worker.services import Services

record_option = click.option("--record", metavar="ID", help="Only events that concern this record.")
since_option = click.option(
    "--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S%z"]),
    help="Only texts from this time on: local to the project, or ISO 8601 with an offset.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What `--record` and `--since` choose."""

    services: Services
    record: str | None
    since: datetime | None

    def admits(self, entry: StoredEvent) -> bool:
        """Whether an event is among the chosen ones."""
        concerned = self.record is None or self.record in entry.records
        return concerned and entry.occurred_at >= begin_of(entry.project, self.since, self.services)

    def __bool__(self) -> bool:
        return self.record is not None or self.since is not None


def begin_of(project: str, since: datetime | None, services: Services) -> datetime:
    """The first time of interest; one without offset is local to the project."""
    if since is None:
        return datetime(1970, 1, 1, tzinfo=UTC)
    config = services.project_config(project)
    zone = services.config.zone(config) if config else ZoneInfo(services.config.time_zone)
    return since if since.tzinfo else since.replace(tzinfo=zone)
