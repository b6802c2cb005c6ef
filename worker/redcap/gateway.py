"""One study's REDCap project in the program's own words: phones, opt-out state, writes.

Everything that is peculiar to REDCap's answers stops here: events, repeating rows, checkbox columns,
validation types.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import groupby, islice
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from shared.config import Project
from shared.domain.events import Change, Status
from shared.domain.phone import PhoneHasher, numbers_in
from shared.errors import ProjectProblem, RedcapRefused, RedcapUnavailable
from shared.ledger import keys
from shared.redis_client import RedisClient
from worker.redcap.client import MOST_RECORDS_PER_REQUEST, RedcapClient, Row, TooMuch, scrubbed

# A project's structure rarely changes; a refused import makes us read it again at once.
STRUCTURE_SECONDS = 3600

# So many record ids show whether REDCap hashes them: it hashes all or none.
ENOUGH_IDS = 100

_MINUTES, _SECONDS = "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how the opt-out is written, as REDCap's data dictionary says."""

    id_field: str
    longitudinal: bool
    time_format: str
    checkbox_column: str = ""
    project_id: str = ""
    version: str = ""
    # Codes that stand in a field for "there is no value".
    missing_codes: Sequence[str] = ()
    # Whether the record id is tagged as an identifier, so that exports without the full right hash it.
    id_is_identifier: bool = False
    # The arm of each event; empty in a classic project.
    arms: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordState:
    """A record as it is now: the phones that it holds and what its opt-out fields say."""

    record_id: str
    phones: frozenset[str]
    opt_out_value: str
    ticked: bool
    # Whether it is in the arm of the opt-out event. A row for another arm would create the record there.
    in_arm: bool = True


def _is_set(flag: object) -> bool:
    """Flags come as 0 and 1; other clients have met them as text."""
    return str(flag).lower() in {"1", "true"}


def known_target(redis: RedisClient, project: str) -> Target | None:
    """What REDCap last said about a project, without asking it."""
    stored = redis.get(keys.structure(project))
    return Target(**json.loads(stored)) if stored else None


def time_format(field: Row) -> str:
    """How a time is written into a field, for strftime. Raises ProjectProblem where it holds none."""
    name, kind = field["field_name"], scrubbed(field["field_type"])
    if kind != "text":
        raise ProjectProblem(
            "opt_out_field_is_no_text",
            f"opt_out_field: {name} is a {kind} field and cannot hold a time; name a text field "
            "with validation datetime_seconds_ymd",
        )
    validation = scrubbed(str(field.get("text_validation_type_or_show_slider_number") or ""))
    if validation == "" or validation.startswith("datetime_seconds_"):
        return _SECONDS
    if validation.startswith("datetime_"):
        return _MINUTES  # REDCap takes no seconds there
    raise ProjectProblem(
        "opt_out_field_holds_no_time",
        f"opt_out_field: {name} has validation {validation}, which cannot hold date and time; "
        "set it to datetime_seconds_ymd (or another datetime) in REDCap's Online Designer",
    )


def checkbox_column(fields: dict[str, Row], name: str | None) -> str:
    """The import column of a checkbox' choice 1, or "" without a name. Raises ProjectProblem where it has none."""
    if name is None:
        return ""
    choices = str(fields[name].get("select_choices_or_calculations") or "")
    codes = {choice.split(",", 1)[0].strip() for choice in choices.split("|")}
    if fields[name]["field_type"] != "checkbox" or "1" not in codes:
        raise ProjectProblem(
            "opt_out_checkbox_unfit",
            f"opt_out_checkbox: {name} is no checkbox field with a choice coded 1; add that choice",
        )
    return f"{name}___1"


