"""The record of what happened, in Redis. Each step is one Lua script, so that no crash can tear it.

The scripts use keys that they derive from their arguments, so Redis must not be a cluster.
"""

from shared.ledger import keys
from shared.ledger.base import CHUNK
from shared.ledger.events.event_progress import EventProgress
from shared.ledger.events.event_recorder import EventRecorder
from shared.ledger.events.models import Accepted, EventOutcome, StaffDecision, StoredEvent
from shared.ledger.opt_outs.write_intents import WriteIntents
from shared.ledger.retention import Retention
from shared.ledger.work.due_work import DueWork, DueWorkSchedule, Kind

__all__ = [
    "CHUNK",
    "Accepted",
    "DueWork",
    "EventOutcome",
    "Kind",
    "Ledger",
    "StaffDecision",
    "StoredEvent",
    "keys",
]


class Ledger(EventRecorder, EventProgress, WriteIntents, DueWorkSchedule, Retention):
    """Events, latest status per phone, pending set and due work of all projects."""

    def count(self, *label: str, by: int = 1) -> None:
        """Add to a figure of `/metrics`; its name and label values are `label`."""
        self.redis.hincrby(keys.METRICS, "|".join(label), by)
