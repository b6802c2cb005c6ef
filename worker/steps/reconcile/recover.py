"""From Twilio's message log into the ledger: what is missing goes through the one doorway.

A dry run does the same with a `DryDoorway`, which imagines the ledger's answers and changes nothing.
"""

from collections.abc import Sequence
from dataclasses import replace

from shared.domain.events import Change, OptOutEvent, Source, Status, milliseconds
from shared.ledger import Accepted
from shared.messaging.celery_config import TaskName
from shared.messaging.record_events import accept
from worker.services import Services

# Twilio gives up a webhook after 15 s (Twilio docs, "Webhook connection overrides"); the rest is for clocks.
MOST_LATE_MS = 24 * 3600 * 1000

_CHUNK = 500


class Doorway:
    """The ledger as a run sees and changes it."""

    def __init__(self, project: str, services: Services) -> None:
        self._project = project
        self._services = services
        self._ledger = services.ledger

    def known(self, event_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose events the ledger has."""
        return self._ledger.known(self._project, event_ids)

    def statuses(self, phones: Sequence[str]) -> dict[str, Status]:
        """The latest change of each phone hash that has one."""
        stored = self._ledger.statuses(self._project, phones)
        return {phone: Status.decode(text) for phone, text in stored.items()}

    def on_their_way(self, event_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose change has yet to be written."""
        return self._ledger.unfinished(self._project, event_ids)

    def without_ordinary(self, events: Sequence[OptOutEvent]) -> list[OptOutEvent]:
        """Without the opt-ins that are none: their webhook came, and Twilio did not call them so.

        The log does not say what Twilio made of a text, and words alone would take a survey's "yes" for an opt-in
        where YES was taken out of Advanced Opt-Out. An opt-out by its word counts in any case: to believe one too
        many contacts nobody.
        """
        opt_ins = [event.event_id for event in events if event.change is Change.START]
        ordinary = self._ledger.ordinary(self._project, opt_ins)
        return [event for event in events if event.event_id not in ordinary]

    def accept(self, events: Sequence[OptOutEvent]) -> list[Accepted]:
        """Hand events in. Not published one by one: the run finds their records by the export it makes anyway."""
        if not events:
            return []
        return accept(events, ledger=self._ledger, publish=_publish_nothing, now=self._services.now())


def _publish_nothing(task: TaskName, *args: str, delay_seconds: float = 0) -> None:
    """A publisher that leaves the work to the run itself (and, should it die, to sweep)."""
    del task, args, delay_seconds


class DryDoorway(Doorway):
    """A doorway that only imagines what `shared/ledger/scripts/accept.lua` would do."""

    def __init__(self, project: str, services: Services) -> None:
        super().__init__(project, services)
        self._imagined: dict[str, Status] = {}
        self._new: set[str] = set()

    def statuses(self, phones: Sequence[str]) -> dict[str, Status]:
        stored = super().statuses(phones)
        return stored | {phone: self._imagined[phone] for phone in phones if phone in self._imagined}

    def on_their_way(self, event_ids: Sequence[str]) -> set[str]:
        return super().on_their_way(event_ids) | self._new.intersection(event_ids)

    def accept(self, events: Sequence[OptOutEvent]) -> list[Accepted]:
        if not events:
            return []
        known = self.known([event.event_id for event in events])
        stored = super().statuses(sorted({event.phone_hash for event in events}))
        return [self._imagine(event, event.event_id in known, stored) for event in events]

    def unseen(self) -> int:
        """How many phones would get their first status."""
        return len(self._imagined.keys() - super().statuses(list(self._imagined)).keys())

    def _imagine(self, event: OptOutEvent, known: bool, stored: dict[str, Status]) -> Accepted:
        status = self._imagined.get(event.phone_hash) or stored.get(event.phone_hash)
        if known:
            return self._imagine_correction(event, status)
        if not event.phone_hash:
            return Accepted.UNMATCHED
        if status is not None and milliseconds(event.occurred_at) <= status.occurred_ms:
            self._imagine_missed_start(event, status)
            return Accepted.STALE
        return self._imagine_new(event, status)

    def _imagine_correction(self, event: OptOutEvent, status: Status | None) -> Accepted:
        entry = self._ledger.load(self._project, event.event_id)
        if status is None or entry is None or entry.source is Source.BLOCKED_MESSAGE:
            return Accepted.KNOWN
        if entry.source is Source.EVENT_STREAM:  # it knows the time better than the log
            event = replace(event, occurred_at=entry.occurred_at)
        occurred_ms = milliseconds(event.occurred_at)
        if status.event_id == event.event_id and entry.source is Source.WEBHOOK:
            start_ms = occurred_ms if event.change is Change.START else status.last_start_ms
            self._imagined[event.phone_hash] = replace(
                status, occurred_ms=occurred_ms, last_start_ms=start_ms
            )
        if status.event_id == event.event_id or occurred_ms <= status.occurred_ms:
            return Accepted.KNOWN
        return self._imagine_new(event, status)

    def _imagine_missed_start(self, event: OptOutEvent, status: Status) -> None:
        occurred_ms = milliseconds(event.occurred_at)
        if (event.change, status.change) == (
            Change.START,
            Change.STOP,
        ) and occurred_ms > status.last_start_ms:
            self._imagined[event.phone_hash] = replace(status, last_start_ms=occurred_ms)

    def _imagine_new(self, event: OptOutEvent, status: Status | None) -> Accepted:
        occurred_ms = milliseconds(event.occurred_at)
        start_ms = occurred_ms if event.change is Change.START else status.last_start_ms if status else 0
        self._new.add(event.event_id)
        self._imagined[event.phone_hash] = Status(
            change=event.change, occurred_ms=occurred_ms, event_id=event.event_id, last_start_ms=start_ms
        )
        return Accepted.NEW


def recover(events: Sequence[OptOutEvent], doorway: Doorway) -> int:
    """Hand in a page of the log, newest first. Answers how many changes the ledger had missed.

    First what it has, as the log corrects times of receipt (see `shared/ledger/scripts/accept.lua`); then the others
    newest first, so that what was overtaken is never written nor told.
    """
    known = doorway.known([event.event_id for event in events])
    here = [event for event in events if event.event_id in known]
    doorway.accept([event for event, status in _with_status(here, doorway) if _is_mistimed(event, status)])
    late = [event for event, status in _with_status(here, doorway) if _was_overtaken_wrongly(event, status)]
    missing = [event for event in events if event.event_id not in known]
    return doorway.accept(late + missing).count(Accepted.NEW)


def overtaken(events: Sequence[OptOutEvent], doorway: Doorway) -> list[OptOutEvent]:
    """Of a page, what a time that is corrected on a later page could still make its phone's latest change.

    Only a webhook's time of receipt is ever corrected, and by seconds; so few events are kept, not the log.
    """
    return [
        event
        for event, status in _with_status(events, doorway)
        if status.event_id != event.event_id
        and 0 <= status.occurred_ms - milliseconds(event.occurred_at) <= MOST_LATE_MS
    ]


def put_in_order(events: Sequence[OptOutEvent], doorway: Doorway) -> int:
    """Look at the whole run's overtaken events once more. Answers how many are the latest change after all.

    Pages and senders are read one after the other, so that a time is sometimes corrected too late for them.
    """
    newest_first = sorted(events, key=lambda event: event.occurred_at, reverse=True)
    restored = 0
    for start in range(0, len(newest_first), _CHUNK):
        page = _with_status(newest_first[start : start + _CHUNK], doorway)
        late = [event for event, status in page if _was_overtaken_wrongly(event, status)]
        restored += doorway.accept(late).count(Accepted.NEW)
    return restored


def _with_status(events: Sequence[OptOutEvent], doorway: Doorway) -> list[tuple[OptOutEvent, Status]]:
    statuses = doorway.statuses(sorted({event.phone_hash for event in events}))
    return [(event, statuses[event.phone_hash]) for event in events if event.phone_hash in statuses]


def _is_mistimed(event: OptOutEvent, status: Status) -> bool:
    return status.event_id == event.event_id and status.occurred_ms != milliseconds(event.occurred_at)


def _was_overtaken_wrongly(event: OptOutEvent, status: Status) -> bool:
    return status.event_id != event.event_id and milliseconds(event.occurred_at) > status.occurred_ms


def recover_blocked(events: Sequence[OptOutEvent], doorway: Doorway) -> int:
    """Hand in refused texts, newest first: of each person's, the first one that tells something new.

    Every refused text says the same, so only one becomes an event; and one from before a START says nothing.
    """
    statuses = doorway.statuses(sorted({event.phone_hash for event in events}))
    first: dict[str, OptOutEvent] = {}
    for event in reversed(events):
        if event.phone_hash and _tells_something(event, statuses.get(event.phone_hash)):
            first.setdefault(event.phone_hash, event)
    return doorway.accept(list(first.values())).count(Accepted.NEW)


def _tells_something(event: OptOutEvent, status: Status | None) -> bool:
    if status is None:
        return True
    return status.change is not event.change and milliseconds(event.occurred_at) > status.occurred_ms
