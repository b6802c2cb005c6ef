"""How many changes were written to REDCap by day, and how long they took. The script `complete` counts them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo

from shared.domain.events import Change
from shared.ledger import keys
from shared.ledger.base import LedgerBase

DAYS_COUNTED = 182
WEEKS_COUNTED = 13
# From the text to REDCap; longer ones are counted as "more".
LATENCY_BOUNDS_MS = (1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 3_600_000, 86_400_000)
LONGER = "more"

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class DayCount:
    """The changes of one day that were written to REDCap."""

    day: date
    opt_outs: int
    opt_ins: int


class ChangeCounts(LedgerBase):
    """Reads the counts; days are local to each study."""

    def of_days(self, project: str, last: date, number: int = DAYS_COUNTED) -> list[DayCount]:
        """The counts of a study up to and including a day, oldest first."""
        [counts] = self.of_projects({project: last}, number).values()
        return counts

    def of_projects(self, last_days: Mapping[str, date], number: int) -> dict[str, list[DayCount]]:
        """The counts of several studies, each up to and including its own day."""
        with self.redis.pipeline(transaction=False) as pipe:
            for project, last in last_days.items():
                pipe.hmget(keys.change_counts(project), _fields(last, number))
            stored = pipe.execute()
        return {
            project: _decode(values, last)
            for (project, last), values in zip(last_days.items(), stored, strict=True)
        }

    def latencies(self, project: str) -> dict[str, int]:
        """How many changes took at most so many milliseconds, and more than the one before, or "more"."""
        counts = dict.fromkeys([*map(str, LATENCY_BOUNDS_MS), LONGER], 0)
        for field, number in self.redis.hgetall(keys.latencies(project)).items():
            counts[field.partition("|")[2]] += int(number)
        return counts


def local_offset_ms(moment: datetime, zone: tzinfo) -> int:
    """How far a zone's clocks are ahead of UTC."""
    offset = moment.astimezone(zone).utcoffset() or timedelta()
    return round(offset.total_seconds() * 1000)


def _fields(last: date, number: int) -> list[str]:
    newest = (last - _EPOCH).days
    days = range(newest - number + 1, newest + 1)
    return [f"{day}|{change}" for day in days for change in (Change.STOP, Change.START)]


def _decode(values: Sequence[str | None], last: date) -> list[DayCount]:
    numbers = [int(value or 0) for value in values]
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    first = last - timedelta(days=len(pairs) - 1)
    return [DayCount(first + timedelta(days=place), *pair) for place, pair in enumerate(pairs)]
