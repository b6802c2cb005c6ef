"""What a record's opt-out fields show, and what they have to show. Pure.

Only what the program wrote itself is ever cleared: an entry of a person stays until a person ends it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from shared.domain.precedence import Decision, Status, decide
from shared.domain.scopes import STAFF, staff_key
from shared.ledger.opt_outs.written_values import WrittenValue
from worker.redcap.schema import MINUTES, read_time

# A webhook is stamped when it is received: so much later than Twilio's own time, at most.
TOLERANCE_MS = 60_000
# Entries that mean "not opted out".
NOTHING = frozenset({"", "no", "none", "n/a", "na", "0", "-"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordState:
    """A record as it is now: its phones and its opt-out fields."""

    record_id: str
    phones: frozenset[str]
    opt_out_value: str
    ticked: bool
    # Whether it is in the arm of the opt-out event. A row for another arm would create the record there.
    in_arm: bool = True

    @property
    def keys(self) -> frozenset[str]:
        """Under what the ledger knows changes of this record: its phones, and decisions by staff."""
        return self.phones | {staff_key(self.record_id)}

    def statuses(self, known: Mapping[str, Sequence[Status]]) -> list[Status]:
        """Of the known changes, by phone or staff key, those that concern this record."""
        return [status for key in sorted(self.keys) for status in known.get(key, ())]


def keys_of(states: Iterable[RecordState]) -> set[str]:
    """Under what the ledger knows changes of any of these records."""
    return {key for state in states for key in state.keys}


class Act(StrEnum):
    """What has to happen to a record's opt-out fields."""

    NONE = "none"  # they show what counts
    SET = "set"  # enter the opt-out
    MOVE = "move"  # the time that the program entered becomes that of another opt-out
    TICK = "tick"  # the time is there, and only the checkbox is missing
    TEXT = "text"  # a person's text is in the place of the time
    CLEAR = "clear"
    KEEP = "keep"  # a START does not clear a person's entry
    KEEP_LATER = "keep later"  # a person entered a time after the START


@dataclass(frozen=True, slots=True)
class Plan:
    """An act, the values to write (None: leave it), and the changes on whose behalf they are written."""

    act: Act
    value: str | None = None
    ticked: bool | None = None
    behalf: tuple[Status, ...] = ()
    hides_opt_out: bool = False  # of TEXT: there is no checkbox either that shows the opt-out

    @property
    def writes(self) -> bool:
        """Whether anything differs."""
        return self.value is not None or self.ticked is not None

    @property
    def keeps_entry(self) -> bool:
        """Whether the record shows an opt-out that a START does not clear."""
        return self.act in {Act.KEEP, Act.KEEP_LATER}

    @property
    def event_ids(self) -> set[str]:
        """The events on whose behalf the values are written."""
        return {status.event_id for status in self.behalf}


@dataclass(frozen=True, slots=True)
class PlannedRecord:
    """A record, which changes count for it, and what has to happen to it."""

    state: RecordState
    decision: Decision
    plan: Plan

    @property
    def is_to_be_written(self) -> bool:
        """Whether it differs and can be written. In another arm it cannot, which its event reports."""
        return self.state.in_arm and self.plan.writes


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldForm:
    """How a project writes its opt-out fields."""

    zone: ZoneInfo
    time_format: str
    missing_codes: Collection[str] = ()
    has_checkbox: bool = False

    def text(self, time_ms: int) -> str:
        """Return a time as the field shows it, in the project's zone."""
        moment = datetime.fromtimestamp(time_ms / 1000, tz=UTC)
        return moment.astimezone(self.zone).strftime(self.time_format)

    def change_of_tick(self, state: RecordState, *, ticked: bool) -> bool | None:
        """Return what to write into the checkbox so that it is ticked or not; None if it is already, or missing."""
        return ticked if self.has_checkbox and state.ticked is not ticked else None

    def is_empty(self, value: str) -> bool:
        """Return whether a value means that there is none: missing data codes, and words for "no"."""
        return value in self.missing_codes or value.casefold() in NOTHING

    def shows_no_opt_out(self, state: RecordState) -> bool:
        """Return whether neither the field nor the checkbox says that a record is opted out."""
        return self.is_empty(state.opt_out_value) and not state.ticked

    def shows(self, value: str, times_ms: Collection[int]) -> bool:
        """Return whether a value is one of these times, within the field's precision and the tolerance."""
        return any(abs(shown - time) <= slack for shown, slack in self._times(value) for time in times_ms)

    def is_before(self, value: str, time_ms: int) -> bool:
        """Return whether a value is a time before that time, by more than the field's precision."""
        times = self._times(value)
        return bool(times) and all(shown < time_ms - (slack - TOLERANCE_MS) for shown, slack in times)

    def is_between(self, value: str, first_ms: int, last_ms: int) -> bool:
        """Return whether a value is a time between these two."""
        return any(first_ms < shown <= last_ms for shown, _ in self._times(value))

    def is_time(self, value: str) -> bool:
        """Return whether a value is a date or time as REDCap exports them."""
        return bool(self._times(value))

    def _times(self, value: str) -> list[tuple[int, int]]:
        """The time of a value in ms, and how much it may differ; twice when the clocks go back."""
        read = read_time(value)
        if read is None:
            return _days(value, self.zone)
        local, form = read
        slack = TOLERANCE_MS + (60_000 if form == MINUTES else 1_000)
        return [(_ms(local.replace(tzinfo=self.zone, fold=fold)), slack) for fold in (0, 1)]


