"""The geometry of the charts, which the templates draw as SVG. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from shared.ledger.projects.change_counts import LATENCY_BOUNDS_MS, LONGER, DayCount
from shared.ledger.projects.nights import NIGHTS_KEPT, Night

SPARK_HEIGHT, SPARK_STEP = 28, 4
WEEK_HEIGHT, WEEK_STEP = 120, 26
CELL = 18


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of a bar chart."""

    x: float
    y: float
    height: float


def sparkline(values: Sequence[int]) -> str:
    """An SVG path with a bar for each value; none for a zero."""
    highest = max([*values, 1])
    heights = [max(2, round(value / highest * SPARK_HEIGHT)) if value else 0 for value in values]
    return "".join(
        f"M{place * SPARK_STEP} {SPARK_HEIGHT}v-{height}h3v{height}z"
        for place, height in enumerate(heights)
        if height
    )


@dataclass(frozen=True, slots=True)
class Week:
    """The changes of the seven days from a Monday on, with the bars of both kinds."""

    begins: date
    opt_outs: int
    opt_ins: int
    x: int
    bars: tuple[Bar, Bar]
    labelled: bool


@dataclass(frozen=True, slots=True)
class WeekChart:
    """The weeks, and the value at the top."""

    weeks: list[Week]
    highest: int

    @property
    def width(self) -> int:
        """Of all weeks."""
        return len(self.weeks) * WEEK_STEP


def week_chart(days: Sequence[DayCount]) -> WeekChart:
    """The days by week; the first week is left out if it is not complete."""
    sums: dict[date, list[int]] = {}
    for each in days:
        week = sums.setdefault(each.day - timedelta(days=each.day.weekday()), [0, 0])
        week[0] += each.opt_outs
        week[1] += each.opt_ins
    if days and days[0].day.weekday():
        sums.pop(min(sums))
    highest = max([1, *(number for week in sums.values() for number in week)])
    return WeekChart([_week(place, *each, highest) for place, each in enumerate(sums.items())], highest)


def _week(place: int, begins: date, numbers: Sequence[int], highest: int) -> Week:
    x = place * WEEK_STEP
    outs, ins = (round(number / highest * WEEK_HEIGHT, 1) for number in numbers)
    bars = (Bar(x + 3, WEEK_HEIGHT - outs, outs), Bar(x + 13, WEEK_HEIGHT - ins, ins))
    return Week(begins, numbers[0], numbers[1], x, bars, labelled=place % 4 == 0)


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """How many changes took so long."""

    label: str
    number: int
    percent: float


_LABELS = dict(
    zip(
        [*map(str, LATENCY_BOUNDS_MS), LONGER],
        ["1 s", "2 s", "5 s", "10 s", "30 s", "1 min", "5 min", "1 h", "1 day", "longer"],
        strict=True,
    )
)


def latency_rows(counts: Mapping[str, int]) -> list[LatencyRow]:
    """A row for each bound, with its share of all."""
    total = sum(counts.values()) or 1
    return [
        LatencyRow(_LABELS[bound], number, round(100 * number / total, 1)) for bound, number in counts.items()
    ]


def half_within(counts: Mapping[str, int]) -> str:
    """The bound within which half of the changes were in REDCap; "" without any."""
    passed, total = 0, sum(counts.values())
    for bound, number in counts.items():
        passed += number
        if total and 2 * passed >= total:
            return _LABELS[bound]
    return ""


MISSED, NOT_YET = "missed", "not_yet"


@dataclass(frozen=True, slots=True)
class CalendarDay:
    """A day of the calendar. `outcome` is that of its reconciliation, `missed`, or `not_yet` before the first."""

    day: date
    outcome: str
    night: Night | None
    x: int
    y: int


def calendar(nights: Mapping[date, Night], today: date) -> list[CalendarDay]:
    """The last 90 days: a column for each week, Mondays at the top."""
    first = today - timedelta(days=NIGHTS_KEPT - 1)
    begin = first - timedelta(days=first.weekday())
    begun = min(nights, default=today)
    days = (first + timedelta(days=number) for number in range(NIGHTS_KEPT))
    return [
        CalendarDay(
            day,
            _outcome(day, nights.get(day), begun, today),
            nights.get(day),
            (day - begin).days // 7 * CELL,
            day.weekday() * CELL,
        )
        for day in days
    ]


def _outcome(day: date, night: Night | None, begun: date, today: date) -> str:
    if night is not None:
        return night.outcome.value
    return NOT_YET if day < begun or day == today else MISSED
