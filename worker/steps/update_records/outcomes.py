"""How an event ends, from what became of the records that hold its phone. Pure."""

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOutcome:
    """What became of one record that holds the phone of an event."""

    record: str
    decision: Decision
    plan: Plan
    saved: bool
    rejected: str  # REDCap's reason, or ""
    held_then: bool  # the record held the phone when the START came

    def is_for(self, status: Status) -> bool:
        """Whether the record was written on behalf of a change."""
        return any(each.event_id == status.event_id for each in self.plan.behalf)


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
    if not records:
        return _outcome(phone, status, records, State.NO_MATCHING_RECORD, NO_RECORD, notice_unmatched)
    judge = _stop if status.change is Change.STOP else _start
    state, reason = judge(status, records)
    saved = [each.record for each in records if each.saved and each.is_for(status)]
    if began and state in {State.ALREADY_CURRENT, State.SUPERSEDED}:
        state, reason = State.UPDATED, ""
        saved = [each.record for each in records]
    if state is State.UPDATED and not is_new and _only_moved(status, records):
        state = State.ALREADY_CURRENT
    notice = {State.FAILED: Notice.UNSAVED, State.NEEDS_REVIEW: Notice.REVIEW, State.UPDATED: Notice.SAVED}
    return _outcome(phone, status, records, state, reason, notice.get(state), saved)


def _outcome(  # noqa: PLR0913  the parts of an EventOutcome
    phone: str,
    status: Status,
    records: Sequence[RecordOutcome],
    state: State,
    reason: str,
    notice: Notice | None,
    saved: Sequence[str] = (),
) -> EventOutcome:
    return EventOutcome(
        event_id=status.event_id,
        phone_hash=phone,
        state=state,
        reason=reason,
        records=[each.record for each in records],
        notice=notice,
        written=saved,
    )


def _only_moved(status: Status, records: Sequence[RecordOutcome]) -> bool:
    """Whether the field shows another time now, because an earlier opt-out has ended. Nobody needs a mail."""
    acts = {each.plan.act for each in records if each.saved and each.is_for(status)}
    return acts == {Act.MOVE}


def _stop(status: Status, records: Sequence[RecordOutcome]) -> tuple[State, str]:
    if rejected := _reasons([(each.record, each.rejected) for each in records if each.rejected]):
        return State.FAILED, rejected
    in_place = [each for each in records if each.plan.act is Act.TEXT]
    if unseen := [each for each in in_place if not each.plan.shown_by_checkbox]:
        return State.NEEDS_REVIEW, _reasons([(each.record, TEXT_IN_FIELD) for each in unseen])
    if any(each.saved and each.is_for(status) for each in records):
        return State.UPDATED, _reasons([(each.record, TEXT_IN_FIELD) for each in in_place if each.saved])
    if all(_ended_by_staff(status, each.decision) for each in records):
        return State.SUPERSEDED, ENDED_BY_STAFF
    return State.ALREADY_CURRENT, ""


def _ended_by_staff(status: Status, decision: Decision) -> bool:
    return all(stop.event_id != status.event_id for stop in decision.stops)


def _start(status: Status, records: Sequence[RecordOutcome]) -> tuple[State, str]:
    cleared = [each for each in records if each.saved and each.is_for(status)]
    if rejected := _reasons([(each.record, each.rejected) for each in records if each.rejected]):
        return State.FAILED, rejected
    if kept := [(each.record, why) for each in records if (why := _why_kept(each))]:
        return State.NEEDS_REVIEW, _reasons([*kept, *((each.record, "cleared") for each in cleared)])
    if cleared:
        others = [(each.record, STILL_OPTED_OUT) for each in records if each.decision.opted_out]
        later = [(each.record, LATER_ENTRY) for each in records if each.plan.act is Act.KEEP_LATER]
        return State.UPDATED, _reasons([*others, *later])
    if any(each.decision.opted_out for each in records):
        return State.SUPERSEDED, STILL_OPTED_OUT
    if any(each.plan.act is Act.KEEP_LATER for each in records):
        return State.SUPERSEDED, LATER_ENTRY
    return State.ALREADY_CURRENT, ""


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


def _reasons(parts: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"record {record}: {why}" for record, why in parts)
