"""Calendar months, as summaries are about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A calendar month, written as 2026-10."""

    year: int
    number: int

    @classmethod
    def of(cls, day: date) -> Month:
        """The month of a day."""
        return cls(day.year, day.month)

    @classmethod
    def parse(cls, text: str) -> Month:
        """Read "2026-10". Raises ValueError."""
        if not re.fullmatch(r"\d{4}-\d{2}", text):
            raise ValueError("write a month as 2026-10")
        return cls.of(date.fromisoformat(f"{text}-01"))

    def __str__(self) -> str:
        return f"{self.year:04}-{self.number:02}"

    @property
    def name(self) -> str:
        """The month for people: "October 2026"."""
        return f"{self.days[0]:%B %Y}"

    @property
    def following(self) -> Month:
        """The next month."""
        return Month.of(date(self.year, self.number, 1) + timedelta(days=31))

    @property
    def previous(self) -> Month:
        """The month before."""
        return Month.of(date(self.year, self.number, 1) - timedelta(days=1))

    @property
    def days(self) -> list[date]:
        """All days of the month."""
        first, end = date(self.year, self.number, 1), date(self.following.year, self.following.number, 1)
        return [first + timedelta(days=place) for place in range((end - first).days)]

    def begin(self, zone: ZoneInfo) -> datetime:
        """The first moment of the month in a time zone."""
        return datetime.combine(self.days[0], time(), zone)