def _portions(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """What one request may name, at a time."""
    for start in range(0, len(items), MOST_RECORDS_PER_REQUEST):
        yield items[start : start + MOST_RECORDS_PER_REQUEST]


def missing_data_codes(project: Row) -> list[str]:
    """The codes that stand for "no value" in any field; they come as "code, label | code, label"."""
    choices = str(project.get("missing_data_codes") or "").replace("\n", "|").split("|")
    return [code for choice in choices if (code := choice.split(",", 1)[0].strip())]


def arm_of(event: str) -> str:
    """An event's arm by its unique name: `enrolment_arm_1`, or `enrolment_arm_1b` where two have the same label."""
    found = re.search(r"_arm_(\d+)[a-z]*$", event)
    return found[1] if found else ""


def arms_of(events: Iterable[Row]) -> dict[str, str]:
    """The arm of each event, by its unique name."""
    names = ((event, str(event["unique_event_name"])) for event in events)
    return {name: str(event.get("arm_num") or arm_of(name)) for event, name in names}


def are_hashed(records: Iterable[str]) -> bool:
    """Whether all record ids look like what REDCap puts in place of identifiers: 32 hex digits (REDCapR #74)."""
    ids = list(records)
    return bool(ids) and all(re.fullmatch(r"[0-9a-f]{32}", record) for record in ids)


def is_identifier(field: Row) -> bool:
    """Whether a field of the data dictionary is tagged as an identifier."""
    return str(field.get("identifier") or "").lower() in {"y", "1"}


def is_repeating(rows: Iterable[Row], form: str, event: str | None) -> bool:
    """Whether a form repeats at an event. A row without a form is about the whole event (PyCap's doctest)."""
    return any(
        (row.get("event_name") or event) == event and (row.get("form_name") or form) == form for row in rows
    )


def is_a_time(value: str) -> bool:
    """Whether a field's value is written as date and time, as REDCap exports it."""
    return _read_time(value) is not None


def _read_time(value: str) -> tuple[datetime, str] | None:
    for form in (_SECONDS, _MINUTES):
        with suppress(ValueError):
            return datetime.strptime(value, form), form
    return None


class RedcapProject:
    """A configured project. Methods may raise RedcapUnavailable, RedcapRefused or ProjectProblem."""

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
    def target(self) -> Target:
        """Where the opt-out is written; asked of REDCap at most once an hour by all workers together."""
        known = known_target(self._redis, self.name)
        if known is not None:
            return known
        target = self._read_target()
        self._redis.set(keys.structure(self.name), json.dumps(asdict(target)), ex=STRUCTURE_SECONDS)
        return target

    def forget_target(self) -> None:
        """Ask REDCap again next time."""
        self._redis.delete(keys.structure(self.name))
        self.__dict__.pop("target", None)

    def _read_target(self) -> Target:
        project = self._client.structure_object("project")
        self._check_project_id(str(project.get("project_id", "")))
        metadata = self._client.structure_list("metadata", "field_name", "field_type", "form_name")
        fields = {row["field_name"]: row for row in metadata}
        for key in ("phone_field", "opt_out_field", "opt_out_checkbox"):
            name = getattr(self.config, key)
            if name is not None and name not in fields:
                raise RedcapRefused(
                    "redcap_no_such_field",
                    f"{key}: the project has no field {name}; mend the name in the configuration or add the field",
                )
        longitudinal = _is_set(project.get("is_longitudinal"))
        arms = self._read_arms() if longitudinal else {}
        if _is_set(project.get("has_repeating_instruments_or_events")):
            self._check_not_repeating(fields)
        return Target(
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
        except (RedcapUnavailable, RedcapRefused):
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
        arms = arms_of(self._client.structure_list("event", "unique_event_name"))
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
        rows = self._client.structure_list("repeatingFormsEvents")
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
        for portion in _portions(records):
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
        since = changed_since.strftime(_SECONDS) if changed_since else ""
        seen: set[str] = set()
        columns: set[str] = set()
        try:
            rows = self._client.export_all(self._fields, events=self._events, changed_since=since)
            for record, group in groupby(rows, key=self._record_id):
                kept = list(group)
                seen.add(record)  # only now: where the export breaks off within a record, it is read again
                columns.update(*kept)
                yield self._state(record, kept)
        except TooMuch:
            if changed_since:
                raise
            yield from self._read_in_portions(seen)
        else:
            self._refuse_hidden_columns(columns)

    def _read_in_portions(self, seen: set[str]) -> Iterator[RecordState]:
        """The records that a broken-off export did not bring. Their ids alone are a small export."""
        ids = dict.fromkeys(self._record_id(row) for row in self._client.export_all([self.target.id_field]))
        self._refuse_hashed_ids(ids)
        left = [record for record in ids if record not in seen]
        for portion in _portions(left):
            yield from self._read_once(portion).values()

    @property
    def _fields(self) -> list[str]:
        """The id is not exported unless it is named (REDCapR's data without record id)."""
        names = [self.target.id_field, self.config.phone_field, self.config.opt_out_field]
        return names + ([self.config.opt_out_checkbox] if self.config.opt_out_checkbox else [])

    @property
    def _events(self) -> list[str]:
        if (
            not self.target.longitudinal
            or self.config.phone_event is None
            or self.config.opt_out_event is None
        ):
            return []
        return sorted({self.config.phone_event, self.config.opt_out_event})

    def _record_id(self, row: Row) -> str:
        return str(row.get(self.target.id_field, ""))

    def _refuse_hidden_columns(self, columns: set[str]) -> None:
        """Fields without export right are left out of a 200 answer silently (recorded answers of REDCapTidieR)."""
        needed = [self.target.id_field, self.config.phone_field, self.config.opt_out_field]
        hidden = [name for name in (*needed, self.target.checkbox_column) if name and name not in columns]
        if columns and hidden:
            raise ProjectProblem(
                "redcap_hides_field",
                f"REDCap does not export {', '.join(hidden)} to this token: give its user the export right "
                '"Full Data Set" on that instrument',
            )

    def _refuse_hashed_ids(self, records: Iterable[str]) -> None:
        """A hash leads to no record, and a row written under it would make one."""
        if self.target.id_is_identifier and are_hashed(records):
            raise ProjectProblem(
                "redcap_hashes_record_ids",
                f"REDCap gives this token hashes in place of record ids: {self.target.id_field} is tagged as an "
                'identifier; give the token\'s user the export right "Full Data Set" on its instrument, or take the '
                "tag off",
            )

    def _state(self, record: str, rows: Iterable[Row]) -> RecordState:
        target = self.target
        phones: set[str] = set()
        value, ticked, in_arm = "", False, not target.longitudinal
        for row in rows:
            event = str(row.get("redcap_event_name") or "")
            in_arm = in_arm or self._arm(event) == self._arm(self.config.opt_out_event or "")
            if self.config.phone_event is None or not target.longitudinal or event == self.config.phone_event:
                phones.update(self._hashes(row.get(self.config.phone_field)))
            if self._is_target_row(row, event):
                value = str(row.get(self.config.opt_out_field) or "").strip()
                ticked = str(row.get(target.checkbox_column) or "0") == "1"
        return RecordState(
            record_id=record, phones=frozenset(phones), opt_out_value=value, ticked=ticked, in_arm=in_arm
        )

    def _arm(self, event: str) -> str:
        """An event's arm; one that is newer than what we know of the project tells it by its name."""
        return self.target.arms.get(event) or arm_of(event)

    def _is_target_row(self, row: Row, event: str) -> bool:
        repeats = row.get("redcap_repeat_instrument") or row.get("redcap_repeat_instance")
        return not repeats and (not self.target.longitudinal or event == self.config.opt_out_event)

    def _hashes(self, text: Any) -> Iterator[str]:
        if text:
            yield from map(self._hasher, numbers_in(str(text), self.config.default_region))

    # --- what should be there, and writing it -------------------------------------------------------

    def time_text(self, status: Status) -> str:
        """What the opt-out field should hold: the time of the STOP in the project's zone, or nothing."""
        if status.change is Change.START:
            return ""
        return status.occurred_at.astimezone(self._zone).strftime(self.target.time_format)

    def shows(self, state: RecordState, status: Status) -> bool:
        """Whether a record's fields say what the status says, as far as there is a place for them."""
        return not (state.in_arm and self._difference(state, status))

    def out_of_reach(self, state: RecordState, status: Status) -> str:
        """Why a record that differs cannot be written without creating it elsewhere, or ""."""
        if state.in_arm or not self._difference(state, status):
            return ""
        event = self.config.opt_out_event or ""
        return f"it is not in arm {self._arm(event)}, where opt_out_event {event} is; nothing was written"

    def _difference(self, state: RecordState, status: Status) -> dict[str, str]:
        """Columns to write, with their values."""
        target = self.target
        changes: dict[str, str] = {}
        if self._field_differs(state, status):
            changes[self.config.opt_out_field] = self.time_text(status)
        if target.checkbox_column and state.ticked != (status.change is Change.STOP):
            changes[target.checkbox_column] = "1" if status.change is Change.STOP else "0"
        return changes

    def _field_differs(self, state: RecordState, status: Status) -> bool:
        # A missing data code says that there is no value.
        value = "" if state.opt_out_value in self.target.missing_codes else state.opt_out_value
        if status.change is Change.START or not value:
            return value != self.time_text(status)
        # Somebody who is opted out and sends STOP again stays opted out since the first time; but a time
        # from before the last START belongs to an opt-out that has ended.
        return value != self.time_text(status) and self._is_before(value, status.last_start_ms)

    def _is_before(self, value: str, moment_ms: int) -> bool:
        read = _read_time(value)
        if read is None:
            return False  # in a form of the study's own: it is theirs
        shown, form = read
        since_ms = shown.replace(tzinfo=self._zone).timestamp() * 1000
        return since_ms < moment_ms - (60_000 if form == _MINUTES else 1000)

    def rows_to_write(self, wanted: dict[str, tuple[RecordState, Status]]) -> list[list[dict[str, str]]]:
        """Import rows for what differs, in groups whose rows have the same columns."""
        target = self.target
        groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
        for record, (state, status) in wanted.items():
            changes = self._difference(state, status)
            if changes and state.in_arm:
                row = {target.id_field: record}
                if target.longitudinal and self.config.opt_out_event:
                    row["redcap_event_name"] = self.config.opt_out_event
                groups[tuple(changes)].append(row | changes)
        return list(groups.values())

    def write(self, rows: Sequence[dict[str, str]]) -> None:
        """Import rows of records that have just been read. Raises RowsRefused with a reason per record.

        Portions before a refused one are written then; to write them again changes nothing.
        """
        for portion in _portions(rows):
            self._client.import_rows(portion, self.target.id_field)

    def put_back(self, states: Sequence[RecordState]) -> None:
        """Write opt-out fields as they were read before. Raises as `write` does."""
        target, rows = self.target, []
        for state in states:
            if not state.in_arm:
                continue
            row = {target.id_field: state.record_id}
            if target.longitudinal and self.config.opt_out_event:
                row["redcap_event_name"] = self.config.opt_out_event
            row[self.config.opt_out_field] = state.opt_out_value
            if target.checkbox_column:
                row[target.checkbox_column] = "1" if state.ticked else "0"
            rows.append(row)
        self.write(rows)
