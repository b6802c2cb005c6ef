"""From Twilio's message log into the ledger: what is missing is recorded by the same code path as a webhook.

A dry run does the same with a `DryRunLedger`, which only calculates what would change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shared.batches import batches
from shared.domain.events import UNFINISHED, Change, OptOutEvent, Source, State, milliseconds
from shared.domain.precedence import Status, comes_after, decode_statuses, replaced, with_older
from shared.ledger import Accepted, StoredEvent
from worker.services import Services
from worker.steps.start_times import is_time_unconfirmed

# Twilio gives up a webhook after 15 s (Twilio docs, "Webhook connection overrides"); the rest is for clocks.
MAX_WEBHOOK_DELAY_MS = 24 * 3600 * 1000

_BATCH = 500
# What shows these has no better time.
_NEVER_CORRECTED = {Source.BLOCKED_MESSAGE, Source.STAFF}


class LedgerView:
    """The ledger as a reconciliation sees and changes it."""

    def __init__(self, project: str, services: Services) -> None:
        self._project = project
        self._services = services
        self._ledger = services.ledger

    def known(self, event_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose events the ledger has."""
        return self._ledger.known(self._project, event_ids)

    def statuses(self, phones: Sequence[str]) -> dict[str, tuple[Status, ...]]:
        """The latest changes of each phone hash (or staff key) that has any."""
        stored = self._ledger.statuses(self._project, phones)
        return {phone: decode_statuses(text) for phone, text in stored.items()}

    def in_progress(self, event_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose events have not ended."""
        return self._ledger.unfinished(self._project, event_ids)

    def accept(self, events: Sequence[OptOutEvent]) -> list[Accepted]:
        """Record events. Not published one by one: the run finds their records by the export it makes anyway."""
        if not events:
            return []
        return self._ledger.accept(events, now=self._services.now())


class DryRunLedger(LedgerView):
    """The ledger as it would be: by the rules of `shared.domain.precedence`, without a change to Redis."""

    def __init__(self, project: str, services: Services) -> None:
        super().__init__(project, services)
        self._imagined: dict[str, dict[str, Status]] = {}  # phone -> scope -> status
        self._new: set[str] = set()

    def statuses(self, phones: Sequence[str]) -> dict[str, tuple[Status, ...]]:
        stored = super().statuses(phones)
        imagined = {
            phone: tuple(self._imagined[phone].values()) for phone in phones if phone in self._imagined
        }
        return stored | imagined

    def in_progress(self, event_ids: Sequence[str]) -> set[str]:
        return super().in_progress(event_ids) | self._new.intersection(event_ids)

    def accept(self, events: Sequence[OptOutEvent]) -> list[Accepted]:
        known = self.known([event.event_id for event in events]) if events else set()
        stored = super().statuses(sorted({event.phone_hash for event in events}))
        return [self._imagine(event, event.event_id in known, stored) for event in events]

    def unseen(self) -> int:
        """How many phones would get their first status."""
        return len(self._imagined.keys() - super().statuses(list(self._imagined)).keys())

    def _imagine(self, event: OptOutEvent, known: bool, stored: Mapping[str, tuple[Status, ...]]) -> Accepted:
        if event.change is Change.UNCLEAR or not event.phone_hash:
            return Accepted.KNOWN if known else self._count(event)
        lines = self._imagined.setdefault(
            event.phone_hash, {status.scope: status for status in stored.get(event.phone_hash, ())}
        )
        return self._imagine_known(event, lines) if known else self._imagine_new(event, lines)

    def _imagine_new(self, event: OptOutEvent, lines: dict[str, Status]) -> Accepted:
        new, old = _status(event), lines.get(event.scope)
        if old and not comes_after(new, old, newest_first=True):
            lines[event.scope] = with_older(old, new)
            return Accepted.STALE
        lines[event.scope] = replaced(new, old)
        return self._count(event)

    def _imagine_known(self, event: OptOutEvent, lines: dict[str, Status]) -> Accepted:
        """A known event with the log's time, as `corrected()` of the script does it."""
        entry = self._ledger.load(self._project, event.event_id)
        if entry is None or entry.source in _NEVER_CORRECTED:
            return Accepted.KNOWN
        new, old = _status(_with_better_time(event, entry)), lines.get(entry.scope)
        if old and old.event_id == event.event_id:
            lines[entry.scope] = _with_time_of_log(old, new, entry.source)
        elif _may_still_count(event, entry) and (old is None or comes_after(new, old, newest_first=True)):
            lines[entry.scope] = replaced(new, old)
            return self._count(event)
        return Accepted.KNOWN

    def _count(self, event: OptOutEvent) -> Accepted:
        self._new.add(event.event_id)
        return Accepted.NEW


def _with_better_time(event: OptOutEvent, entry: StoredEvent) -> OptOutEvent:
    """An event of the log; with the time of Event Streams, if they have shown it."""
    if entry.source is not Source.EVENT_STREAM:
        return event
    return replace(event, occurred_at=entry.occurred_at, source=entry.source)


def _may_still_count(event: OptOutEvent, entry: StoredEvent) -> bool:
    """Whether a known event may become the latest change: a START that was handled never counts again."""
    if event.change is not Change.START or entry.state is State.SUPERSEDED:
        return True
    return is_time_unconfirmed(entry) and entry.state in UNFINISHED


def _with_time_of_log(known: Status, by_log: Status, source: Source) -> Status:
    """The status of an event with the log's time: only that of a webhook's STOP is corrected."""
    if source is not Source.WEBHOOK or by_log.change is not Change.STOP:
        return known
    time_ms = by_log.occurred_ms
    since = time_ms if known.since_ms == known.occurred_ms else known.since_ms
    return replace(known, occurred_ms=time_ms, since_ms=since, stop_ms=time_ms)


def _status(event: OptOutEvent) -> Status:
    return Status(
        scope=event.scope,
        change=event.change,
        occurred_ms=milliseconds(event.occurred_at),
        event_id=event.event_id,
        exact=event.is_exact,
    )


def recover(events: Sequence[OptOutEvent], view: LedgerView) -> int:
    """Record a page of the log, newest first. Returns how many changes the ledger had missed.

    First what it has, as the log corrects times of receipt (see `shared/ledger/scripts/accept.lua`); then the others
    newest first, so that what was overtaken is never written nor notified.
    """
    known = view.known([event.event_id for event in events])
    here = [event for event in events if event.event_id in known]
    view.accept(_to_be_corrected(here, view))
    missing = [event for event in events if event.event_id not in known]
    return view.accept(_wrongly_superseded(here, view) + missing).count(Accepted.NEW)


def _to_be_corrected(known: Sequence[OptOutEvent], view: LedgerView) -> list[OptOutEvent]:
    """Those of the events that the ledger has, of which the log knows better."""
    waiting = view.in_progress([event.event_id for event in known if event.change is Change.START])
    return [event for event, status in _with_latest(known, view) if _needs_correction(event, status, waiting)]


def _needs_correction(event: OptOutEvent, status: Status | None, waiting: set[str]) -> bool:
    """Whether the log knows better: the time of a webhook, of a START that waits for it, or what a word means."""
    if status is None or event.event_id in waiting:
        return True
    return status.event_id == event.event_id and status.occurred_ms != milliseconds(event.occurred_at)


def superseded_candidates(events: Sequence[OptOutEvent], view: LedgerView) -> list[OptOutEvent]:
    """Of a page, what a time that is corrected on a later page could still make its phone's latest change.

    Only a webhook's time of receipt is ever corrected, and by seconds; so few events are kept, not the log.
    """
    return [
        event
        for event, status in _superseded(events, view)
        if 0 <= status.occurred_ms - milliseconds(event.occurred_at) <= MAX_WEBHOOK_DELAY_MS
    ]


def restore_order(events: Sequence[OptOutEvent], view: LedgerView) -> int:
    """Check the whole run's overtaken events once more. Returns how many are the latest change after all.

    Pages and senders are read one after the other, so that a time is sometimes corrected too late for them.
    """
    newest_first = sorted(events, key=lambda event: event.occurred_at, reverse=True)
    restored = 0
    for page in batches(newest_first, _BATCH):
        restored += view.accept(_wrongly_superseded(page, view)).count(Accepted.NEW)
    return restored


def _with_latest(events: Sequence[OptOutEvent], view: LedgerView) -> list[tuple[OptOutEvent, Status | None]]:
    """Events with the latest change of their phone and scope."""
    clear = [event for event in events if event.change is not Change.UNCLEAR and event.phone_hash]
    statuses = view.statuses(sorted({event.phone_hash for event in clear}))
    return [(event, _of_scope(statuses.get(event.phone_hash, ()), event.scope)) for event in clear]


def _of_scope(statuses: Sequence[Status], scope: str) -> Status | None:
    return next((status for status in statuses if status.scope == scope), None)


def _superseded(events: Sequence[OptOutEvent], view: LedgerView) -> list[tuple[OptOutEvent, Status]]:
    """Events with the other change that is the latest one of their phone and scope."""
    latest = _with_latest(events, view)
    return [(event, status) for event, status in latest if status and status.event_id != event.event_id]


def _wrongly_superseded(events: Sequence[OptOutEvent], view: LedgerView) -> list[OptOutEvent]:
    """Those of the events that come after the change that the ledger has as the latest one."""
    superseded = _superseded(events, view)
    return [event for event, other in superseded if comes_after(_status(event), other, newest_first=True)]


def recover_blocked(events: Sequence[OptOutEvent], view: LedgerView) -> int:
    """Record rejected texts, newest first: of each person's, the first one that shows something new.

    Every rejected text shows the same, so only one becomes an event; and one from before a START shows nothing.
    """
    first: dict[tuple[str, str], OptOutEvent] = {}
    for event, status in reversed(_with_latest(events, view)):
        if _shows_something(event, status):
            first.setdefault((event.phone_hash, event.scope), event)
    return view.accept(list(first.values())).count(Accepted.NEW)


def _shows_something(event: OptOutEvent, status: Status | None) -> bool:
    if status is None:
        return True
    return status.change is not event.change and milliseconds(event.occurred_at) > status.occurred_ms
