"""One study's REDCap project in the program's terms: phones, opt-out state, writes.

REDCap's peculiarities end here: events, repeating rows, checkbox columns, validation types.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import chain, groupby, islice
from zoneinfo import ZoneInfo

from shared.batches import batches
from shared.config.schema import Project
from shared.domain.addresses import PhoneHasher
from shared.domain.events import milliseconds
from shared.domain.phone import numbers_in
from shared.errors import ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.ledger import keys
from shared.redis_client import RedisClient
from worker.redcap.client import MAX_RECORDS_PER_REQUEST, RedcapClient, Row
from worker.redcap.opt_out_fields import FieldForm, Plan, RecordState
from worker.redcap.responses import ExportTooLarge
from worker.redcap.schema import (
    SECONDS,
    ProjectInfo,
    ProjectSchema,
    hidden_fields,
    ids_look_hashed,
    inspect,
)

# A project's structure rarely changes: each nightly run compares the data dictionary, and reads the rest of the
# structure only if that has changed, or after this long. After a rejected import all of it is read again at once.
SCHEMA_VALID_FOR = timedelta(days=7)
# This many record ids show whether REDCap hashes them: it hashes all or none.
ENOUGH_IDS = 100


class SchemaCache:
    """One project's schema as it was read last, without a request to REDCap."""

    def __init__(self, redis: RedisClient, project: str) -> None:
        self._redis = redis
        self._current, self._last = keys.structure(project), keys.last_structure(project)

    def of(self, config: Project) -> ProjectSchema | None:
        """Return the schema if it was read for this configuration, and not long ago."""
        stored = json.loads(self._redis.get(self._current) or "{}")
        return ProjectSchema(**stored["schema"]) if stored.get("configuration") == config.digest else None

    def last(self) -> ProjectSchema | None:
        """Return the schema as REDCap showed it last, however long ago: for links, and for people who type."""
        stored = self._redis.get(self._last)
        return ProjectSchema(**json.loads(stored)) if stored else None

    def store(self, config: Project, schema: ProjectSchema) -> None:
        """Keep a schema; as the last one with the last version that REDCap named."""
        stored = {"configuration": config.digest, "schema": asdict(schema)}
        self._redis.set(self._current, json.dumps(stored), ex=SCHEMA_VALID_FOR)
        if not schema.version and (last := self.last()):
            schema = replace(schema, version=last.version)
        self._redis.set(self._last, json.dumps(asdict(replace(schema, read_ms=0))))

    def forget(self) -> None:
        """Have the schema read from REDCap again."""
        self._redis.delete(self._current)


