"""Texts that a study sent to somebody who had opted out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TypedDict

from shared.domain.events import Change
from shared.domain.precedence import Status
from shared.domain.scopes import staff_key
from worker.redcap.phone_index import PhoneIndex
from worker.steps.reconcile.recover import LedgerView
from worker.twilio.message_log import SentText

# Twilio's own confirmation of an opt-out follows at once.
CONFIRMATION_MS = 120_000


class TextsAfterOptOut(TypedDict):
    """How many texts a record's participant was sent after opting out."""

    record: str
    refused: int  # by Twilio: error 21610
    delivered: int


class BlockFault(TypedDict):
    """How many texts reached a record's participant although Twilio was asked to block the number."""

    record: str
    delivered: int


def sends_after_opt_out(
    sent: Sequence[SentText], view: LedgerView, index: PhoneIndex
) -> list[TextsAfterOptOut]:
    """Return the records, by id, whose participant was sent texts while opted out. "" are numbers of no record."""
    refused: Counter[str] = Counter()
    delivered: Counter[str] = Counter()
    for text, record, known in with_changes(sent, view, index):
        refused[record] += text.rejected and was_opted_out(known, text.sent_ms)
        delivered[record] += text.delivered and _is_unwanted(known, text.sent_ms)
    return [
        TextsAfterOptOut(record=record, refused=refused[record], delivered=delivered[record])
        for record in sorted(refused | delivered)
    ]


def with_changes(
    sent: Sequence[SentText], view: LedgerView, index: PhoneIndex
) -> Iterator[tuple[SentText, str, list[Status]]]:
    """Return each text with each record that holds its number, "" for none, and the latest changes of both."""
    phones = sorted({text.phone_hash for text in sent})
    records = index.records(phones)
    keys = {staff_key(record) for group in records.values() for record in group}
    statuses = view.statuses([*phones, *sorted(keys)])
    for text in sent:
        for record in records.get(text.phone_hash, [""]):
            yield text, record, [*statuses.get(text.phone_hash, ()), *statuses.get(staff_key(record), ())]


def was_opted_out(statuses: Iterable[Status], moment_ms: int) -> bool:
    """Return whether any of the opt-outs was in force at a moment."""
    return any(_begin(status) <= moment_ms and not _had_ended(status, moment_ms) for status in statuses)


def _is_unwanted(statuses: Sequence[Status], moment_ms: int) -> bool:
    """Whether a delivered text is more than Twilio's confirmation."""
    confirms = any(
        0 <= moment_ms - stop <= CONFIRMATION_MS
        for status in statuses
        for stop in (status.since_ms, status.stop_ms)
    )
    return was_opted_out(statuses, moment_ms) and not confirms


def _begin(status: Status) -> float:
    return status.since_ms or (status.occurred_ms if status.change is Change.STOP else float("inf"))


def _had_ended(status: Status, moment_ms: int) -> bool:
    """Whether the opt-out that the status knows of was over: its START came before that moment."""
    return status.change is Change.START and status.last_start_ms <= moment_ms
