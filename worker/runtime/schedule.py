"""What beat starts, and when."""

from datetime import tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import crontab, schedule

from shared.config import Config, load_config
from shared.messaging.queue import QUEUES, TaskName
from worker.runtime import heartbeat

SWEEP_EVERY_SECONDS = 60.0


class ZonedCrontab(crontab):
    """A crontab in a time zone of its own, whatever the application's is.

    Celery 5.7 runs an entry whose time the clocks skip right after the gap, and one whose time comes twice
    only once; tests hold it to that.
    """

    def __init__(self, *, zone: ZoneInfo, **fields: Any) -> None:
        super().__init__(**fields)
        self._zone = zone

    @property
    def tz(self) -> tzinfo:  # type: ignore[override]  # Celery's stubs say str
        """The zone in which hours and minutes are meant."""
        return self._zone


def beat_entries(config: Config) -> dict[str, dict[str, Any]]:
    """The schedule: sweep each minute, and each project's reconciliation at the configured time of day."""
    hour, minute = config.reconcile.at.split(":")
    nightly = ZonedCrontab(zone=ZoneInfo(config.time_zone), hour=int(hour), minute=int(minute))
    entries: dict[str, dict[str, Any]] = {
        "sweep": {
            "task": TaskName.SWEEP,
            "schedule": schedule(SWEEP_EVERY_SECONDS),
            # One that waited longer than this has a successor behind it.
            "options": {"queue": QUEUES[TaskName.SWEEP], "expires": SWEEP_EVERY_SECONDS},
        }
    }
    for project in config.projects:
        entries[f"reconcile-{project}"] = {
            "task": TaskName.RECONCILE,
            "schedule": nightly,
            "args": (project,),
            "kwargs": {"nightly": True},  # of two beats' runs the second is left out
            "options": {"queue": QUEUES[TaskName.RECONCILE]},
        }
    return entries


class ConfiguredScheduler(Scheduler):
    """Celery's in-memory scheduler with the entries of the configuration file.

    No state file: a sweep more or less does not matter, and a nightly run that was missed while beat was
    down is started by sweep (see `worker.steps.sweep`).
    """

    Entry = ScheduleEntry

    def setup_schedule(self) -> None:
        """Read the configuration. Raises ConfigError, which ends beat with a clear message."""
        self.app.conf.beat_schedule = beat_entries(load_config())
        super().setup_schedule()

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Start what is due; at least once a minute, as sweep is due that often."""
        heartbeat.beat()
        seconds: float = super().tick(*args, **kwargs)
        return seconds