@dataclass(repr=False, eq=False)
class RedcapProject:
    """A configured project. Methods may raise RedcapUnavailable, RedcapRejected or ProjectProblem."""

    name: str
    config: Project
    zone: ZoneInfo
    client: RedcapClient
    redis: RedisClient
    hasher: PhoneHasher

    # --- schema -----------------------------------------------------------------------------------

    @cached_property
    def schema(self) -> ProjectSchema:
        """Where the opt-out is written; all workers together read it from REDCap once."""
        return self._cache.of(self.config) or self._load_schema(ProjectInfo(self.client))

    @cached_property
    def _cache(self) -> SchemaCache:
        return SchemaCache(self.redis, self.name)

    def confirm_schema(self) -> None:
        """Compare the data dictionary, in one request; if it has changed, read the whole schema again."""
        info, known = ProjectInfo(self.client), self._cache.of(self.config)
        if known is None or known.dictionary != info.dictionary:
            self.invalidate_schema()
            self._load_schema(info)

    def invalidate_schema(self) -> None:
        """Read the schema from REDCap again next time."""
        self._cache.forget()
        self.__dict__.pop("schema", None)

    def schema_changed(self, *, since: datetime) -> bool:
        """Read the schema again unless it was read after `since`. Returns whether it differs from the one in use.

        Raises ProjectProblem if the project no longer fits the configuration.
        """
        used = self.schema
        if used.read_ms >= milliseconds(since):
            return False
        self.invalidate_schema()
        return self.schema.fingerprint != used.fingerprint

    @property
    def may_miss_phones(self) -> bool:
        """Whether an outdated schema can hide phones without an error: if one event's rows alone are read."""
        return bool(self._events)

    def _load_schema(self, info: ProjectInfo) -> ProjectSchema:
        for problem in inspect(self.config, info, blocking_only=True):
            raise problem.as_error()
        schema = replace(info.schema(self.config, self._version()), read_ms=milliseconds(info.began))
        self._cache.store(self.config, schema)
        return schema

    def _version(self) -> str:
        """Return REDCap's version, for links in e-mails; "" if the project sends none or REDCap does not say."""
        try:
            return self.client.version() if self.config.notify else ""
        except (RedcapUnavailable, RedcapRejected):
            return ""

    # --- reading ----------------------------------------------------------------------------------

    def read(self, records: Sequence[str]) -> dict[str, RecordState]:
        """Return the named records as they are now, in that order, without deleted ones.

        A record that is missing from the answer is requested once more: large answers have lacked rows without
        an error (REDCapR #400).
        """
        found: dict[str, RecordState] = {}
        for batch in batches(records, MAX_RECORDS_PER_REQUEST):
            found |= self._read_batch(batch)
            missing = [record for record in batch if record not in found]
            found |= self._read_batch(missing) if missing else {}
        return {record: found[record] for record in records if record in found}

    def _read_batch(self, records: Sequence[str]) -> dict[str, RecordState]:
        rows = self.client.export(self._fields, records=records, events=self._events)
        self._raise_if_columns_hidden({column for row in rows for column in row})
        self._raise_if_ids_hashed(map(self._record_id, rows))
        by_record: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_record[self._record_id(row)].append(row)
        return {record: self._state(record, by_record[record]) for record in records if record in by_record}

    def numbers(self, records: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the phone numbers of the named records as they are now, by record and hash.

        The only place where a number from REDCap leaves this class: the caller must not keep, log or publish it.
        """
        fields = [self.schema.id_field, self.config.phone_field]
        found: dict[str, dict[str, str]] = {}
        for batch in batches(records, MAX_RECORDS_PER_REQUEST):
            rows = self.client.export(fields, records=batch, events=self._events)
            self._raise_if_ids_hashed(map(self._record_id, rows))
            for row in rows:
                found.setdefault(self._record_id(row), {}).update(
                    (self.hasher(number), number) for number in self._numbers(row)
                )
        return found

    def read_all(self, changed_since: datetime | None = None) -> Iterator[RecordState]:
        """Stream every record, or those changed since a time; in batches if the server cannot export all at once.

        `changed_since` is compared with the REDCap server's wall clock, whose zone the API does not report.
        """
        states = self._stream(changed_since)
        first = list(islice(states, ENOUGH_IDS))
        self._raise_if_ids_hashed(state.record_id for state in first)
        yield from first
        yield from states

    def _stream(self, changed_since: datetime | None) -> Iterator[RecordState]:
        read: set[str] = set()
        try:
            for state in self._stream_once(changed_since):
                read.add(state.record_id)
                yield state
        except ExportTooLarge:
            if changed_since:
                raise
            yield from self._read_all_except(read)

    def _stream_once(self, changed_since: datetime | None) -> Iterator[RecordState]:
        since = changed_since.strftime(SECONDS) if changed_since else ""
        columns: set[str] = set()
        exported = self.client.export_all(self._fields, events=self._events, changed_since=since)
        for record, group in groupby(exported, key=self._record_id):
            rows = list(group)  # raises before the record is used if the export ends within it
            columns.update(*rows)
            yield self._state(record, rows)
        self._raise_if_columns_hidden(columns)

    def _read_all_except(self, read: set[str]) -> Iterator[RecordState]:
        """Read the records that an incomplete export lacks. An export of the ids alone is small."""
        ids = dict.fromkeys(self._record_id(row) for row in self.client.export_all([self.schema.id_field]))
        self._raise_if_ids_hashed(ids)
        for batch in batches((record for record in ids if record not in read), MAX_RECORDS_PER_REQUEST):
            yield from self._read_batch(batch).values()

    @property
    def _fields(self) -> list[str]:
        """The id has to be named, or it is not exported."""
        names = [self.schema.id_field, self.config.phone_field, self.config.opt_out_field]
        return names + ([self.config.opt_out_checkbox] if self.config.opt_out_checkbox else [])

    @property
    def _events(self) -> list[str]:
        """The events to export; empty for all, as phones count in all events without phone_event."""
        events = sorted(filter(None, {self.config.phone_event, self.config.opt_out_event}))
        return events if self.schema.longitudinal and self.config.phone_event else []

    def _record_id(self, row: Row) -> str:
        return str(row.get(self.schema.id_field, ""))

    def _raise_if_columns_hidden(self, columns: set[str]) -> None:
        """REDCap omits fields without export right from a 200 answer (recorded answers of REDCapTidieR)."""
        if hidden := hidden_fields(self._fields, columns):
            raise ProjectProblem(
                "redcap_hides_field",
                f"REDCap does not export {', '.join(hidden)} to this token; give its user the export right "
                '"Full Data Set" on that instrument',
            )

    def _raise_if_ids_hashed(self, records: Iterable[str]) -> None:
        """A hash does not identify a record, and a row written for it would create one."""
        if self.schema.id_is_identifier and ids_look_hashed(records):
            raise ProjectProblem(
                "redcap_hashes_record_ids",
                f"REDCap gives this token hashes instead of record ids: {self.schema.id_field} is tagged as an "
                'identifier; give the token\'s user the export right "Full Data Set" on its instrument, or remove '
                "the tag",
            )

    def _state(self, record: str, rows: Sequence[Row]) -> RecordState:
        written = next(filter(self._is_opt_out_row, reversed(rows)), {})
        return RecordState(
            record_id=record,
            phones=frozenset(chain.from_iterable(map(self._phones, rows))),
            opt_out_value=str(written.get(self.config.opt_out_field) or "").strip(),
            ticked=str(written.get(self.schema.checkbox_column)) == "1",
            in_arm=any(map(self._is_in_opt_out_arm, rows)),
        )

    def _phones(self, row: Row) -> Iterable[str]:
        return map(self.hasher, self._numbers(row))

    def _numbers(self, row: Row) -> Iterable[str]:
        text = row.get(self.config.phone_field)
        if not text or not self._is_at(row, self.config.phone_event):
            return ()
        return numbers_in(str(text), self.config.default_region)

    def _is_opt_out_row(self, row: Row) -> bool:
        repeats = row.get("redcap_repeat_instrument") or row.get("redcap_repeat_instance")
        return not repeats and self._is_at(row, self.config.opt_out_event)

    def _is_at(self, row: Row, event: str | None) -> bool:
        """Return whether a row belongs to an event. Classic projects have no events; None means any event."""
        return not self.schema.longitudinal or event is None or _event(row) == event

    def _is_in_opt_out_arm(self, row: Row) -> bool:
        arm = self.schema.arm
        return not self.schema.longitudinal or arm(_event(row)) == arm(self.config.opt_out_event)

    # --- writing ----------------------------------------------------------------------------------

    @property
    def form(self) -> FieldForm:
        """How the opt-out fields are written."""
        schema = self.schema
        return FieldForm(
            zone=self.zone,
            time_format=schema.time_format,
            missing_codes=frozenset(schema.missing_codes),
            has_checkbox=bool(schema.checkbox_column),
        )

    def unreachable_reason(self, state: RecordState, plan: Plan) -> str:
        """Return why a record that differs cannot be written without creating it in another arm, or ""."""
        if state.in_arm or not plan.writes:
            return ""
        event = self.config.opt_out_event
        return (
            f"it is not in arm {self.schema.arm(event)}, where opt_out_event {event} is; nothing was written"
        )

    def rows(self, plans: Mapping[str, tuple[RecordState, Plan]]) -> list[list[dict[str, str]]]:
        """Return import rows for what differs, in groups whose rows have the same columns."""
        groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
        for record, (state, plan) in plans.items():
            changes = self._columns(plan)
            if changes and state.in_arm:
                groups[tuple(changes)].append(self._row_of(record) | changes)
        return list(groups.values())

    def _columns(self, plan: Plan) -> dict[str, str]:
        value = {} if plan.value is None else {self.config.opt_out_field: plan.value}
        return value if plan.ticked is None else value | self._checkbox(plan.ticked)

    def _checkbox(self, ticked: bool) -> dict[str, str]:
        column = self.schema.checkbox_column
        return {column: "1" if ticked else "0"} if column else {}

    def write(self, rows: Sequence[dict[str, str]]) -> None:
        """Import rows of records that have just been read. Raises RowsRejected with a reason per record.

        Batches before a rejected one have been written then; to write them again changes nothing.
        """
        for batch in batches(rows, MAX_RECORDS_PER_REQUEST):
            self.client.import_rows(batch, self.schema.id_field)

    def restore(self, states: Sequence[RecordState]) -> None:
        """Write opt-out fields as they were read before. Raises as `write` does."""
        self.write([self._restoring_row(state) for state in states if state.in_arm])

    def _restoring_row(self, state: RecordState) -> dict[str, str]:
        value = {self.config.opt_out_field: state.opt_out_value}
        return self._row_of(state.record_id) | value | self._checkbox(state.ticked)

    def _row_of(self, record: str) -> dict[str, str]:
        event = self.config.opt_out_event if self.schema.longitudinal else None
        return {self.schema.id_field: record} | ({"redcap_event_name": event} if event else {})


def _event(row: Row) -> str:
    return str(row.get("redcap_event_name") or "")
