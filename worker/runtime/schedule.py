"""Celery beat's schedule."""

from datetime import tzinfo
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import crontab, schedule

from shared.config import Config, redis_url
from shared.config.live import CHECK_EVERY_SECONDS, LiveConfiguration
from shared.ledger.platform.kept_configuration import last_valid
from shared.ledger.platform.loaded_configurations import follow
from shared.messaging.tasks import QUEUES, TaskName
from shared.redis_client import connect
from shared.retry_policy import SWEEP_EVERY_SECONDS
from worker.runtime.watchdog import touch_heartbeat


class ZonedCrontab(crontab):
    """A crontab with its own time zone, independent of the application's.

    Daylight saving time: Celery 5.7 runs an entry whose time is skipped right after the gap, and one whose time
    occurs twice only once; tests verify that.
    """

    def __init__(self, *, zone: ZoneInfo, **fields: Any) -> None:
        super().__init__(**fields)
        self._zone = zone

    @property
    def tz(self) -> tzinfo:  # type: ignore[override]  # Celery's stubs say str
        """The time zone of hours and minutes."""
        return self._zone


def beat_entries(config: Config) -> dict[str, dict[str, Any]]:
    """The schedule: sweep each minute, and each project's reconciliation at the configured time of day."""
    hour, minute = config.reconcile.at.split(":")
    nightly = ZonedCrontab(zone=ZoneInfo(config.time_zone), hour=int(hour), minute=int(minute))
    entries: dict[str, dict[str, Any]] = {
        "sweep": {
            "task": TaskName.SWEEP,
            "schedule": schedule(SWEEP_EVERY_SECONDS),
            # After this long the next sweep is already in the queue.
            "options": {"queue": QUEUES[TaskName.SWEEP], "expires": SWEEP_EVERY_SECONDS},
        }
    }
    for project in config.projects:
        entries[f"reconcile-{project}"] = {
            "task": TaskName.RECONCILE,
            "schedule": nightly,
            "args": (project,),
            "kwargs": {"nightly": True},  # a second run on the same night is skipped
            "options": {"queue": QUEUES[TaskName.RECONCILE]},
        }
    return entries


class ConfiguredScheduler(Scheduler):
    """Celery's in-memory scheduler with the entries of the configuration file.

    No state file is needed: an additional or missing sweep is harmless, and `worker.steps.sweep` starts a
    reconciliation that was missed while beat was down.
    """

    StoredEvent = ScheduleEntry
    # Also how soon a change of the configuration counts.
    max_interval = int(CHECK_EVERY_SECONDS)
    live: LiveConfiguration[Config] | None = None
    _config: Config | None = None

    def setup_schedule(self) -> None:
        """Read the configuration. Raises ConfigError, which ends beat with a clear message."""
        redis = connect(redis_url())
        # Beat has no hash key. It only takes names and times from the configuration.
        kept = partial(last_valid, redis, signed=False)
        self.live = live = LiveConfiguration[Config](
            lambda config, _: config, last_valid=kept, settle_seconds=3.0
        )
        follow(redis, "beat", live)
        self._config = live.config
        self.app.conf.beat_schedule = beat_entries(self._config)
        super().setup_schedule()

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Start due entries; called every five seconds at least."""
        touch_heartbeat()
        if self.live and self._config is not self.live.config:
            self._config = self.live.config
            self.merge_inplace(beat_entries(self._config))  # type: ignore[arg-type]  # its stubs say entries
            self._heap = None  # has the next times computed again
        seconds: float = super().tick(*args, **kwargs)
        return seconds
