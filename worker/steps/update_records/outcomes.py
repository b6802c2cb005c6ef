"""How an event ends, from what became of the records that hold its phone. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.domain.events import Change, Notice, State
from shared.domain.precedence import Decision, Status
from shared.domain.scopes import STAFF, UNKNOWN
from shared.ledger import EventOutcome
from worker.redcap.opt_out_fields import Act, Plan

NO_RECORD = "no record holds this number"
TEXT_IN_FIELD = "the opt-out field holds text of a person, which stays"
PERSONS_ENTRY = "the opt-out fields hold an entry of a person, which only a person ends"
NOT_HELD = "the record may not have held this number when the START came"
STAFF_OPT_OUT = "staff recorded an opt-out, which only `optout record` ends"
UNKNOWN_SENDER = "an opt-out of an earlier version is in force, whose sender is not known"
STILL_OPTED_OUT = "still opted out: of another number or sender"
LATER_ENTRY = "the opt-out field holds a later time, which a person entered"
ENDED_BY_STAFF = "a later decision by staff counts"


Verdict = tuple[State, Sequence[str]]  # with its reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOutcome:
    """What became of one record that holds the phone of an event."""

    record: str
    decision: Decision
    plan: Plan
    saved: bool
    rejected: str  # REDCap's reason, or ""
    held_then: bool  # the record held the phone when the START came

    def is_saved_for(self, status: Status) -> bool:
        """Whether the record was written on behalf of a change."""
        return self.saved and status.event_id in self.plan.event_ids

    def is_opted_out_by(self, status: Status) -> bool:
        """Whether a change is among the opt-outs that are in force for the record."""
        return any(stop.event_id == status.event_id for stop in self.decision.stops)


def outcome_of(
    phone: str,
    status: Status,
    records: Sequence[RecordOutcome],
    *,
    notice_unmatched: Notice | None,
    began: bool,
    is_new: bool,
) -> EventOutcome:
    """Return how a change ends.

    `began`: its write had begun before a crash; `is_new`: its event has not ended yet.
    """
    saved: Sequence[RecordOutcome] = [each for each in records if each.is_saved_for(status)]
    state, reasons = _verdict(status, records, saved)
    if state is State.UPDATED and _only_moved(saved, is_new):
        state = State.ALREADY_CURRENT
    elif began and state in {State.ALREADY_CURRENT, State.SUPERSEDED}:
        state, reasons, saved = State.UPDATED, (), records
    notices = {
        State.NO_MATCHING_RECORD: notice_unmatched,
        State.FAILED: Notice.UNSAVED,
        State.NEEDS_REVIEW: Notice.REVIEW,
        State.UPDATED: Notice.SAVED,
    }
    return EventOutcome(
        event_id=status.event_id,
        phone_hash=phone,
        state=state,
        reason="; ".join(reasons),
        records=_ids(records),
        notice=notices.get(state),
        written=_ids(saved),
    )


def _only_moved(saved: Sequence[RecordOutcome], is_new: bool) -> bool:
    """Whether the field shows another time now, because an earlier opt-out has ended. Nobody needs a mail."""
    return not is_new and {each.plan.act for each in saved} == {Act.MOVE}


def _ids(records: Sequence[RecordOutcome]) -> list[str]:
    return [each.record for each in records]


def _verdict(status: Status, records: Sequence[RecordOutcome], saved: Sequence[RecordOutcome]) -> Verdict:
    if not records:
        return State.NO_MATCHING_RECORD, [NO_RECORD]
    if rejected := _reasons(records, lambda each: each.rejected):
        return State.FAILED, rejected
    return _stop(status, records, saved) if status.change is Change.STOP else _start(records, saved)


def _stop(status: Status, records: Sequence[RecordOutcome], saved: Sequence[RecordOutcome]) -> Verdict:
    if hidden := _reasons(records, lambda each: TEXT_IN_FIELD if each.plan.hides_opt_out else ""):
        return State.NEEDS_REVIEW, hidden
    if saved:
        return State.UPDATED, _reasons(
            records, lambda each: TEXT_IN_FIELD if each.saved and each.plan.act is Act.TEXT else ""
        )
    if any(each.is_opted_out_by(status) for each in records):
        return State.ALREADY_CURRENT, ()
    return State.SUPERSEDED, [ENDED_BY_STAFF]


def _start(records: Sequence[RecordOutcome], cleared: Sequence[RecordOutcome]) -> Verdict:
    if kept := _reasons(records, _why_kept):
        return State.NEEDS_REVIEW, [*kept, *_reasons(cleared, lambda _: "cleared")]
    others = _reasons(records, lambda each: STILL_OPTED_OUT if each.decision.opted_out else "")
    later = _reasons(records, lambda each: LATER_ENTRY if each.plan.act is Act.KEEP_LATER else "")
    if cleared:
        return State.UPDATED, [*others, *later]
    if others:
        return State.SUPERSEDED, [STILL_OPTED_OUT]
    return (State.SUPERSEDED, [LATER_ENTRY]) if later else (State.ALREADY_CURRENT, ())


def _why_kept(outcome: RecordOutcome) -> str:
    """Return why a START does not clear a record, if a person has to decide; "" otherwise."""
    scopes = {stop.scope for stop in outcome.decision.stops}
    if STAFF in scopes:
        return STAFF_OPT_OUT
    if UNKNOWN in scopes:
        return UNKNOWN_SENDER
    if outcome.plan.act is Act.KEEP:
        return PERSONS_ENTRY if outcome.held_then else NOT_HELD
    return ""


def _reasons(records: Sequence[RecordOutcome], why: Callable[[RecordOutcome], str]) -> list[str]:
    """The records that there is a reason for, each with it."""
    return [f"record {each.record}: {reason}" for each in records if (reason := why(each))]
