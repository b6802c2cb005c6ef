"""One round of the updater: one export and, if something differs, one import.

A snapshot of the records and of what the ledger knows of them, a pure plan, the writes, and how each event ends.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from shared.domain.events import Change, Notice, State, milliseconds
from shared.domain.precedence import Status, decode_statuses
from shared.domain.scopes import STAFF
from shared.ledger import EventOutcome, StoredEvent
from shared.ledger.opt_outs.written_values import WrittenValue, WrittenValues
from worker.redcap.client import MAX_RECORDS_PER_REQUEST
from worker.redcap.gateway import RedcapProject
from worker.redcap.opt_out_fields import Act, PlannedRecord, RecordState, keys_of, plan_record
from worker.services import Services
from worker.steps.complete_events import complete_events
from worker.steps.update_records.bisecting_import import BisectingImport, ImportRow, Written
from worker.steps.update_records.outcomes import RecordOutcome, outcome_of

Plans = Mapping[str, PlannedRecord]  # by record id


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a round has read: all that its plan needs."""

    texts: Mapping[str, str]  # the encoded statuses of the phones to be written
    # The events whose writes to them had begun before the records were read; "" for none.
    begun: Mapping[str, str]
    holders: Mapping[str, Sequence[RecordState]]  # the records that hold each of them
    known: Mapping[str, Sequence[Status]]  # the statuses of all phones of these records
    written: Mapping[str, WrittenValue]
    unfinished: Collection[str]  # the events among them that have not ended
    starts: Mapping[str, StoredEvent]  # the STARTs of these

    @property
    def states(self) -> dict[str, RecordState]:
        """The records, by id."""
        return _by_id(self.holders)

    def without(self, phones: Collection[str]) -> "Snapshot":
        """The same without some phones."""
        return replace(
            self,
            texts={phone: text for phone, text in self.texts.items() if phone not in phones},
            holders={phone: group for phone, group in self.holders.items() if phone not in phones},
        )


class SchemaChanged(Exception):
    """A rejection or a missing phone was judged by a remembered schema, and the schema has changed since."""


