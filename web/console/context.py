"""What the console's views use."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from flask import Flask, current_app, g

from shared.config import Config
from shared.domain.events import from_milliseconds
from shared.ledger import Ledger
from web.console.login import Gate

_EXTENSION = "console"


@dataclass(frozen=True, slots=True)
class ConsoleServices:
    """Built once per process. `read_config` returns the configuration as it is now."""

    read_config: Callable[[], Config]
    ledger: Ledger
    gate: Gate
    flower_url: str = ""

    @property
    def config(self) -> Config:
        """The configuration, the same for a whole request."""
        if "config" not in g:
            g.config = self.read_config()
        found: Config = g.config
        return found

    def zone(self, project: str) -> ZoneInfo:
        """The time zone of a study; the deployment's where it is no longer configured."""
        config = self.config
        study = config.projects.get(project)
        return config.zone(study) if study else ZoneInfo(config.time_zone)


def init_console(app: Flask, services: ConsoleServices) -> None:
    """Attach the services to an application."""
    app.extensions[_EXTENSION] = services


def console() -> ConsoleServices:
    """The services of the application that handles the current request."""
    attached: ConsoleServices = current_app.extensions[_EXTENSION]
    return attached


def now() -> datetime:
    """The current time."""
    return datetime.fromtimestamp(time.time(), UTC)


def local_text(moment: datetime | int, zone: ZoneInfo) -> str:
    """A time, or its milliseconds since 1970, as people of a zone write it."""
    when = from_milliseconds(moment) if isinstance(moment, int) else moment
    return when.astimezone(zone).strftime("%Y-%m-%d %H:%M")
