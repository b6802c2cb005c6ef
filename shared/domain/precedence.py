"""Which change counts: of one phone in one scope, and of a record with all its phones. Pure.

`shared/ledger/scripts/accept.lua` applies the same rules inside Redis; a property test compares the two.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from shared.domain.events import Change, from_milliseconds
from shared.domain.scopes import STAFF, UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The latest change of one phone in one scope. Times are milliseconds since 1970; 0 is unknown."""

    scope: str = UNKNOWN
    change: Change
    occurred_ms: int
    event_id: str
    last_start_ms: int = 0  # of the latest known START, which may be older than the STOP in force
    since_ms: int = 0  # the first STOP of the opt-out that is in force, or that the latest START ended
    stop_ms: int = 0  # its last STOP
    exact: bool = False  # occurred_ms is known to the millisecond

    @property
    def occurred_at(self) -> datetime:
        """Time of the change, UTC."""
        return from_milliseconds(self.occurred_ms)

    @property
    def began_ms(self) -> int:
        """When the opt-out began: its first STOP, as far as it is known."""
        return self.since_ms or self.occurred_ms

    def encode(self) -> str:
        """Return the line that the ledger stores."""
        times = f"{self.last_start_ms}|{self.since_ms}|{self.stop_ms}"
        return f"{self.scope}|{self.change}|{self.occurred_ms}|{self.event_id}|{times}|{int(self.exact)}"


# Of a phone without a status: allowed, and all times unknown.
_NOTHING_KNOWN = Status(change=Change.START, occurred_ms=0, event_id="")


def decode_statuses(text: str) -> tuple[Status, ...]:
    """Read what the ledger stores for one phone: a line per scope, or the single status of version 1."""
    return tuple(map(_decode_line, text.split("\n")))


def _decode_line(line: str) -> Status:
    parts = line.split("|")
    if len(parts) == 4:  # version 1: change, time, event id, last START
        parts = version_1_line(parts).split("|")
    scope, change, occurred, event_id, start, since, stop, exact = parts
    return Status(
        scope=scope,
        change=Change(change),
        occurred_ms=int(occurred),
        event_id=event_id,
        last_start_ms=int(start),
        since_ms=int(since),
        stop_ms=int(stop),
        exact=exact == "1",
    )


def version_1_line(parts: Sequence[str]) -> str:
    """Return a status of version 1 as a line of an unknown scope."""
    change, occurred, event_id, start = parts
    stop = occurred if change == Change.STOP else "0"
    return "|".join((UNKNOWN, change, occurred, event_id, start, stop, stop, "0"))


def start_ends_stop(start_ms: int, start_exact: bool, stop_ms: int, stop_exact: bool) -> bool:
    """Return whether a START comes after a STOP. Within a second only exact times decide; a tie goes to the STOP."""
    if start_exact and stop_exact:
        return start_ms > stop_ms
    return start_ms // 1000 > stop_ms // 1000


def comes_after(new: Status, old: Status, *, newest_first: bool = False) -> bool:
    """Return whether a change replaces the known one of its phone and scope."""
    if new.change is Change.START and old.change is Change.STOP:
        return start_ends_stop(new.occurred_ms, new.exact, old.occurred_ms, old.exact)
    if new.change is Change.STOP and old.change is Change.START:
        return not start_ends_stop(old.occurred_ms, old.exact, new.occurred_ms, new.exact)
    return new.occurred_ms > old.occurred_ms or (new.occurred_ms == old.occurred_ms and not newest_first)


def replaced(new: Status, old: Status | None) -> Status:
    """Return the status after a change that comes after the known one."""
    before = old or _NOTHING_KNOWN
    if new.change is Change.START:
        start = max(new.occurred_ms, before.last_start_ms)
        return replace(new, last_start_ms=start, since_ms=before.since_ms, stop_ms=before.stop_ms)
    start = min(before.last_start_ms, new.occurred_ms)
    in_force = before.change is Change.STOP and before.since_ms > 0
    since = min(before.since_ms, new.occurred_ms) if in_force else new.occurred_ms
    return replace(new, last_start_ms=start, since_ms=since, stop_ms=new.occurred_ms)


def with_older(old: Status, late: Status) -> Status:
    """Return the status after a change that is older than the known one: its opt-out may have begun earlier."""
    if late.change is Change.START:
        return _with_missed_start(old, late.occurred_ms)
    began_after_start = late.occurred_ms > old.last_start_ms
    if old.change is Change.STOP:
        earlier = began_after_start and late.occurred_ms < old.since_ms
        return replace(old, since_ms=late.occurred_ms) if earlier else old
    since, stop = old.since_ms or late.occurred_ms, max(old.stop_ms, late.occurred_ms)
    return replace(old, since_ms=since, stop_ms=stop)


def _with_missed_start(old: Status, start_ms: int) -> Status:
    """A START that was missed between two STOPs ends the first one, whose time REDCap may still show."""
    if old.change is Change.START or start_ms <= old.last_start_ms:
        return old
    since = old.since_ms if old.since_ms > start_ms else old.occurred_ms
    return replace(old, last_start_ms=start_ms, since_ms=since)


@dataclass(frozen=True, slots=True)
class Decision:
    """What counts for a record: the opt-outs in force, earliest first. None: the record is not opted out."""

    stops: tuple[Status, ...]
    staff_start: Status | None = None  # the staff decision that allowed contact again

    @property
    def opted_out(self) -> bool:
        """Whether any phone is opted out in any scope, or staff recorded an opt-out."""
        return bool(self.stops)

    @property
    def shown(self) -> Status:
        """The opt-out whose time the field shows. Raises IndexError if there is none."""
        return self.stops[0]


def decide(statuses: Iterable[Status]) -> Decision:
    """Return what counts for a record, of the latest changes of all its phones, in every scope, and by staff.

    A record is opted out while any of its phones is, in any scope: one number cannot end the opt-out of another. Only
    a later decision by staff ends all.
    """
    known = list(statuses)
    staff_start = next((each for each in known if each.scope == STAFF and each.change is Change.START), None)
    stops = [_since_staff_start(each, staff_start) for each in known if each.change is Change.STOP]
    in_force = sorted(filter(None, stops), key=lambda stop: (stop.began_ms, stop.event_id))
    return Decision(tuple(in_force), staff_start)


def _since_staff_start(stop: Status, staff_start: Status | None) -> Status | None:
    if staff_start is None:
        return stop
    if start_ends_stop(staff_start.occurred_ms, staff_start.exact, stop.occurred_ms, stop.exact):
        return None
    return stop if stop.since_ms > staff_start.occurred_ms else replace(stop, since_ms=stop.occurred_ms)