class Round:
    """One export and, if something differs, one import."""

    def __init__(self, gateway: RedcapProject, services: Services, rechecked: set[str]) -> None:
        self._gateway = gateway
        self._project = gateway.name
        self._services = services
        self._ledger = services.ledger
        self._index = services.index(gateway.name)
        self._written_values = WrittenValues(gateway.name, services.redis)
        self._rechecked = rechecked  # phones that the index and the records disagreed about once already
        self._began = services.now()

    def schema_changed(self) -> bool:
        """Whether the project's schema is another one than this round relied on. Raises ProjectProblem if unfit."""
        return self._gateway.schema_changed(since=self._began)

    def _raise_if_schema_changed(self) -> None:
        """Is it these records, or has the project changed? Raises ProjectProblem if it no longer fits."""
        if self.schema_changed():
            raise SchemaChanged

    def run(self, phones: Sequence[str]) -> None:
        """Write the latest changes of phones to the records that hold them, and end their events."""
        begun = self._ledger.intents(self._project, phones)
        batch, ids = self._first_batch(phones, begun)
        texts = self._ledger.statuses(self._project, batch)
        self._ledger.forget_pending(self._project, set(batch) - texts.keys())
        records = self._gateway.read(ids)
        gone = set(ids) - records.keys()
        self._index.forget(gone)
        holders = _holders(texts, records.values())
        for phone in self._missed_at_first(holders, gone):
            del texts[phone], holders[phone]
        if self._gateway.may_miss_phones and not all(holders.values()):
            self._raise_if_schema_changed()
        self._resolve_overtaken(begun, texts, holders)
        snapshot = self._snapshot(texts, {phone: begun.get(phone, "") for phone in texts}, holders)
        while conflicting := self._write(snapshot):
            # They stay pending, and are read again in the next round.
            snapshot = snapshot.without(conflicting)

    # --- reading ------------------------------------------------------------------------------------

    def _first_batch(self, phones: Sequence[str], begun: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """As many phones as fit into one request by their records, with these records' ids."""
        found, written = self._index.records(phones), self._written_before(begun)
        batch: list[str] = []
        ids: dict[str, None] = {}
        for phone in phones:
            more = dict.fromkeys([*found.get(phone, ()), *written.get(phone, ())])
            if batch and len(ids | more) > MAX_RECORDS_PER_REQUEST:
                break
            batch.append(phone)
            ids |= more
        return batch, list(ids)

    def _written_before(self, begun: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """The records of writes that had begun and whose end is unknown: the index may lack them by now."""
        entries = self._ledger.entries_of(self._project, list(begun.values()))
        return {entry.phone_hash: entry.records for entry in entries}

    def _missed_at_first(
        self, holders: Mapping[str, Sequence[RecordState]], gone: Collection[str]
    ) -> set[str]:
        """The phones that no record holds, if that may be the index' fault: it is refreshed for the next round.

        `gone`: the records that the index names and REDCap does not have.
        """
        missed = {phone for phone, group in holders.items() if not group} - self._rechecked
        self._rechecked.update(missed)
        if missed and gone:
            # Renamed, perhaps, which a large project does not list among its changes: read all of it once.
            self._index.invalidate()
        if missed:
            self._index.refresh(self._gateway, since=self._began)
        return missed

    def _snapshot(
        self,
        texts: Mapping[str, str],
        begun: Mapping[str, str],
        holders: Mapping[str, Sequence[RecordState]],
    ) -> Snapshot:
        states = _by_id(holders)
        others = keys_of(states.values()) - texts.keys()
        stored = {**texts, **self._ledger.statuses(self._project, sorted(others))}
        known = {key: decode_statuses(text) for key, text in stored.items()}
        changes = {status.event_id: status.change for status in chain.from_iterable(known.values())}
        unfinished = self._ledger.unfinished(self._project, list(changes))
        # A START that was handled before clears nothing.
        starts = [event_id for event_id in unfinished if changes[event_id] is Change.START]
        entries = self._ledger.entries_of(self._project, starts)
        return Snapshot(
            texts=texts,
            begun=begun,
            holders=holders,
            known=known,
            written=self._written_values.of(list(states)),
            unfinished=unfinished,
            starts={entry.event_id: entry for entry in entries},
        )

    # --- writing ------------------------------------------------------------------------------------

    def _plans(self, snapshot: Snapshot) -> Plans:
        form, now_ms = self._gateway.form, milliseconds(self._services.now())
        return {
            record: plan_record(
                state, snapshot.known, form=form, written=snapshot.written.get(record),
                starts=self._clearing(state, snapshot), now_ms=now_ms,
            )
            for record, state in snapshot.states.items()
        }  # fmt: skip

    def _clearing(self, state: RecordState, snapshot: Snapshot) -> list[Status]:
        """The STARTs that concern a record: of phones that it held when they came."""
        return [
            status
            for key in sorted(state.keys)
            for status in snapshot.known.get(key, ())
            if (entry := snapshot.starts.get(status.event_id))
            and self._index.held_at(key, state.record_id, entry.came_at)
        ]

    def _write(self, snapshot: Snapshot) -> list[str]:
        """Write, and end the events. Returns the phones whose changes conflict; then nothing was written."""
        # Re-read: another worker may have written these and crashed before recording it.
        intents = self._ledger.intents(self._project, list(snapshot.texts))
        plans = self._plans(snapshot)
        groups = self._gateway.rows({record: (each.state, each.plan) for record, each in plans.items()})
        if conflicting := self._begin_writes(groups, snapshot, plans):
            return conflicting
        written = self._import(groups, plans)
        outcomes = [
            outcome_of(
                phone, status, self._records(phone, status, snapshot, plans, written),
                notice_unmatched=self._services.unmatched_notice(self._project),
                began=intents.get(phone) == status.event_id,
                is_new=status.event_id in snapshot.unfinished,
            )
            for phone in snapshot.texts
            for status in snapshot.known[phone]
            if status.change is Change.STOP or status.event_id in snapshot.starts
        ]  # fmt: skip
        complete_events(self._project, outcomes, self._services, written=snapshot.texts)
        return []

    def _begin_writes(self, groups: Sequence[list[ImportRow]], snapshot: Snapshot, plans: Plans) -> list[str]:
        """Record the writes before they begin. Returns the conflicting phones.

        So the change that reached REDCap is still notified after a crash; also that of a phone that is not pending
        yet, which is written along with another's.
        """
        id_field = self._gateway.schema.id_field
        written = {row[id_field] for rows in groups for row in rows}
        writes = {
            key: status.event_id
            for record in written
            for key in plans[record].state.keys
            for status in snapshot.known.get(key, ())
            if status.event_id in plans[record].plan.event_ids
        }
        return self._ledger.begin_writes(
            self._project, writes, begun=snapshot.begun, now=self._services.now()
        )

    def _import(self, groups: Sequence[list[ImportRow]], plans: Plans) -> Written:
        written = Written()
        # Forgotten first: what is not known to be the program's own stays.
        cleared = [
            record for record, each in plans.items() if each.plan.act is Act.CLEAR and each.plan.writes
        ]
        self._written_values.forget(cleared)
        BisectingImport(self._gateway, written).run(groups)
        self._remember(written.saved, plans)
        reasons = {
            record: self._gateway.unreachable_reason(each.state, each.plan) for record, each in plans.items()
        }
        written.rejected |= {record: reason for record, reason in reasons.items() if reason}
        if written.rejected:
            self._raise_if_schema_changed()
        return written

    def _remember(self, saved: Iterable[str], plans: Plans) -> None:
        """Keep what was entered: a START may clear that, and nothing else."""
        decisions = {record: plans[record].decision for record in saved}
        shown = {record: decision.shown for record, decision in decisions.items() if decision.opted_out}
        self._written_values.remember(
            {
                record: WrittenValue(time_ms=stop.began_ms, scope=stop.scope, event_id=stop.event_id)
                for record, stop in shown.items()
            }
        )

    def _records(
        self, phone: str, status: Status, snapshot: Snapshot, plans: Plans, written: Written
    ) -> list[RecordOutcome]:
        return [
            RecordOutcome(
                record=state.record_id,
                decision=plans[state.record_id].decision,
                plan=plans[state.record_id].plan,
                saved=state.record_id in written.saved,
                rejected=written.rejected.get(state.record_id, ""),
                held_then=status.change is Change.STOP
                or status.scope == STAFF
                or self._index.held_at(phone, state.record_id, snapshot.starts[status.event_id].came_at),
            )
            for state in snapshot.holders[phone]
        ]

    # --- after a crash --------------------------------------------------------------------------------

    def _resolve_overtaken(
        self,
        begun: Mapping[str, str],
        texts: Mapping[str, str],
        holders: Mapping[str, Sequence[RecordState]],
    ) -> None:
        """Writes that began before a crash and were overtaken since: did they reach REDCap?

        `begun` was read before the records were. A write that began later is another updater's (this process paused,
        and lost the lock), and what was read does not tell how it ended.
        """
        for phone in begun.keys() & texts.keys():
            event_id, latest = begun[phone], decode_statuses(texts[phone])
            is_latest = event_id in {status.event_id for status in latest}
            if is_latest or self._ledger.intents(self._project, [phone]).get(phone) != event_id:
                continue
            entry = self._ledger.load(self._project, event_id)
            if entry is None:  # its retention is over
                self._ledger.forget_intent(self._project, phone)
            else:
                self._complete_overtaken(phone, entry, latest, holders[phone])

    def _complete_overtaken(
        self, phone: str, entry: StoredEvent, latest: Sequence[Status], holders: Sequence[RecordState]
    ) -> None:
        reached = [state.record_id for state in holders if state.in_arm and self._shows(state, entry.change)]
        newer = next((each.event_id for each in latest if each.scope == entry.scope), latest[0].event_id)
        outcome = EventOutcome(
            event_id=entry.event_id,
            phone_hash=phone,
            state=State.SUPERSEDED,
            reason=f"overtaken by {newer}",
            records=[state.record_id for state in holders],
        )
        if reached:
            outcome = replace(outcome, state=State.UPDATED, reason="", notice=Notice.SAVED, written=reached)
        complete_events(self._project, [outcome], self._services)

    def _shows(self, state: RecordState, change: Change) -> bool:
        empty = self._gateway.form.is_empty(state.opt_out_value)
        if change is Change.STOP:
            return not empty and (state.ticked or not self._gateway.form.has_checkbox)
        return empty and not state.ticked


def _holders(phones: Iterable[str], records: Iterable[RecordState]) -> dict[str, list[RecordState]]:
    """The records that really hold each phone now, in the index's order."""
    holders: dict[str, list[RecordState]] = {phone: [] for phone in phones}
    for record in records:
        for phone in record.keys & holders.keys():
            holders[phone].append(record)
    return holders


def _by_id(holders: Mapping[str, Sequence[RecordState]]) -> dict[str, RecordState]:
    return {state.record_id: state for group in holders.values() for state in group}
