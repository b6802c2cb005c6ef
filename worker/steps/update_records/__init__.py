"""Group commit: what is pending for a project goes to REDCap in few requests, read before written.

One updater per project takes all that is pending, reads the records as they are now, writes what differs,
and goes on until nothing is pending. While it waits for REDCap, further changes gather for the next round:
a lone STOP is written at once, a storm of thousands costs a handful of requests.
"""

import re
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from math import ceil

import structlog

from shared.domain.events import Notice, State, Status, latest_of, milliseconds
from shared.errors import ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.ledger import Outcome
from shared.ledger.locks import held
from shared.messaging.celery_config import TaskName
from shared.messaging.record_events import publish_or_leave
from worker.projects.problems import note_problem
from worker.redcap.client import MAX_RECORDS_PER_REQUEST
from worker.redcap.gateway import RecordState, RedcapProject
from worker.redcap.responses import RowsRejected
from worker.services import Services
from worker.steps.complete_events import settle
from worker.steps.lookup_records import GIVE_UP_AFTER, is_about_schema

# After a round, another record may hold the phone by now: look, but not more often than this in a storm.
REFRESH_PAUSE = timedelta(seconds=10)
# A refusal that names no row is narrowed down by halving, which costs two imports for each row at the very most.
# So many rows refused alone, all for the same reason and without one success: perhaps it is not the rows.
MOST_NAMELESS_REFUSALS = 5
# Then so many others are tried alone, from all over the rest. Are they refused for that reason too, it is the
# project (say, it takes no more data), and some twenty imports have told so instead of a thousand.
PROBES = 3

ImportRow = dict[str, str]

log = structlog.get_logger(__name__)


def update_records(project: str, services: Services) -> None:
    """Write all that is pending for a project, unless another worker is at it."""
    services.coalescer.taken(f"update:{project}")
    if services.project_config(project) is None:
        return  # it rests: see worker/projects/removed.py
    # Who does not get the lock has added its phone before the holder's last look, or after it: then the
    # holder finds it here, after it has let go.
    look = _look_is_due(project, services)
    while services.ledger.drained(project) or look:
        look = False
        with held(services.redis, f"update:{project}") as mine:
            if not mine:
                services.retry_soon("update", project)  # the holder may be dead
                return
            if not _drain(project, services):
                return


def _drain(project: str, services: Services) -> bool:
    """Rounds until nothing is pending. False where REDCap is in the way and it has to be tried later."""
    doubted: set[str] = set()
    try:
        gateway = services.project(project)
        while phones := services.ledger.pending(project, MAX_RECORDS_PER_REQUEST):
            if not _run_round(_Round(gateway, services, doubted), phones):
                services.index(project).invalidate()
                doubted.clear()
        _look_again(gateway, services)
    except RedcapUnavailable as error:
        log.warning("update_put_off", project=project, error=str(error))
        _give_up_old(project, error, services)
        services.retry_soon("update", project)
        return False
    except ProjectProblem as error:
        note_problem(project, error, services)  # all stays pending until it is mended
        return False
    except RedcapRejected as error:
        note_problem(project, error, services)
        _fail(project, services.ledger.pending(project), str(error), services)
    return True


def _run_round(current: "_Round", phones: Sequence[str]) -> bool:
    """False if it was based on a schema of the project that has changed: it counts as not run."""
    try:
        current.run(phones)
    except _SchemaChanged:
        return False
    except (RedcapRejected, RedcapUnavailable) as error:
        if not is_about_schema(error) or not current.schema_changed():
            raise
        return False
    return True


def _look_again(gateway: RedcapProject, services: Services) -> None:
    """The index was believed: a record that came since may hold one of the phones, too."""
    index, project = services.index(gateway.name), gateway.name
    if _look_is_due(project, services):
        index.refresh(gateway, since=services.now(), wait_seconds=0)
    elif index.needs_refresh() and services.coalescer.first(
        f"look:{project}", seconds=REFRESH_PAUSE.total_seconds()
    ):
        pause = REFRESH_PAUSE.total_seconds() + 0.5
        publish_or_leave(services.publish, TaskName.UPDATE, project, delay_seconds=pause)


