"""A REDCap project in memory: dictionary, events, rights, records and log. It never speaks HTTP."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple


class Access(StrEnum):
    """What a token's user may export of one form."""

    FULL = "full"
    REMOVE_IDENTIFIERS = "remove_identifiers"
    DEIDENTIFIED = "deidentified"
    NONE = "none"


class Place(NamedTuple):
    """Where in a record a value stands; all blank in a classic project without repeats."""

    event: str = ""
    instrument: str = ""
    instance: int = 0


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    form: str
    kind: str = "text"
    validation: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    label: str = ""
    identifier: bool = False
    annotation: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    unique_name: str
    label: str
    forms: tuple[str, ...]
    arm: int = 1


@dataclass(frozen=True, slots=True)
class Repeating:
    """A repeating form, or with a blank form an event that repeats as a whole."""

    form: str = ""
    event: str = ""
    label: str = ""


@dataclass(slots=True)
class Rights:
    """What the token's user may do. `forms` names only the forms whose export right is not full."""

    api_export: bool = True
    api_import: bool = True
    record_create: bool = True
    record_delete: bool = True
    data_access_groups: bool = True
    logging: bool = True
    user_rights: bool = False
    dag: str | None = None
    forms: dict[str, Access] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Column:
    """One export column: a field, one code of a checkbox, or the status of a form."""

    name: str
    form: str
    source: Field | None = None
    code: str = ""

    @property
    def untouched(self) -> str:
        """What an untouched cell exports (REDCapR issue 420: "0" for checkboxes and form status)."""
        return "0" if self.source is None or self.code else ""


@dataclass(frozen=True, slots=True)
class LogRow:
    at: datetime
    username: str
    kind: str
    action: str
    details: str = ""
    record: str = ""


Clock = Callable[[], datetime]
Values = dict[str, str]
NO_VALUES: Values = {}


def utc_now() -> datetime:
    return datetime.now(UTC)


def checkbox_column(field_name: str, code: str) -> str:
    """`field___code`; what is no letter or digit becomes `_` (redcapAPI: code -4 is field____4)."""
    return f"{field_name}___{re.sub('[^a-z0-9]', '_', code.lower())}"


