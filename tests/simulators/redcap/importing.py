"""content=record with data: the record import. All or nothing."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from tests.simulators.redcap.answers import (
    XML_HEAD,
    Answer,
    ApiError,
    Params,
    compact_json,
    csv_text,
    text_answer,
)
from tests.simulators.redcap.project import Column, Place, Project, Values, checkbox_column
from tests.simulators.redcap.validation import stored_form

PLACE_COLUMNS = ("redcap_event_name", "redcap_repeat_instrument", "redcap_repeat_instance")
OTHER_PSEUDO_COLUMNS = ("redcap_data_access_group", "redcap_survey_identifier")
RECORD_LOCKED = (
    "This record has been locked at the record level. No value within this record can be modified."
)
FORM_LOCKED = (  # sibis-platform's sibispy looks for it
    "This field is located on a form that is locked. You must first unlock this form for this record."
)
NOT_DESIGNATED = (  # PyCap issue 142
    "This field ('{field}') exists on an instrument that is not designated for the event named '{event}'. "
    "You are not allowed to import data for this field into this event."
)
BAD_INSTRUMENT = (  # PyCap issue 154, as the next one
    "redcap_repeat_instrument must be the unique form name of a Repeating Instrument. It currently does not "
    "match the unique form name of any Repeating Instruments.  Please fix this in the data import file and "
    "try again."
)
NOT_REPEATING = (
    "redcap_repeat_instance cannot have a value since this instrument or event is not a repeating "
    "instrument or repeating event, respectively.  The redcap_repeat_instance field must be left blank for "
    "this row of data."
)
REPEAT_MISSING = (  # INTERPOLAR issue 308
    "This field ('{field}') exists on a Repeating Instrument named '{form}'. However, the fields "
    "'redcap_repeat_instance' and/or 'redcap_repeat_instrument' for this row of data have no value, which "
    "are both required for importing data into a Repeating Instrument.  You are not allowed to import data "
    "for this field into a non-repeating instrument."
)


@dataclass(frozen=True, slots=True)
class PlannedWrite:
    record_id: str
    place: Place
    values: Values


def import_records(project: Project, params: Params, pause: Callable[[int], None]) -> Answer:
    """Checks every row first, then writes them all; `pause(n)` is the time n records take to write."""
    if not project.rights.api_import:
        raise ApiError(403, "You do not have API Import/Update privileges")
    rows = read_rows(project, params)
    if rows is None:
        return _result([], {}, params)
    with project.write_lock:
        with project.lock:
            old_ids = _number_automatically(project, rows, params)
            planned = _plan(project, rows, params)
        record_ids = list(dict.fromkeys(each.record_id for each in planned))
        pause(len(record_ids))
        with project.lock:
            _commit(project, planned, rows)
    return _result(record_ids, old_ids, params)


def _commit(project: Project, planned: Iterable[PlannedWrite], rows: Sequence[Values]) -> None:
    for each in planned:
        project.write(each.record_id, each.place, each.values, via=" (API)")
        if project.rights.dag is not None:
            project.record_dags.setdefault(each.record_id, project.rights.dag)
    for row in rows:
        if row.get("redcap_data_access_group"):
            project.record_dags[row[project.id_field]] = row["redcap_data_access_group"]


# --- reading the data ------------------------------------------------------------------------------


def read_rows(project: Project, params: Params) -> list[Values] | None:
    """Flat rows of text; None for JSON that is no array, which REDCap counts as 0 (PyCap issue 103)."""
    try:
        raw = _parse(params)
    except (ValueError, ElementTree.ParseError):
        raise ApiError(400, "The data is not in the specified format.") from None
    if not isinstance(raw, list):
        return None
    if not all(isinstance(row, dict) for row in raw):
        raise ApiError(400, "The data is not in the specified format.")
    rows = [{str(name): _text(value) for name, value in row.items()} for row in raw]
    return [_flat(project, row) for row in rows] if params.get("type") == "eav" else rows


def _parse(params: Params) -> object:
    data = params.get("data")
    if params.format == "json":
        return json.loads(data)
    if params.format == "csv":
        return [
            {name: value or "" for name, value in row.items() if name is not None}
            for row in csv.DictReader(io.StringIO(data), delimiter=params.delimiter)
        ]
    return [
        {cell.tag: cell.text or "" for cell in item} for item in ElementTree.fromstring(data).iter("item")
    ]


def _text(value: object) -> str:
    if value is None or value is False:
        return ""
    return "1" if value is True else str(value)


def _flat(project: Project, row: Values) -> Values:
    name, value = row.get("field_name", ""), row.get("value", "")
    field = project.field_by_name.get(name)
    if field is not None and field.kind == "checkbox":
        name, value = checkbox_column(name, value), "1"
    places = {key: row[key] for key in PLACE_COLUMNS if key in row}
    return {project.id_field: row.get("record", ""), **places, name: value}


def distinct_records(project: Project, params: Params) -> int:
    """How many records the data names; 0 where it cannot be read."""
    try:
        rows = read_rows(project, params) or []
    except ApiError:
        return 0
    return len({row.get(project.id_field, "") for row in rows})


def _number_automatically(project: Project, rows: list[Values], params: Params) -> dict[str, str]:
    """forceAutoNumber: new ids for the sent ones. Returns new id -> sent id."""
    if not params.flag("forceAutoNumber"):
        return {}
    new_ids: dict[str, str] = {}
    following = int(next_record_id(project))
    for row in rows:
        sent = row.get(project.id_field, "")
        row[project.id_field] = new_ids.setdefault(sent, str(following + len(new_ids)))
    return {new: sent for sent, new in new_ids.items()}


def next_record_id(project: Project) -> str:
    return str(1 + max((int(each) for each in project.records if each.isdigit()), default=0))


# --- checking and planning -------------------------------------------------------------------------


def _plan(project: Project, rows: Sequence[Values], params: Params) -> list[PlannedWrite]:
    _refuse_unknown_columns(project, rows)
    _refuse_illegal_groups(project, rows)
    _refuse_missing_or_new_ids(project, rows)
    planner = _Planner(project, params)
    planned = [planner.plan(row) for row in rows]
    if planner.problems:  # One line per bad cell, the value echoed (PyCap issues 138, 142, 154).
        raise ApiError(400, "\n".join(planner.problems))
    return planned


def _refuse_unknown_columns(project: Project, rows: Sequence[Values]) -> None:
    known = {*project.columns, *PLACE_COLUMNS, *OTHER_PSEUDO_COLUMNS}
    if not project.is_longitudinal:
        known.remove("redcap_event_name")
    unknown = list(dict.fromkeys(name for row in rows for name in row if name not in known))
    if unknown:  # PyCap issues 20 and 151
        message = "The following fields were not found in the project as real data fields: "
        raise ApiError(400, message + ", ".join(unknown))


def _refuse_illegal_groups(project: Project, rows: Sequence[Values]) -> None:
    groups = {row["redcap_data_access_group"] for row in rows if "redcap_data_access_group" in row}
    if (groups and project.rights.dag is not None) or groups - {"", *project.dags}:
        raise ApiError(400, "Illegal use of 'redcap_data_access_group' field!")


def _refuse_missing_or_new_ids(project: Project, rows: Sequence[Values]) -> None:
    record_ids = [row.get(project.id_field, "") for row in rows]
    if "" in record_ids:
        raise ApiError(400, f"The record id field '{project.id_field}' is missing or blank")
    # Without the right, no new records (REDCap API help); with it, an unknown id creates one (PyCap tests).
    if not project.rights.record_create and any(each not in project.records for each in record_ids):
        raise ApiError(403, "You do not have Create Record privileges")
    dag = project.rights.dag
    if dag is not None and any(project.record_dags.get(each, dag) != dag for each in record_ids):
        raise ApiError(400, "A record with this name already exists in another Data Access Group")


def _is_computed(column: Column) -> bool:
    """What is sent for a computed field is dropped without an error (PyCap's test_import_df_no_index)."""
    source = column.source
    return source is not None and (
        source.kind == "calc" or re.search(r"@CALC(TEXT|DATE)\b", source.annotation) is not None
    )


class _Planner:
    def __init__(self, project: Project, params: Params) -> None:
        self.project = project
        self.overwrites = params.get("overwriteBehavior") == "overwrite"
        self.date_format = params.get("dateFormat", "YMD")
        self.problems: list[str] = []
        self._shown_id = ""
        self._new_instances: dict[tuple[str, str, str], int] = {}

    def plan(self, row: Values) -> PlannedWrite:
        record_id = row[self.project.id_field]
        self._shown_id = record_id
        if self.project.errors_name_event and row.get("redcap_event_name"):
            self._shown_id += f" ({row['redcap_event_name']})"
        place = self._place(record_id, row)
        values: Values = {}
        for name, value in row.items():
            column = self.project.columns.get(name)
            if column is None or name == self.project.id_field or _is_computed(column):
                continue
            if value == "":
                values.update(self._cleared(column, place))
            elif place is not None:
                values.update(self._checked(record_id, place, column, value))
            else:
                self._refuse_without_place(column, value)
        return PlannedWrite(record_id, place or Place(), values)

    def _problem(self, name: str, value: str, message: str) -> None:
        cells = (self._shown_id, name, value, message)
        self.problems.append(",".join('"' + cell.replace('"', '""') + '"' for cell in cells))

    def _cleared(self, column: Column, place: Place | None) -> Values:
        """A blank clears under overwrite and is passed over otherwise (REDCapR overwrite tests)."""
        if not self.overwrites or place is None or column.source is None:
            return {}
        return {column.name: column.untouched} if self.project.holds(place, column.form) else {}

    def _checked(self, record_id: str, place: Place, column: Column, value: str) -> Values:
        message = self._misplaced(place, column) or self._locked(record_id, place, column)
        if message is None:
            try:
                return {column.name: stored_form(column, value, self.date_format)}
            except ValueError as error:
                message = str(error)
        self._problem(column.name, value, message)
        return {}

    def _misplaced(self, place: Place, column: Column) -> str | None:
        project = self.project
        if project.holds(place, column.form):
            return None
        if not project.is_designated(place.event, column.form):
            return NOT_DESIGNATED.format(field=column.name, event=project.event_label(place.event))
        if project.form_repeats(place.event, column.form):
            return REPEAT_MISSING.format(field=column.name, form=column.form)
        return NOT_REPEATING

    def _locked(self, record_id: str, place: Place, column: Column) -> str | None:
        if record_id in self.project.locked_records:
            return RECORD_LOCKED
        is_locked = (record_id, place.event, column.form) in self.project.locked_forms
        return FORM_LOCKED if is_locked else None

    def _refuse_without_place(self, column: Column, value: str) -> None:
        """A row without event gets the message of a wrong event (PyCap issue 142)."""
        if self.project.is_longitudinal:
            event = self.project.event_label(self.project.event_names[0])
            self._problem(column.name, value, NOT_DESIGNATED.format(field=column.name, event=event))

    # --- event, instrument, instance ---------------------------------------------------------------

    def _place(self, record_id: str, row: Values) -> Place | None:
        event = row.get("redcap_event_name", "")
        if self.project.is_longitudinal and event not in self.project.event_names:
            if event:
                self._problem("redcap_event_name", event, "The event name is not valid.")
            return None
        instrument = row.get("redcap_repeat_instrument", "")
        instance = row.get("redcap_repeat_instance", "")
        if instrument and not self.project.form_repeats(event, instrument):
            self._problem("redcap_repeat_instrument", instrument, BAD_INSTRUMENT)
            return Place(event)
        if not instrument and not self.project.event_repeats(event):
            if instance:
                self._problem("redcap_repeat_instance", instance, NOT_REPEATING)
            return Place(event)
        return self._repeating_place(record_id, Place(event, instrument), instance)

    def _repeating_place(self, record_id: str, place: Place, instance: str) -> Place:
        if instance == "new":
            return place._replace(instance=self._new_instance(record_id, place))
        if place.instrument and not instance:
            return Place(place.event)  # which then reports each field of the repeating form
        if instance and not (instance.isdigit() and int(instance) > 0):
            self._problem("redcap_repeat_instance", instance, "The instance is not valid.")
            return place._replace(instance=1)
        return place._replace(instance=int(instance or 1))

    def _new_instance(self, record_id: str, place: Place) -> int:
        stored = self.project.records.get(record_id, {})
        highest = max((each.instance for each in stored if each[:2] == place[:2]), default=0)
        key = (record_id, *place[:2])
        self._new_instances[key] = 1 + max(highest, self._new_instances.get(key, 0))
        return self._new_instances[key]


# --- the answer ------------------------------------------------------------------------------------


def _result(record_ids: Sequence[str], old_ids: dict[str, str], params: Params) -> Answer:
    content, data_format = params.get("returnContent", "count"), params.return_format
    if content == "nothing":
        return text_answer("", data_format)
    if content == "ids":
        return text_answer(_id_list(record_ids, data_format), data_format)
    if content == "auto_ids" and old_ids:
        pairs = [f"{new},{sent}" for new, sent in old_ids.items()]
        return text_answer(_id_list(pairs, data_format), data_format)
    # Distinct records, not rows (PyCap tests).
    return text_answer(count_text(len(record_ids), data_format), data_format)


def count_text(count: int, data_format: str) -> str:
    if data_format == "json":
        return compact_json({"count": count})
    return str(count) if data_format == "csv" else f"{XML_HEAD}<count>{count}</count>"


def _id_list(ids: Sequence[str], data_format: str) -> str:
    if data_format == "json":
        return compact_json(ids)
    if data_format == "csv":
        return csv_text([["id"], *([each] for each in ids)])
    return XML_HEAD + "<ids>" + "".join(f"<id>{each}</id>" for each in ids) + "</ids>"


def delete_records(project: Project, params: Params) -> Answer:
    if not project.rights.record_delete:
        raise ApiError(403, "You do not have Delete Record privileges")
    record_ids = params.names("records")
    with project.lock:
        unknown = [each for each in record_ids if each not in project.records]
        if unknown or not record_ids:
            raise ApiError(
                400,
                "One or more of the records provided cannot be deleted because they do not exist in the "
                f"project. The following records do not exist: {', '.join(unknown)}",
            )
        event = params.get("event")
        if event and event not in project.event_names:
            raise ApiError(400, 'The value of the parameter "event" is not valid')
        for record_id in dict.fromkeys(record_ids):
            project.delete_record(record_id, event=event, via=" (API)")
    return text_answer(str(len(set(record_ids))), params.return_format)
