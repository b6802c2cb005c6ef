"""One study's REDCap project in the program's own words: phones, opt-out state, writes.

Everything that is peculiar to REDCap's answers stops here: events, repeating rows, checkbox columns,
validation types.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from itertools import groupby, islice
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from shared.config import Project
from shared.domain.events import Change, Status
from shared.domain.phone import PhoneHasher, numbers_in
from shared.errors import ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.ledger import keys
from shared.redis_client import RedisClient
from worker.redcap.client import MAX_RECORDS_PER_REQUEST, ExportTooLarge, RedcapClient, Row
from worker.redcap.schema import (
    MINUTES,
    SECONDS,
    ProjectSchema,
    arm_of,
    arms_of,
    checkbox_column,
    ids_look_hashed,
    is_identifier,
    is_repeating,
    is_set,
    missing_data_codes,
    read_time,
    time_format,
)

# A project's structure rarely changes; a refused import makes us read it again at once.
STRUCTURE_SECONDS = 3600

# So many record ids show whether REDCap hashes them: it hashes all or none.
ENOUGH_IDS = 100

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordState:
    """A record as it is now: the phones that it holds and what its opt-out fields say."""

    record_id: str
    phones: frozenset[str]
    opt_out_value: str
    ticked: bool
    # Whether it is in the arm of the opt-out event. A row for another arm would create the record there.
    in_arm: bool = True


def cached_schema(redis: RedisClient, project: str) -> ProjectSchema | None:
    """What REDCap last said about a project, without asking it."""
    stored = redis.get(keys.structure(project))
    return ProjectSchema(**json.loads(stored)) if stored else None


def batches(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """What one request may name, at a time."""
    for start in range(0, len(items), MAX_RECORDS_PER_REQUEST):
        yield items[start : start + MAX_RECORDS_PER_REQUEST]


class RedcapProject:
    """A configured project. Methods may raise RedcapUnavailable, RedcapRejected or ProjectProblem."""

    def __init__(
        self,
        name: str,
        config: Project,
        zone: ZoneInfo,
        *,
        client: RedcapClient,
        redis: RedisClient,
        hasher: PhoneHasher,
    ) -> None:
        self.name = name
        self.config = config
        self._zone = zone
        self._client = client
        self._redis = redis
        self._hasher = hasher

    # --- structure --------------------------------------------------------------------------------

    @cached_property
    def schema(self) -> ProjectSchema:
        """Where the opt-out is written; asked of REDCap at most once an hour by all workers together."""
        known = cached_schema(self._redis, self.name)
        if known is not None:
            return known
        schema = self._load_schema()
        self._redis.set(keys.structure(self.name), json.dumps(asdict(schema)), ex=STRUCTURE_SECONDS)
        return schema

    def invalidate_schema(self) -> None:
        """Ask REDCap again next time."""
        self._redis.delete(keys.structure(self.name))
        self.__dict__.pop("schema", None)

    def _load_schema(self) -> ProjectSchema:
        project = self._client.get_object("project")
        self._check_project_id(str(project.get("project_id", "")))
        metadata = self._client.get_list("metadata", "field_name", "field_type", "form_name")
        fields = {row["field_name"]: row for row in metadata}
        for key in ("phone_field", "opt_out_field", "opt_out_checkbox"):
            name = getattr(self.config, key)
            if name is not None and name not in fields:
                raise RedcapRejected(
                    "redcap_no_such_field",
                    f"{key}: the project has no field {name}; mend the name in the configuration or add the field",
                )
        longitudinal = is_set(project.get("is_longitudinal"))
        arms = self._read_arms() if longitudinal else {}
        if is_set(project.get("has_repeating_instruments_or_events")):
            self._check_not_repeating(fields)
        return ProjectSchema(
            # The record id is the first field of the data dictionary (REDCap API help, "Export Metadata").
            id_field=metadata[0]["field_name"],
            longitudinal=longitudinal,
            time_format=time_format(fields[self.config.opt_out_field]),
            checkbox_column=checkbox_column(fields, self.config.opt_out_checkbox),
            project_id=str(project.get("project_id", "")),
            version=self._version(),
            missing_codes=missing_data_codes(project),
            id_is_identifier=is_identifier(metadata[0]),
            arms=arms,
        )

    def _version(self) -> str:
        """REDCap's version, for links in e-mails; empty where none is sent, or REDCap does not say."""
        try:
            return self._client.version() if self.config.notify else ""
        except (RedcapUnavailable, RedcapRejected):
            return ""

    def _check_project_id(self, seen: str) -> None:
        wanted = self.config.redcap_project_id
        if wanted is not None and seen != str(wanted):
            raise ProjectProblem(
                "redcap_wrong_project",
                f"redcap_project_id: {wanted}, but redcap_token opens project {seen}; put the right token there",
            )

    def _read_arms(self) -> dict[str, str]:
        """The arm of every event. Raises ProjectProblem where the configured events do not fit."""
        arms = arms_of(self._client.get_list("event", "unique_event_name"))
        self._check_events(arms)
        return arms

    def _check_events(self, arms: Mapping[str, str]) -> None:
        phone_event, opt_out_event, listed = (
            self.config.phone_event,
            self.config.opt_out_event,
            ", ".join(sorted(arms)),
        )
        if opt_out_event is None:
            raise ProjectProblem(
                "opt_out_event_missing",
                f"opt_out_event: missing, but the project is longitudinal; name one of: {listed}",
            )
        for key, name in (("phone_event", phone_event), ("opt_out_event", opt_out_event)):
            if name is not None and name not in arms:
                raise ProjectProblem(
                    "no_such_event", f"{key}: the project has no event {name}; name one of: {listed}"
                )
        if phone_event is not None and arms[phone_event] != arms[opt_out_event]:
            raise ProjectProblem(
                "events_in_two_arms",
                f"phone_event: {phone_event} is in another arm than opt_out_event {opt_out_event}; name two events "
                "of one arm (each arm can have a [projects.NAME] table of its own)",
            )

    def _check_not_repeating(self, fields: Mapping[str, Row]) -> None:
        """A checkbox counts as much as the field: REDCap would refuse both in one import."""
        rows = self._client.get_list("repeatingFormsEvents")
        for key in ("opt_out_field", "opt_out_checkbox"):
            name = getattr(self.config, key)
            form = str(fields[name]["form_name"]) if name else ""
            if form and is_repeating(rows, form, self.config.opt_out_event):
                raise ProjectProblem(
                    "opt_out_field_repeats",
                    f"{key}: the instrument {form} of {name}, or its event, is set up to repeat, so that there is no "
                    "one field to write; move the field to an instrument and event that do not repeat",
                )

    # --- reading ----------------------------------------------------------------------------------

    def read(self, records: Sequence[str]) -> dict[str, RecordState]:
        """The named records as they are now; deleted ones are left out.

        A record that is missing from the answer is asked for once more: large answers have lacked rows
        without a word (REDCapR #400).
        """
        found: dict[str, RecordState] = {}
        for portion in batches(records):
            found |= self._read_portion(portion)
        return found

    def _read_portion(self, records: Sequence[str]) -> dict[str, RecordState]:
        found = self._read_once(records)
        missing = [record for record in records if record not in found]
        return found | self._read_once(missing) if missing else found

    def _read_once(self, records: Sequence[str]) -> dict[str, RecordState]:
        rows = self._client.export(self._fields, records=records, events=self._events)
        self._refuse_hidden_columns({column for row in rows for column in row})
        self._refuse_hashed_ids(map(self._record_id, rows))
        by_record: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_record[self._record_id(row)].append(row)
        wanted = set(records)
        return {name: self._state(name, group) for name, group in by_record.items() if name in wanted}

    def read_all(self, changed_since: datetime | None = None) -> Iterator[RecordState]:
        """Every record, or those changed since a time, streamed; in portions where the server cannot do it at once.

        `changed_since` is compared with the REDCap server's wall clock, whose zone no API call tells.
        """
        states = self._stream(changed_since)
        first = list(islice(states, ENOUGH_IDS))
        self._refuse_hashed_ids(state.record_id for state in first)
        yield from first
        yield from states

    def _stream(self, changed_since: datetime | None) -> Iterator[RecordState]:
        since = changed_since.strftime(SECONDS) if changed_since else ""
        seen: set[str] = set()
        columns: set[str] = set()
        try:
            rows = self._client.export_all(self._fields, events=self._events, changed_since=since)
            for record, group in groupby(rows, key=self._record_id):
                kept = list(group)
                seen.add(record)  # only now: where the export breaks off within a record, it is read again
                columns.update(*kept)
                yield self._state(record, kept)
        except ExportTooLarge:
            if changed_since:
                raise
            yield from self._read_inbatches(seen)
        else:
            self._refuse_hidden_columns(columns)

    def _read_inbatches(self, seen: set[str]) -> Iterator[RecordState]:
        """The records that a broken-off export did not bring. Their ids alone are a small export."""
        ids = dict.fromkeys(self._record_id(row) for row in self._client.export_all([self.schema.id_field]))
        self._refuse_hashed_ids(ids)
        left = [record for record in ids if record not in seen]
        for portion in batches(left):
            yield from self._read_once(portion).values()

    @property
    def _fields(self) -> list[str]:
        """The id is not exported unless it is named (REDCapR's data without record id)."""
        names = [self.schema.id_field, self.config.phone_field, self.config.opt_out_field]
        return names + ([self.config.opt_out_checkbox] if self.config.opt_out_checkbox else [])

    @property
    def _events(self) -> list[str]:
        if (
            not self.schema.longitudinal
            or self.config.phone_event is None
            or self.config.opt_out_event is None
        ):
            return []
        return sorted({self.config.phone_event, self.config.opt_out_event})

    def _record_id(self, row: Row) -> str:
        return str(row.get(self.schema.id_field, ""))

    def _refuse_hidden_columns(self, columns: set[str]) -> None:
        """Fields without export right are left out of a 200 answer silently (recorded answers of REDCapTidieR)."""
        needed = [self.schema.id_field, self.config.phone_field, self.config.opt_out_field]
        hidden = [name for name in (*needed, self.schema.checkbox_column) if name and name not in columns]
        if columns and hidden:
            raise ProjectProblem(
                "redcap_hides_field",
                f"REDCap does not export {', '.join(hidden)} to this token: give its user the export right "
                '"Full Data Set" on that instrument',
            )

    def _refuse_hashed_ids(self, records: Iterable[str]) -> None:
        """A hash leads to no record, and a row written under it would make one."""
        if self.schema.id_is_identifier and ids_look_hashed(records):
            raise ProjectProblem(
                "redcap_hashes_record_ids",
                f"REDCap gives this token hashes in place of record ids: {self.schema.id_field} is tagged as an "
                'identifier; give the token\'s user the export right "Full Data Set" on its instrument, or take the '
                "tag off",
            )

    def _state(self, record: str, rows: Iterable[Row]) -> RecordState:
        schema = self.schema
        phones: set[str] = set()
        value, ticked, in_arm = "", False, not schema.longitudinal
        for row in rows:
            event = str(row.get("redcap_event_name") or "")
            in_arm = in_arm or self._arm(event) == self._arm(self.config.opt_out_event or "")
            if self.config.phone_event is None or not schema.longitudinal or event == self.config.phone_event:
                phones.update(self._hashes(row.get(self.config.phone_field)))
            if self._is_target_row(row, event):
                value = str(row.get(self.config.opt_out_field) or "").strip()
                ticked = str(row.get(schema.checkbox_column) or "0") == "1"
        return RecordState(
            record_id=record, phones=frozenset(phones), opt_out_value=value, ticked=ticked, in_arm=in_arm
        )

    def _arm(self, event: str) -> str:
        """An event's arm; one that is newer than what we know of the project tells it by its name."""
        return self.schema.arms.get(event) or arm_of(event)

    def _is_target_row(self, row: Row, event: str) -> bool:
        repeats = row.get("redcap_repeat_instrument") or row.get("redcap_repeat_instance")
        return not repeats and (not self.schema.longitudinal or event == self.config.opt_out_event)

    def _hashes(self, text: Any) -> Iterator[str]:
        if text:
            yield from map(self._hasher, numbers_in(str(text), self.config.default_region))

    # --- what should be there, and writing it -------------------------------------------------------

    def time_text(self, status: Status) -> str:
        """What the opt-out field should hold: the time of the STOP in the project's zone, or nothing."""
        if status.change is Change.START:
            return ""
        return status.occurred_at.astimezone(self._zone).strftime(self.schema.time_format)

    def matches(self, state: RecordState, status: Status) -> bool:
        """Whether a record's fields say what the status says, as far as there is a place for them."""
        return not (state.in_arm and self._difference(state, status))

    def unreachable_reason(self, state: RecordState, status: Status) -> str:
        """Why a record that differs cannot be written without creating it elsewhere, or ""."""
        if state.in_arm or not self._difference(state, status):
            return ""
        event = self.config.opt_out_event or ""
        return f"it is not in arm {self._arm(event)}, where opt_out_event {event} is; nothing was written"

    def _difference(self, state: RecordState, status: Status) -> dict[str, str]:
        """Columns to write, with their values."""
        schema = self.schema
        changes: dict[str, str] = {}
        if self._field_differs(state, status):
            changes[self.config.opt_out_field] = self.time_text(status)
        if schema.checkbox_column and state.ticked != (status.change is Change.STOP):
            changes[schema.checkbox_column] = "1" if status.change is Change.STOP else "0"
        return changes

    def _field_differs(self, state: RecordState, status: Status) -> bool:
        # A missing data code says that there is no value.
        value = "" if state.opt_out_value in self.schema.missing_codes else state.opt_out_value
        if status.change is Change.START or not value:
            return value != self.time_text(status)
        # Somebody who is opted out and sends STOP again stays opted out since the first time; but a time
        # from before the last START belongs to an opt-out that has ended.
        return value != self.time_text(status) and self._is_before(value, status.last_start_ms)

    def _is_before(self, value: str, moment_ms: int) -> bool:
        read = read_time(value)
        if read is None:
            return False  # in a form of the study's own: it is theirs
        shown, form = read
        since_ms = shown.replace(tzinfo=self._zone).timestamp() * 1000
        return since_ms < moment_ms - (60_000 if form == MINUTES else 1000)

    def rows_to_write(self, wanted: dict[str, tuple[RecordState, Status]]) -> list[list[dict[str, str]]]:
        """Import rows for what differs, in groups whose rows have the same columns."""
        schema = self.schema
        groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
        for record, (state, status) in wanted.items():
            changes = self._difference(state, status)
            if changes and state.in_arm:
                row = {schema.id_field: record}
                if schema.longitudinal and self.config.opt_out_event:
                    row["redcap_event_name"] = self.config.opt_out_event
                groups[tuple(changes)].append(row | changes)
        return list(groups.values())

    def write(self, rows: Sequence[dict[str, str]]) -> None:
        """Import rows of records that have just been read. Raises RowsRejected with a reason per record.

        Portions before a refused one are written then; to write them again changes nothing.
        """
        for portion in batches(rows):
            self._client.import_rows(portion, self.schema.id_field)

    def restore(self, states: Sequence[RecordState]) -> None:
        """Write opt-out fields as they were read before. Raises as `write` does."""
        schema, rows = self.schema, []
        for state in states:
            if not state.in_arm:
                continue
            row = {schema.id_field: state.record_id}
            if schema.longitudinal and self.config.opt_out_event:
                row["redcap_event_name"] = self.config.opt_out_event
            row[self.config.opt_out_field] = state.opt_out_value
            if schema.checkbox_column:
                row[schema.checkbox_column] = "1" if state.ticked else "0"
            rows.append(row)
        self.write(rows)