def _look_is_due(project: str, services: Services) -> bool:
    index = services.index(project)
    return index.needs_refresh() and not index.is_fresh(since=services.now() - REFRESH_PAUSE)


def _give_up_old(project: str, error: RedcapUnavailable, services: Services) -> None:
    """End what has waited for a day as failed, so that the team knows; the nightly run still mends it."""
    old = services.ledger.pending_since(project, services.now() - GIVE_UP_AFTER)
    _fail(project, old, f"{error}, for a day", services)


def _fail(project: str, phones: Sequence[str], reason: str, services: Services) -> None:
    """End the latest events of phones as failed."""
    index = services.index(project)
    statuses, records = services.ledger.statuses(project, phones), index.records(phones)
    outcomes = [
        Outcome(
            event_id=Status.decode(text).event_id,
            phone_hash=phone,
            state=State.FAILED,
            reason=reason,
            records=records.get(phone, []),
            notice=Notice.UNSAVED,
            read_status=text,
        )
        for phone, text in statuses.items()
    ]
    settle(project, outcomes, services)


@dataclass(slots=True)
class _Written:
    """What became of the records of one round."""

    saved: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)


class _Imports:
    """The imports of one round, without the rows that REDCap refuses: it takes all rows of an import or none."""

    def __init__(self, gateway: RedcapProject, written: _Written) -> None:
        self._gateway = gateway
        self._written = written
        self._waiting: deque[list[ImportRow]] = deque()
        self._nameless: list[RedcapRejected] = []  # of single rows, whose text names none
        self._reasons: set[str] = set()  # theirs, different ones

    def run(self, groups: Sequence[list[ImportRow]]) -> None:
        """Write groups of rows. Raises RedcapRejected where it is not single rows that REDCap refuses."""
        self._waiting.extend(groups)
        while self._waiting:
            self._waiting.extendleft(reversed(self._import(self._waiting.popleft())))
            if self._waiting and self._looks_hopeless():
                self._probe()

    def _import(self, rows: list[ImportRow]) -> list[list[ImportRow]]:
        """One import. Answers what of it is to be tried again."""
        try:
            self._gateway.write(rows)
        except RowsRejected as error:
            self._written.refused |= error.reasons
            rest = [row for row in rows if self._id(row) not in error.reasons]
            return [rest] if rest else []
        except RedcapRejected as error:
            if error.code != "redcap_rejected":
                raise
            if len(rows) > 1:  # it names no row: halve until it is found
                return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            self._note_nameless(self._id(rows[0]), error)
            return []
        self._written.saved.update(map(self._id, rows))
        return []

    def _note_nameless(self, record: str, error: RedcapRejected) -> None:
        self._written.refused[record] = error.detail
        self._nameless.append(error)
        self._reasons.add(re.sub(rf"\b{re.escape(record)}\b", "…", error.detail))

    def _looks_hopeless(self) -> bool:
        return (
            not self._written.saved
            and len(self._nameless) >= MOST_NAMELESS_REFUSALS
            and len(self._reasons) == 1
        )

    def _probe(self) -> None:
        """Try rows of the rest alone, until one shows that there is hope: go on then, else raise the refusal."""
        rest = [row for rows in self._waiting for row in rows]
        for row in rest[:: -ceil(len(rest) / PROBES)]:
            self._import([row])
            self._take_out(row)
            if not self._looks_hopeless():
                return
        raise self._nameless[-1]

    def _take_out(self, row: ImportRow) -> None:
        left = [[other for other in rows if other is not row] for rows in self._waiting]
        self._waiting = deque(rows for rows in left if rows)

    def _id(self, row: ImportRow) -> str:
        return row[self._gateway.schema.id_field]


class _SchemaChanged(Exception):
    """A rejection or a missing phone was judged by a remembered schema, and the schema has changed since."""