def natural_order(record_id: str) -> list[tuple[int, int, str]]:
    """Sorts "2" before "10" without ever taking "1017" and "001017" for the same id (REDCapR issue 241)."""
    parts = re.split(r"(\d+)", record_id)
    key = [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
    return [*key, (2, 0, record_id)]


@dataclass
class Project:
    title: str
    fields: tuple[Field, ...]
    project_id: int = 101
    events: tuple[Event, ...] = ()
    repeating: tuple[Repeating, ...] = ()
    dags: tuple[str, ...] = ()
    survey_forms: frozenset[str] = frozenset()
    arm_names: Mapping[int, str] = field(default_factory=lambda: {1: "Arm 1"})
    rights: Rights = field(default_factory=Rights)
    username: str = "api_user"
    purpose: int = 0  # practice (PyCap creates its test projects so)
    missing_data_codes: Mapping[str, str] = field(default_factory=dict)
    # Whether an import error names `record (event)` in its first cell: sibispy (sibis-platform) parses
    # that, ABCD-STUDY's redcap_put.js recorded the plain id of a longitudinal project.
    errors_name_event: bool = False
    clock: Clock = utc_now

    def __post_init__(self) -> None:
        self.records: dict[str, dict[Place, Values]] = {}
        self.record_dags: dict[str, str] = {}
        self.locked_records: set[str] = set()
        self.locked_forms: set[tuple[str, str, str]] = set()  # record id, event, form
        self.log: list[LogRow] = []  # oldest first
        self.lock = threading.RLock()  # guards the data
        self.write_lock = threading.Lock()  # one import at a time
        self._ordered: list[str] | None = None
        self._index_dictionary()
        self._log("manage", "Manage/Design", "Create project")

    def _index_dictionary(self) -> None:
        self.field_by_name = {each.name: each for each in self.fields}
        self.forms = tuple(dict.fromkeys(each.form for each in self.fields))
        self.columns = {column.name: column for column in self._build_columns()}
        self._designated = {(event.unique_name, form) for event in self.events for form in event.forms}
        self._repeating = {(each.event, each.form) for each in self.repeating}

    def _build_columns(self) -> Iterator[Column]:
        for form in self.forms:
            for each in self.fields:
                if each.form != form or each.kind == "descriptive":
                    continue
                if each.kind == "checkbox":
                    for code, _ in each.choices:
                        yield Column(checkbox_column(each.name, code), form, each, code)
                else:
                    yield Column(each.name, form, each)
            yield Column(f"{form}_complete", form)

    # --- shape -------------------------------------------------------------------------------------

    @property
    def id_field(self) -> str:
        return self.fields[0].name

    @property
    def is_longitudinal(self) -> bool:
        return bool(self.events)

    @property
    def event_names(self) -> tuple[str, ...]:
        return tuple(event.unique_name for event in self.events) or ("",)

    def change_field(self, name: str, /, **changes: object) -> None:
        """Edits the data dictionary: `validation=`, `kind=`, `name=` (the old name's values stay behind)."""
        with self.lock:
            self.fields = tuple(
                replace(each, **changes) if each.name == name else each  # type: ignore[arg-type]
                for each in self.fields
            )
            self._index_dictionary()
            self._log("manage", "Manage/Design", "Edit project field")

    def is_designated(self, event: str, form: str) -> bool:
        return not self.events or (event, form) in self._designated

    def form_repeats(self, event: str, form: str) -> bool:
        return (event, form) in self._repeating

    def event_repeats(self, event: str) -> bool:
        return (event, "") in self._repeating

    def rename_event(self, old: str, new: str) -> None:
        """A renamed event gets a new unique name; its data stay."""
        with self.lock:
            self.events = tuple(
                replace(each, unique_name=new) if each.unique_name == old else each for each in self.events
            )
            self.repeating = tuple(
                replace(each, event=new) if each.event == old else each for each in self.repeating
            )
            self._index_dictionary()
            for record_id, places in self.records.items():
                self.records[record_id] = {
                    place._replace(event=new) if place.event == old else place: values
                    for place, values in places.items()
                }

    def holds(self, place: Place, form: str) -> bool:
        """Whether a form has its values at this place."""
        if place.instrument:
            return form == place.instrument
        return self.is_designated(place.event, form) and not self.form_repeats(place.event, form)

    def event_label(self, name: str) -> str:
        event = next(each for each in self.events if each.unique_name == name)
        return f"{event.label} (Arm {event.arm}: {self.arm_names[event.arm]})"

    def place_for(self, name: str, event: str | None = None, instance: int | None = None) -> Place:
        """Where a field stands: its first designated event, and instance 1 where it repeats."""
        form = self.columns[name].form
        if event is None:
            event = next(each for each in self.event_names if self.is_designated(each, form))
        if self.form_repeats(event, form):
            return Place(event, form, instance or 1)
        return Place(event, "", (instance or 1) if self.event_repeats(event) else 0)

    # --- records -----------------------------------------------------------------------------------

    def add_record(
        self, record_id: str, *, event: str | None = None, dag: str | None = None, **values: str
    ) -> None:
        """Stores a record as a person at the keyboard would; each value goes to its own place."""
        first = self.event_names[0] if event is None else event
        by_place: dict[Place, Values] = {}
        for name, value in values.items():
            by_place.setdefault(self.place_for(name, event), {})[name] = value
        with self.lock:
            for place, some in by_place.items() or [(Place(first), NO_VALUES)]:
                self.write(record_id, place, some)
            if dag is not None:
                self.record_dags[record_id] = dag

    def value(
        self, record_id: str, name: str, *, event: str | None = None, instance: int | None = None
    ) -> str:
        place = self.place_for(name, event, instance)
        return self.records[record_id].get(place, NO_VALUES).get(name, self.columns[name].untouched)

    def set_value(
        self,
        record_id: str,
        name: str,
        value: str,
        *,
        event: str | None = None,
        instance: int | None = None,
    ) -> None:
        """Changes one value by hand, past all validation, and logs it."""
        self.write(record_id, self.place_for(name, event, instance), {name: value})

    def delete_record(self, record_id: str, *, event: str = "", via: str = "") -> None:
        """Deletes a record, or what it has in one event (PyCap's test_delete_records_from_one_instrument_only)."""
        with self.lock:
            places = self.records[record_id]
            left = {place: values for place, values in places.items() if event and place.event != event}
            if left:
                self.records[record_id] = left
                self._log("record_edit", f"Update record{via} {record_id}", record=record_id)
                return
            del self.records[record_id]
            self.record_dags.pop(record_id, None)
            self._ordered = None
            self._log("record_delete", f"Delete record{via} {record_id}", record=record_id)

    def rename_record(self, record_id: str, new: str) -> None:
        """Renames a record; what was logged about it moves to the new id."""
        with self.lock:
            self.records[new] = self.records.pop(record_id)
            if record_id in self.record_dags:
                self.record_dags[new] = self.record_dags.pop(record_id)
            self._ordered = None

    def lock_record(self, record_id: str) -> None:
        self.locked_records.add(record_id)

    def lock_form(self, record_id: str, form: str, event: str = "") -> None:
        self.locked_forms.add((record_id, event, form))

    def write(self, record_id: str, place: Place, values: Mapping[str, str], *, via: str = "") -> None:
        """Stores what differs. An unchanged value leaves no log entry (REDCapR issue 515)."""
        with self.lock:
            is_new = record_id not in self.records
            stored = self._cell_store(record_id, place)
            changed = {
                name: value
                for name, value in values.items()
                if value != stored.get(name, self.columns[name].untouched)
            }
            for name, value in changed.items():
                self._store(stored, name, value)
            if is_new or changed:
                self._log_write(record_id, place, changed, is_new=is_new, via=via)

    def _cell_store(self, record_id: str, place: Place) -> Values:
        if record_id not in self.records:
            self.records[record_id] = {}
            self._ordered = None
        places = self.records[record_id]
        if place.instrument and not self.event_repeats(place.event):
            places.setdefault(Place(place.event), {})
        return places.setdefault(place, {})

    def _store(self, stored: Values, name: str, value: str) -> None:
        if value == "":
            stored.pop(name, None)
            return
        stored[name] = value
        # The first data on a form makes it Incomplete (PyCap issue 137).
        stored.setdefault(f"{self.columns[name].form}_complete", "0")

    def ordered_ids(self, wanted: Set[str] | None = None) -> list[str]:
        """All ids, or those of the wanted ones that exist."""
        with self.lock:
            if (
                wanted is not None
            ):  # Unknown ids are left out without a word (PHPCap testExportRecordsWithNoResults).
                return sorted(wanted & self.records.keys(), key=natural_order)
            if self._ordered is None:
                self._ordered = sorted(self.records, key=natural_order)
            return self._ordered

    def ordered_places(self, record_id: str) -> list[Place]:
        """Non-repeating rows first, then repeating ones by event, instrument, instance (REDCapTidieR)."""
        places = self.records[record_id]
        return list(places) if len(places) == 1 else sorted(places, key=self._place_order)

    def _place_order(self, place: Place) -> tuple[bool, int, int, int]:
        form = self.forms.index(place.instrument) if place.instrument else -1
        return place.instance > 0, self.event_names.index(place.event), form, place.instance

    # --- log ---------------------------------------------------------------------------------------

    def _log_write(
        self, record_id: str, place: Place, changed: Mapping[str, str], *, is_new: bool, via: str
    ) -> None:
        verb, kind = ("Create", "record_add") if is_new else ("Update", "record_edit")
        event = f" ({self.event_label(place.event)})" if place.event else ""
        details = [f"[instance = {place.instance}]"] if place.instance else []
        details += [self._describe_change(name, value) for name, value in changed.items()]
        self._log(kind, f"{verb} record{via} {record_id}{event}", ",\n".join(details), record_id)

    def _describe_change(self, name: str, value: str) -> str:
        column = self.columns[name]
        if column.source is not None and column.code:
            return f"{column.source.name}({column.code}) = {'checked' if value == '1' else 'unchecked'}"
        return f"{name} = '{value}'"

    def log_export(self) -> None:
        self._log("export", "Data Export (API)")

    def _log(self, kind: str, action: str, details: str = "", record: str = "") -> None:
        self.log.append(LogRow(self.clock(), self.username, kind, action, details, record))