def _days(value: str, zone: ZoneInfo) -> list[tuple[int, int]]:
    try:
        day = date.fromisoformat(value)
        # No tolerance: the program never writes a date alone, so it is a person's.
        return [(_ms(datetime(day.year, day.month, day.day, tzinfo=zone) + timedelta(days=1)), -1)]
    except (ValueError, OverflowError):
        return []


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def plan_record(
    state: RecordState,
    known: Mapping[str, Sequence[Status]],
    *,
    form: FieldForm,
    written: WrittenValue | None,
    starts: Sequence[Status],
    now_ms: int,
) -> PlannedRecord:
    """Return a record with its plan, by the latest known changes. The rest as `plan` takes it."""
    statuses = state.statuses(known)
    decision = decide(statuses)
    made = plan(state, decision, statuses, form=form, written=written, starts=starts, now_ms=now_ms)
    return PlannedRecord(state, decision, made)


def plan(  # noqa: PLR0913  all that decides
    state: RecordState,
    decision: Decision,
    statuses: Sequence[Status],
    *,
    form: FieldForm,
    written: WrittenValue | None = None,
    starts: Sequence[Status] = (),
    now_ms: int = 0,
) -> Plan:
    """Return what has to happen to a record.

    `statuses` are the latest changes of its phones, `written` is what the program wrote last, and `starts` are those
    STARTs that are being processed: only they clear.
    """
    if decision.opted_out:
        return _plan_opt_out(state, decision.shown, statuses, form, written)
    if form.shows_no_opt_out(state):
        return Plan(Act.NONE)
    ending = tuple(start for start in starts if _may_clear(start, state, form, written))
    if ending:
        value = "" if state.opt_out_value else None
        return Plan(Act.CLEAR, value, form.change_of_tick(state, ticked=False), ending)
    return Plan(Act.KEEP_LATER if _was_entered_later(state, starts, form, now_ms) else Act.KEEP)


def _was_entered_later(state: RecordState, starts: Sequence[Status], form: FieldForm, now_ms: int) -> bool:
    """Whether an entry was made after all STARTs: it is newer than they are, if they are found late."""
    later = [form.is_between(state.opt_out_value, start.occurred_ms, now_ms) for start in starts]
    return bool(later) and all(later)


def _plan_opt_out(
    state: RecordState,
    shown: Status,
    statuses: Sequence[Status],
    form: FieldForm,
    written: WrittenValue | None,
) -> Plan:
    value, since = state.opt_out_value, shown.began_ms
    tick = form.change_of_tick(state, ticked=True)
    if form.is_empty(value):
        return Plan(Act.SET, form.text(since), tick, (shown,))
    if form.is_time(value):
        # A time from before the last START belongs to an opt-out that has ended.
        is_current = form.shows(value, [since]) and not form.is_before(value, shown.last_start_ms)
        # The START may have been handled before this opt-out was found: then its time is before that START.
        moves = not is_current and form.text(since) != value
        if moves and form.shows(value, _own_times(statuses, written)):
            return Plan(Act.MOVE, form.text(since), tick, (shown,))
        return Plan(Act.TICK, None, tick, (shown,)) if tick else Plan(Act.NONE)
    return Plan(Act.TEXT, None, tick, (shown,), hides_opt_out=not form.has_checkbox)


def _own_times(statuses: Sequence[Status], written: WrittenValue | None) -> set[int]:
    """The times that the program may have written: what it remembers, and the STOPs that it knows."""
    times = {written.time_ms} if written else set()
    return times | {time for status in statuses for time in (status.since_ms, status.stop_ms) if time}


def _may_clear(start: Status, state: RecordState, form: FieldForm, written: WrittenValue | None) -> bool:
    """Whether a START clears what a record shows: what the program wrote for a text of the same scope.

    Staff may also end what a person entered, if it is a time or a tick.
    """
    value = state.opt_out_value
    if start.scope == STAFF:
        return form.is_empty(value) or form.is_time(value)
    if form.shows(value, [time for time in (start.since_ms, start.stop_ms) if time]):
        return True
    # A tick whose time somebody has removed is a person's by now.
    return written is not None and written.scope == start.scope and form.shows(value, [written.time_ms])
