"""The ledger against REDCap: every opt-out that a record lacks is written, and nothing is cleared."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from shared.batches import batches
from shared.domain.events import Change, State, milliseconds
from shared.domain.precedence import Decision, Status, decide
from shared.ledger import EventOutcome, StoredEvent
from shared.ledger.opt_outs.written_values import WrittenValue, WrittenValues
from shared.retry_policy import RECONCILE_WAITS_SECONDS
from worker.redcap.gateway import RedcapProject
from worker.redcap.opt_out_fields import Act, Plan, RecordState, plan
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
        statuses = self._view.statuses(sorted({key for state in batch for key in state.keys}))
        concerned = [state for state in batch if not state.keys.isdisjoint(statuses)]
        written = self._written_values.of([state.record_id for state in concerned])
        starts = self._new_starts(statuses)
        plans = {
            state.record_id: self._plan(state, statuses, starts, written.get(state.record_id), gateway)
            for state in concerned
        }
        self._note_by_hand([state for state in batch if state.record_id not in plans], gateway)
        self._note_plans(concerned, plans, statuses)
        for state in concerned:
            self._blocks.note(state, plans[state.record_id][0], statuses)
        if self._report.dry_run:
            self._held |= {key for state in concerned for key in state.phones & statuses.keys()}

    def _new_starts(self, statuses: Statuses) -> set[str]:
        """The STARTs that have yet to be processed: only they clear, and only in their own time."""
        ids = [each.event_id for group in statuses.values() for each in group if each.change is Change.START]
        return self._view.in_progress(ids)

    def _plan(
        self,
        state: RecordState,
        statuses: Statuses,
        new_starts: set[str],
        written: WrittenValue | None,
        gateway: RedcapProject,
    ) -> tuple[Decision, Plan]:
        known = [status for key in sorted(state.keys) for status in statuses.get(key, ())]
        decision = decide(known)
        starts = [status for status in known if status.event_id in new_starts]
        now_ms = milliseconds(self._services.now())
        return decision, plan(
            state, decision, known, form=gateway.form, written=written, starts=starts, now_ms=now_ms
        )

    # --- what the report says of them ---------------------------------------------------------------

    def _note_by_hand(self, states: Sequence[RecordState], gateway: RedcapProject) -> None:
        """Count the opt-outs that a person entered and no text explains."""
        self._report.entered_by_hand += sum(
            state.ticked or gateway.form.is_time(state.opt_out_value) for state in states
        )

    def _note_plans(
        self,
        states: Sequence[RecordState],
        plans: Mapping[str, tuple[Decision, Plan]],
        statuses: Statuses,
    ) -> None:
        """Put what differs into the pending set; a change that is in progress already is not a correction."""
        self._report.kept_entries += [
            record for record, (_, made) in plans.items() if made.act in {Act.KEEP, Act.KEEP_LATER}
        ]
        # A record of another arm cannot be written; its event has said so.
        differing = [state for state in states if state.in_arm and plans[state.record_id][1].writes]
        self._note_dry_run(differing, plans)
        keys_of = {
            state.record_id: tuple(key for key in sorted(state.keys) if key in statuses)
            for state in differing
        }
        if not self._report.dry_run:
            pending = sorted({key for group in keys_of.values() for key in group})
            self._ledger.require_update(self._project, pending, now=self._services.now())
        behalf = {record: plans[record][1].behalf for record in keys_of}
        in_progress = self._view.in_progress(
            sorted({status.event_id for group in behalf.values() for status in group})
        )
        self._differing |= {
            record: group
            for record, group in keys_of.items()
            if in_progress.isdisjoint(status.event_id for status in behalf[record])
        }

    def _note_dry_run(
        self, states: Sequence[RecordState], plans: Mapping[str, tuple[Decision, Plan]]
    ) -> None:
        if not self._report.dry_run:
            return
        for state in states:
            cleared = plans[state.record_id][1].act is Act.CLEAR
            (self._report.would_clear if cleared else self._report.would_set).append(state.record_id)

    # --- events in progress -------------------------------------------------------------------------

    def _resume(self, entries: Sequence[StoredEvent]) -> None:
        """Continue what was in progress when the export began: a phone that it did not show has no record."""
        for entry in entries:
            if entry.change is Change.UNCLEAR:
                look_up(entry, self._services)  # the index is new: this asks REDCap for nothing more
        entries = [entry for entry in entries if entry.change is not Change.UNCLEAR]
        phones = [entry.phone_hash for entry in entries]
        # A write that has begun may have reached a record that the export left out: the updater checks.
        held_phones = {*self._index.records(phones), *self._ledger.intents(self._project, phones)}
        self._ledger.require_update(
            self._project, [phone for phone in phones if phone in held_phones], now=self._services.now()
        )
        notice = self._services.unmatched_notice(self._project)
        outcomes = [
            EventOutcome(
                event_id=entry.event_id,
                phone_hash=entry.phone_hash,
                state=State.NO_MATCHING_RECORD,
                reason=NO_RECORD,
                notice=notice,
            )
            for entry in entries
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
            statuses = self._view.statuses(sorted({key for _, group in batch for key in group}))
            failed = self._failed([each.event_id for group in statuses.values() for each in group])
            for record, group in batch:
                ids = [each.event_id for key in group for each in statuses.get(key, ())]
                reasons = [reason for id_ in ids for reason in _reasons_of(record, failed.get(id_, ""))]
                self._report.refused += [f"record {record}: {reason}" for reason in reasons]
                if reasons or not waiting.isdisjoint(group):
                    del self._differing[record]

    def _failed(self, event_ids: Sequence[str]) -> dict[str, str]:
        """The reasons of those of the events that failed."""
        entries = self._ledger.entries_of(self._project, event_ids)
        return {entry.event_id: entry.reason for entry in entries if entry.state is State.FAILED}


def _reasons_of(record: str, reason: str) -> Iterator[str]:
    """What a failed event's reason says of one of its records; one that names no record is about all."""
    for part in reason.split("; ") if reason.startswith("record ") else []:
        if part.startswith(f"record {record}: "):
            yield part.removeprefix(f"record {record}: ")
    if reason and not reason.startswith("record "):
        yield reason
