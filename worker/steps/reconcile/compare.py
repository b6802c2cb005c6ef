"""The ledger against REDCap: every opt-out that a record lacks is written, and nothing is cleared."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from shared.batches import batches
from shared.domain.events import Change, State, milliseconds
from shared.domain.precedence import Status
from shared.ledger import EventOutcome, StoredEvent
from shared.ledger.opt_outs.written_values import WrittenValues
from shared.retry_policy import RECONCILE_WAITS_SECONDS
from worker.redcap.gateway import RedcapProject
from worker.redcap.opt_out_fields import Act, PlannedRecord, RecordState, keys_of, plan_record
from worker.services import Services
from worker.steps.complete_events import complete_events
from worker.steps.lookup_records import look_up
from worker.steps.reconcile.blocks import NightlyBlocks
from worker.steps.reconcile.recover import DryRunLedger, LedgerView
from worker.steps.reconcile.report import MOST_RECORDS_NAMED, Report
from worker.steps.update_records import update_records
from worker.steps.update_records.outcomes import NO_RECORD

_BATCH = 500

Progress = Callable[[str, int], None]
Statuses = Mapping[str, Sequence[Status]]


class Comparison:
    """The stages of one run that need REDCap."""

    def __init__(
        self,
        report: Report,
        services: Services,
        view: LedgerView,
        progress: Progress,
        blocks: NightlyBlocks | None = None,
    ) -> None:
        self._report = report
        self._services = services
        self._view = view
        self._progress = progress
        self._blocks = blocks or NightlyBlocks(report, services, view)
        self._project = report.project
        self._ledger = services.ledger
        self._index = services.index(report.project)
        self._written_values = WrittenValues(report.project, services.redis)
        self._differing: dict[str, tuple[str, ...]] = {}  # record id -> its keys, of changes that had ended
        self._held: set[str] = set()  # a dry run's phones with a status and a record

    def run(self) -> None:
        """Bring REDCap to what the ledger says."""
        self._compare()
        if not self._report.dry_run:
            self._drain()
            self._remove_unwritten()
        self._report.corrected = sorted(self._differing)[:MOST_RECORDS_NAMED]
        self._report.records_corrected = len(self._differing)

    def _compare(self) -> None:
        """Compare every record with the changes of its phones, and rebuild the index by the same export."""
        gateway = self._services.in_background().project(self._project)
        gateway.confirm_schema()
        states, began = self._compared(gateway), self._services.now()
        if self._report.dry_run:
            for _ in states:
                pass
        else:
            self._index.rebuild(states, now=began)
            for entries in self._ledger.unfinished_entries(self._project):
                self._resume([entry for entry in entries if entry.received_at <= began])
        self._count_statuses()

    def _compared(self, gateway: RedcapProject) -> Iterator[RecordState]:
        """Pass the records through, and note what differs on the way."""
        for batch in batches(gateway.read_all(), _BATCH):
            self._compare_batch(batch, gateway)
            self._report.records_read += len(batch)
            self._progress("records", self._report.records_read)
            yield from batch

    def _compare_batch(self, batch: Sequence[RecordState], gateway: RedcapProject) -> None:
        statuses = self._view.statuses(sorted(keys_of(batch)))
        planned = self._plans(batch, statuses, gateway)
        self._note_by_hand(batch, statuses, gateway)
        self._report.kept_entries += [each.state.record_id for each in planned if each.plan.keeps_entry]
        self._note_differing([each for each in planned if each.is_to_be_written], statuses)
        if self._report.dry_run:
            self._note_dry_run(planned, statuses)
        for each in planned:
            self._blocks.note(each.state, each.decision, statuses)

    def _plans(
        self, batch: Sequence[RecordState], statuses: Statuses, gateway: RedcapProject
    ) -> list[PlannedRecord]:
        """Plans for the records of which the ledger knows changes."""
        known = [state for state in batch if not state.keys.isdisjoint(statuses)]
        written = self._written_values.of([state.record_id for state in known])
        new_starts = self._new_starts(statuses)
        form, now_ms = gateway.form, milliseconds(self._services.now())
        return [
            plan_record(
                state, statuses, form=form, written=written.get(state.record_id),
                starts=[each for each in state.statuses(statuses) if each.event_id in new_starts], now_ms=now_ms,
            )
            for state in known
        ]  # fmt: skip

    def _new_starts(self, statuses: Statuses) -> set[str]:
        """The STARTs that have yet to be processed: only they clear, and only in their own time."""
        changes = chain.from_iterable(statuses.values())
        return self._view.in_progress([each.event_id for each in changes if each.change is Change.START])

    # --- what the report says of them ---------------------------------------------------------------

    def _note_by_hand(self, batch: Sequence[RecordState], statuses: Statuses, gateway: RedcapProject) -> None:
        """Count the opt-outs that a person entered and no text explains."""
        self._report.entered_by_hand += sum(
            state.ticked or gateway.form.is_time(state.opt_out_value)
            for state in batch
            if state.keys.isdisjoint(statuses)
        )

    def _note_differing(self, differing: Sequence[PlannedRecord], statuses: Statuses) -> None:
        """Put what differs into the pending set; a change that is in progress already is not a correction."""
        keys = {each.state.record_id: tuple(sorted(each.state.keys & statuses.keys())) for each in differing}
        if not self._report.dry_run:
            pending = sorted(chain.from_iterable(keys.values()))
            self._ledger.require_update(self._project, pending, now=self._services.now())
        event_ids = {event_id for each in differing for event_id in each.plan.event_ids}
        in_progress = self._view.in_progress(sorted(event_ids))
        self._differing |= {
            each.state.record_id: keys[each.state.record_id]
            for each in differing
            if in_progress.isdisjoint(each.plan.event_ids)
        }

    def _note_dry_run(self, planned: Sequence[PlannedRecord], statuses: Statuses) -> None:
        for each in planned:
            self._held |= each.state.phones & statuses.keys()
            if each.is_to_be_written:
                cleared = each.plan.act is Act.CLEAR
                (self._report.would_clear if cleared else self._report.would_set).append(each.state.record_id)

    # --- events in progress -------------------------------------------------------------------------

    def _resume(self, entries: Sequence[StoredEvent]) -> None:
        """Continue what was in progress when the export began: a phone that it did not show has no record."""
        changes = []
        for entry in entries:
            if entry.change is Change.UNCLEAR:
                look_up(entry, self._services)  # the index is new: this asks REDCap for nothing more
            else:
                changes.append(entry)
        phones = [entry.phone_hash for entry in changes]
        # A write that has begun may have reached a record that the export left out: the updater checks.
        held_phones = {*self._index.records(phones), *self._ledger.intents(self._project, phones)}
        self._ledger.require_update(self._project, sorted(held_phones), now=self._services.now())
        notice = self._services.unmatched_notice(self._project)
        outcomes = [
            EventOutcome(
                event_id=entry.event_id,
                phone_hash=entry.phone_hash,
                state=State.NO_MATCHING_RECORD,
                reason=NO_RECORD,
                notice=notice,
            )
            for entry in changes
            if entry.phone_hash not in held_phones
        ]
        complete_events(self._project, outcomes, self._services)

    def _count_statuses(self) -> None:
        if isinstance(self._view, DryRunLedger):
            self._report.statuses = self._ledger.count_statuses(self._project) + self._view.unseen()
            self._report.statuses_without_record = self._report.statuses - len(self._held)
            return
        for batch in batches(self._ledger.all_statuses(self._project), _BATCH):
            phones = dict(batch)
            self._report.statuses += len(phones)
            self._report.statuses_without_record += len(phones) - len(self._index.records(list(phones)))

    # --- writing ------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Have the updater write what is pending, here."""
        deadline = time.monotonic() + RECONCILE_WAITS_SECONDS
        while self._ledger.clear_update_if_empty(self._project) and time.monotonic() < deadline:
            update_records(self._project, self._services)
            if not self._services.is_updating(self._project):
                break  # no other worker is updating: what is left, REDCap would not accept
            time.sleep(0.5)
        self._report.still_pending = self._ledger.clear_update_if_empty(self._project)
        if self._report.still_pending:
            self._report.fail(f"{self._report.still_pending} changes could not be written yet")

    def _remove_unwritten(self) -> None:
        """Of the records that differed, those that REDCap rejected, and those that still wait, are not corrected."""
        waiting = set(self._ledger.pending(self._project)) if self._report.still_pending else set()
        for batch in batches(list(self._differing.items()), _BATCH):
            failures = self._failures(chain.from_iterable(keys for _, keys in batch))
            for record, keys in batch:
                refused = list(_refusals(record, chain.from_iterable(failures[key] for key in keys)))
                self._report.refused += refused
                if refused or not waiting.isdisjoint(keys):
                    del self._differing[record]

    def _failures(self, keys: Iterable[str]) -> defaultdict[str, list[str]]:
        """Why latest changes failed, by phone or staff key."""
        statuses = self._view.statuses(sorted(keys))
        event_ids = [each.event_id for each in chain.from_iterable(statuses.values())]
        failures: defaultdict[str, list[str]] = defaultdict(list)
        for entry in self._ledger.entries_of(self._project, event_ids):
            if entry.state is State.FAILED and entry.reason:
                failures[entry.phone_hash].append(entry.reason)
        return failures


def _refusals(record: str, reasons: Iterable[str]) -> Iterator[str]:
    """What the reasons of failed events say of one of their records; one that names no record is about all."""
    for reason in reasons:
        if reason.startswith("record "):
            yield from (part for part in reason.split("; ") if part.startswith(f"record {record}: "))
        else:
            yield f"record {record}: {reason}"