class _Round:
    """One export and, where something differs, one import."""

    def __init__(self, gateway: RedcapProject, services: Services, doubted: set[str]) -> None:
        self._gateway = gateway
        self._project = gateway.name
        self._services = services
        self._ledger = services.ledger
        self._index = services.index(gateway.name)
        self._doubted = doubted  # phones that the index and the records disagreed about once already
        self._began = services.now()

    def schema_changed(self) -> bool:
        """Whether the project's schema is another one than this round relied on. Raises ProjectProblem if unfit."""
        return self._gateway.schema_changed(since=self._began)

    def run(self, phones: Sequence[str]) -> None:
        """Settle phones: write their latest status to the records that hold them."""
        began = self._began
        begun = self._ledger.intents(self._project, phones)
        batch, ids = self._portion(phones, begun)
        texts = self._ledger.statuses(self._project, batch)
        self._ledger.forget_pending(self._project, [phone for phone in batch if phone not in texts])
        records = self._gateway.read(ids) if ids else {}
        gone = [record for record in ids if record not in records]
        self._index.forget(gone)
        holders = _holders(list(texts), [records[record] for record in ids if record in records])
        nowhere = [phone for phone in texts if not holders[phone] and phone not in self._doubted]
        if nowhere:
            # The index was wrong, or is old: believe it only after a refresh, in the next round.
            self._doubted.update(nowhere)
            if gone:
                # Renamed, perhaps, which a large project does not list among its changes: read all of it once.
                self._index.invalidate()
            self._index.refresh(self._gateway, since=began)
        texts = {phone: text for phone, text in texts.items() if phone not in nowhere}
        if self._gateway.may_miss_phones and not all(holders[phone] for phone in texts):
            self._raise_if_schema_changed()
        self._resolve_overtaken(begun, texts, holders)
        self._write_and_settle(texts, holders, records)

    def _portion(self, phones: Sequence[str], begun: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """As many phones as fit into one request by their records, with these records' ids."""
        found = self._index.records(phones)
        for phone, records in self._written_before(begun).items():
            found[phone] = list(dict.fromkeys([*found.get(phone, []), *records]))
        batch: list[str] = []
        ids: dict[str, None] = {}
        for phone in phones:
            more = dict.fromkeys(found.get(phone, []))
            if batch and len(ids | more) > MAX_RECORDS_PER_REQUEST:
                break
            batch.append(phone)
            ids |= more
        return batch, list(ids)

    def _written_before(self, begun: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """The records that a write had begun for, of which we do not know the end: the index may lack them by now."""
        entries = {phone: self._ledger.load(self._project, event_id) for phone, event_id in begun.items()}
        return {phone: entry.records for phone, entry in entries.items() if entry is not None}

    def _write_and_settle(
        self, texts: dict[str, str], holders: dict[str, list[RecordState]], records: dict[str, RecordState]
    ) -> None:
        """Write, and end the events; without those of which something newer came after they were read."""
        statuses = {phone: Status.decode(text) for phone, text in texts.items()}
        # As they are now: what another updater has written meanwhile, it may not live to tell.
        intents = self._ledger.intents(self._project, list(texts))
        states = {state.record_id: state for group in holders.values() for state in group}
        known = self._known(statuses, states)
        deciding = _deciding(known, states)
        groups = self._gateway.rows_to_write(
            {record: (records[record], status) for record, status in deciding.items()}
        )
        if outdated := self._intend(groups, records, deciding, known, own=texts):
            # They stay pending, and are read anew in the next round.
            rest = {phone: text for phone, text in texts.items() if phone not in outdated}
            self._write_and_settle(rest, {phone: holders[phone] for phone in rest}, records)
            return
        written = self._write(groups, records, deciding)
        outcomes = [
            self._outcome(phone, status, texts[phone], holders[phone], written, deciding, intents)
            for phone, status in statuses.items()
        ]
        settle(self._project, outcomes, self._services)

    def _resolve_overtaken(
        self, begun: Mapping[str, str], texts: dict[str, str], holders: dict[str, list[RecordState]]
    ) -> None:
        """Writes that began before a crash and were overtaken since: did they reach REDCap?

        `begun` was read before the records were. A write that began later is another updater's (we stood still,
        and lost the lock), and what we read does not tell how it ended.
        """
        for phone in begun.keys() & texts.keys():
            event_id, latest = begun[phone], Status.decode(texts[phone]).event_id
            if event_id == latest or self._ledger.intents(self._project, [phone]).get(phone) != event_id:
                continue
            entry = self._ledger.load(self._project, event_id)
            if entry is None:  # its retention is over
                self._ledger.forget_intent(self._project, phone)
                continue
            status = Status(
                change=entry.change,
                occurred_ms=milliseconds(entry.occurred_at),
                event_id=event_id,
                last_start_ms=0,
            )
            reached = any(state.in_arm and self._gateway.matches(state, status) for state in holders[phone])
            outcome = Outcome(
                event_id=event_id,
                phone_hash=phone,
                state=State.UPDATED if reached else State.SUPERSEDED,
                reason="" if reached else f"overtaken by {latest}",
                records=[state.record_id for state in holders[phone]],
                notice=Notice.SAVED if reached else None,
            )
            settle(self._project, [outcome], self._services)

    def _known(self, statuses: dict[str, Status], states: dict[str, RecordState]) -> dict[str, Status]:
        """The statuses of all phones of the records: a record may hold others than the pending ones."""
        others = {phone for state in states.values() for phone in state.phones} - set(statuses)
        stored = self._ledger.statuses(self._project, sorted(others))
        return statuses | {phone: Status.decode(text) for phone, text in stored.items()}

    def _intend(
        self,
        groups: Sequence[list[ImportRow]],
        records: Mapping[str, RecordState],
        deciding: dict[str, Status],
        known: dict[str, Status],
        *,
        own: Collection[str],
    ) -> list[str]:
        """Note the writes before they begin. Answers the phones that stand in the way.

        So the change that reached REDCap is still told after a crash; also that of a phone that is not pending yet,
        which is written along with another's.
        """
        id_field = self._gateway.schema.id_field
        writes = {
            phone: deciding[record].event_id
            for record in {row[id_field] for rows in groups for row in rows}
            for phone in records[record].phones
            if known.get(phone) == deciding[record]
        }
        return self._ledger.intend(self._project, writes, looked_at=own, now=self._services.now())

    def _write(
        self,
        groups: Sequence[list[ImportRow]],
        records: Mapping[str, RecordState],
        deciding: dict[str, Status],
    ) -> _Written:
        written = _Written()
        _Imports(self._gateway, written).run(groups)
        reasons = {
            record: self._gateway.unreachable_reason(records[record], status)
            for record, status in deciding.items()
        }
        written.refused |= {record: reason for record, reason in reasons.items() if reason}
        if written.refused:
            self._raise_if_schema_changed()
        return written

    def _raise_if_schema_changed(self) -> None:
        """Is it these records, or has the project changed? Raises ProjectProblem if it no longer fits."""
        if self.schema_changed():
            raise _SchemaChanged

    def _outcome(  # noqa: PLR0913
        self,
        phone: str,
        status: Status,
        text: str,
        holders: list[RecordState],
        written: _Written,
        deciding: dict[str, Status],
        intents: dict[str, str],
    ) -> Outcome:
        ids = [state.record_id for state in holders]
        own = [record for record in ids if deciding[record] == status]
        refused = {record: written.refused[record] for record in own if record in written.refused}
        saved = [record for record in own if record in written.saved]
        state, reason, notice = State.ALREADY_CURRENT, "", None
        if not ids:
            state, reason = State.NO_MATCHING_RECORD, "no record holds this number"
            notice = self._services.unmatched_notice(self._project)
        elif refused:
            state, notice = State.FAILED, Notice.UNSAVED
            reason = "; ".join(f"record {record}: {why}" for record, why in refused.items())
        elif saved or intents.get(phone) == status.event_id:
            state, notice = State.UPDATED, Notice.SAVED
        elif not own:
            state, reason = State.SUPERSEDED, "another number of the same record decides"
        return Outcome(
            event_id=status.event_id,
            phone_hash=phone,
            state=state,
            reason=reason,
            records=ids,
            notice=notice,
            read_status=text,
        )


def _deciding(known: dict[str, Status], states: dict[str, RecordState]) -> dict[str, Status]:
    """The status that counts for each record."""
    return {
        record: latest_of(known[phone] for phone in state.phones if phone in known)
        for record, state in states.items()
    }


def _holders(phones: Sequence[str], records: Sequence[RecordState]) -> dict[str, list[RecordState]]:
    """The records that really hold each phone now, in the index's order."""
    holders: dict[str, list[RecordState]] = {phone: [] for phone in phones}
    for record in records:
        for phone in record.phones & holders.keys():
            holders[phone].append(record)
    return holders
