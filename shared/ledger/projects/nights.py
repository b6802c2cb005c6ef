"""The calendar of proof: how the reconciliation of each of the last 90 days ended."""

import json
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum

from shared.domain.events import from_milliseconds, milliseconds
from shared.ledger import keys
from shared.ledger.base import LedgerBase

NIGHTS_KEPT = 90
# A nightly run is a day apart from the last one, and 25 hours when the clocks go back.
RECONCILE_OVERDUE_MS = int(25.5 * 3600 * 1000)
_MOST_LINES = 5
_LONGEST_LINE = 300


class NightOutcome(StrEnum):
    """What a reconciliation has proved."""

    PROVED = "proved"  # everything was seen, and REDCap shows it
    OPEN = "open"  # everything was seen, and something is not in REDCap yet
    PARTLY_BLIND = "partly_blind"  # Twilio's log did not show everything
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What is kept of a reconciliation: counts and reasons, no record ids."""

    outcome: NightOutcome
    ended_at: datetime
    messages_read: int = 0
    changes_recovered: int = 0
    records_corrected: int = 0
    not_written: int = 0
    texts_delivered: int = 0  # to participants who had opted out
    hidden: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


class Nights(LedgerBase):
    """The days' results, by the local date of the deployment."""

    def record(self, project: str, day: date, night: Night) -> None:
        """Keep a result. A later one of the same day replaces it, but a failure does not replace a success."""
        key = keys.nights(project)
        known = self.redis.hgetall(key)
        before = _decode(known[str(day)]) if str(day) in known else None
        if before and before.outcome is not NightOutcome.FAILED and night.outcome is NightOutcome.FAILED:
            return
        oldest = str(day - timedelta(days=NIGHTS_KEPT - 1))
        expired = [each for each in known if each < oldest]
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(key, str(day), _encode(night))
            if expired:
                pipe.hdel(key, *expired)
            pipe.expire(key, NIGHTS_KEPT * 86_400)
            pipe.execute()

    def of(self, project: str) -> dict[date, Night]:
        """The results that are kept, oldest first."""
        stored = self.redis.hgetall(keys.nights(project))
        return {date.fromisoformat(day): _decode(text) for day, text in sorted(stored.items())}


def _encode(night: Night) -> str:
    values = asdict(night)
    lines = {
        name: [line[:_LONGEST_LINE] for line in values[name][:_MOST_LINES]] for name in ("hidden", "errors")
    }
    return json.dumps(values | lines | {"ended_at": milliseconds(night.ended_at)})


def _decode(text: str) -> Night:
    stored = json.loads(text)
    return Night(
        **stored
        | {
            "outcome": NightOutcome(stored["outcome"]),
            "ended_at": from_milliseconds(stored["ended_at"]),
            "hidden": tuple(stored["hidden"]),
            "errors": tuple(stored["errors"]),
        }
    )
