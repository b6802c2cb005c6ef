"""content=record without data: the record export."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo

from tests.simulators.redcap.answers import Answer, ApiError, Cell, Params, Table, records_answer
from tests.simulators.redcap.logic import Test, parse_logic
from tests.simulators.redcap.project import NO_VALUES, Access, Column, Field, Place, Project, Values

STATUS_LABELS = {"0": "Incomplete", "1": "Unverified", "2": "Complete"}
YES_NO = {"yesno": {"1": "Yes", "0": "No"}, "truefalse": {"1": "True", "0": "False"}}
# The server-local wall time of dateRange and logging; the API never names the zone (REDCapR issue 444).
WALL_TIME = "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True, slots=True)
class ServerTime:
    """The server's time zone, and how long the event log takes to show a change."""

    zone: tzinfo
    visibility_lag: timedelta


def export_records(project: Project, params: Params, time: ServerTime, *, keep: float = 1.0) -> Answer:
    """The whole answer, rendered under the project's lock; `keep` < 1 silently loses the last records."""
    if not project.rights.api_export:
        raise ApiError(403, "You do not have API Export privileges")
    with project.lock:
        export = _Export(project, params)
        record_ids = export.choose_records(time)
        record_ids = record_ids[: int(len(record_ids) * keep)]
        build = export.long_table if params.get("type") == "eav" else export.flat_table
        table = build(record_ids)
        project.log_export()
    return records_answer(table, params, header=export.label_header(table))


class _Export:
    def __init__(self, project: Project, params: Params) -> None:
        self.project = project
        self.params = params
        self.columns = _choose_columns(project, params)
        # Only an export that holds the record id tells event and instance (REDCapR, PHPCap tests).
        self.has_id = any(column.name == project.id_field for column in self.columns)
        self.data_columns = [column for column in self.columns if column.name != project.id_field]
        self.forms = {column.form for column in self.data_columns}
        self.labels = params.get("rawOrLabel") == "label"
        self.show_dag = (
            params.flag("exportDataAccessGroups") and bool(project.dags) and project.rights.dag is None
        )
        self.show_survey = params.flag("exportSurveyFields") and bool(project.survey_forms)
        self._layouts: dict[tuple[str, str], list[tuple[str | None, str]]] = {}
        self._hashes_id = _hides(project, project.fields[0])

    # --- which records and rows --------------------------------------------------------------------

    def choose_records(self, time: ServerTime) -> list[str]:
        project, wanted = self.project, set(self.params.names("records")) or None
        # An id list and a date range do not combine (id3c); here the id list wins.
        if wanted is None and (self.params.get("dateRangeBegin") or self.params.get("dateRangeEnd")):
            wanted = changed_records(project, self.params, time)
        record_ids = project.ordered_ids(wanted)
        dag = project.rights.dag
        if dag is not None:
            record_ids = [each for each in record_ids if project.record_dags.get(each) == dag]
        return record_ids

    def _rows(self, record_ids: Sequence[str]) -> Iterator[tuple[str, Place, Values]]:
        events = set(self.params.names("events"))
        logic = self.params.get("filterLogic")
        test = parse_logic(logic, self.project) if logic.strip() else None
        for record_id in record_ids:
            for place in self.project.ordered_places(record_id):
                if events and place.event not in events:
                    continue
                # Rows of repeating instruments that were not asked for do not come (REDCapTidieR).
                if place.instrument and place.instrument not in self.forms:
                    continue
                if test is None or self._passes(test, record_id, place):
                    yield record_id, place, self.project.records[record_id][place]

    def _passes(self, test: Test, record_id: str, place: Place) -> bool:
        """A bare [field] is read on the row itself, [event][field] on the record (REDCapR filter tests)."""

        def lookup(event: str | None, name: str) -> str:
            if name == self.project.id_field:
                return record_id
            places = self.project.records[record_id]
            values = places.get(place if event is None else Place(event), NO_VALUES)
            return values.get(name, self.project.columns[name].untouched)

        return test(lookup)

    # --- tables ------------------------------------------------------------------------------------

    def flat_table(self, record_ids: Sequence[str]) -> Table:
        header = [*self._lead_header(), *self._data_header()]
        make_row = self._label_row if self.labels else self._raw_row
        return Table(header, [make_row(*row) for row in self._rows(record_ids)])

    def _lead_header(self) -> list[str]:
        names = [self.project.id_field, *self._place_header()] if self.has_id else []
        names += ["redcap_data_access_group"] * self.show_dag
        return names + ["redcap_survey_identifier"] * self.show_survey

    def _place_header(self) -> list[str]:
        event = ["redcap_event_name"] * self.project.is_longitudinal
        return event + ["redcap_repeat_instrument", "redcap_repeat_instance"] * bool(self.project.repeating)

    def _data_header(self) -> list[str]:
        return [name for name, _ in self._with_timestamps()]

    def _with_timestamps(self) -> Iterator[tuple[str, Column]]:
        """`<form>_timestamp` stands right before its form's first field (REDCapTidieR)."""
        seen: set[str] = set()
        for column in self.data_columns:
            if self.show_survey and column.form in self.project.survey_forms - seen:
                seen.add(column.form)
                yield f"{column.form}_timestamp", column
            yield column.name, column

    def _lead(self, record_id: str, place: Place) -> list[Cell]:
        cells: list[Cell] = []
        if self.has_id:
            cells.append(hashlib.md5(record_id.encode()).hexdigest() if self._hashes_id else record_id)
            cells += self._place_cells(place)
        if self.show_dag:
            cells.append(self.project.record_dags.get(record_id, ""))
        return cells + [""] * self.show_survey

    def _place_cells(self, place: Place) -> list[Cell]:
        cells: list[Cell] = []
        if self.project.is_longitudinal:
            cells.append(self.project.event_label(place.event) if self.labels else place.event)
        if self.project.repeating:
            cells += [place.instrument, place.instance or ""]
        return cells

    def _layout(self, place: Place) -> list[tuple[str | None, str]]:
        """Per data column the stored name (None where its form does not stand here) and the default."""
        key = (place.event, place.instrument)
        if key not in self._layouts:
            self._layouts[key] = [self._cell_plan(place, *each) for each in self._with_timestamps()]
        return self._layouts[key]

    def _cell_plan(self, place: Place, name: str, column: Column) -> tuple[str | None, str]:
        if not self.project.holds(place, column.form):
            return None, ""
        grey = column.source is None and self.params.flag("exportBlankForGrayFormStatus")
        return name, "" if grey or name != column.name else column.untouched

    def _raw_row(self, record_id: str, place: Place, values: Values) -> list[Cell]:
        cells = self._lead(record_id, place)
        cells += [values.get(key, default) if key else default for key, default in self._layout(place)]
        return cells

    def _label_row(self, record_id: str, place: Place, values: Values) -> list[Cell]:
        cells = self._lead(record_id, place)
        for (key, default), (_, column) in zip(self._layout(place), self._with_timestamps(), strict=True):
            cells.append(self._label(column, values.get(key, default) if key else default))
        return cells

    def _label(self, column: Column, value: str) -> str:
        if column.source is None:
            return STATUS_LABELS.get(value, value)
        if column.code and self.params.flag("exportCheckboxLabel"):
            return dict(column.source.choices)[column.code] if value == "1" else ""
        if column.code:
            return {"1": "Checked", "0": "Unchecked"}.get(value, value)
        choices = dict(column.source.choices) or YES_NO.get(column.source.kind, {})
        return choices.get(value, value)

    def label_header(self, table: Table) -> list[str] | None:
        if self.params.get("rawOrLabelHeaders") != "label":
            return None
        labels = {name: field.label or name for name, field in self.project.field_by_name.items()}
        return [labels.get(name, name) for name in table.header]

    def long_table(self, record_ids: Sequence[str]) -> Table:
        """type=eav: only values that are there, one row for each checked code (REDCapR read-eav)."""
        header = ["record", *self._place_header(), "field_name", "value"]
        rows: list[list[Cell]] = []
        for record_id, place, values in self._rows(record_ids):
            lead = [record_id, *self._place_cells(place)]
            if self.has_id:
                rows.append([*lead, self.project.id_field, record_id])
            held = [column for column in self.data_columns if self.project.holds(place, column.form)]
            rows += [[*lead, *pair] for column in held for pair in _long_pair(column, values)]
        return Table(header, rows)


def _long_pair(column: Column, values: Values) -> Iterator[tuple[str, str]]:
    value = values.get(column.name, "")
    if column.source is not None and column.code:
        if value == "1":
            yield column.source.name, column.code
    elif value:
        yield column.name, value


# --- which columns ---------------------------------------------------------------------------------


def _choose_columns(project: Project, params: Params) -> list[Column]:
    fields, forms = params.names("fields"), _choose_forms(project, params)
    _refuse_unknown_fields(project, fields)
    if all(_access(project, form) is Access.NONE for form in project.forms):
        raise ApiError(403, "You do not have API Export privileges")
    wanted = _wanted(set(fields), set(forms))
    return [column for column in project.columns.values() if wanted(column) and _may_see(project, column)]


def _choose_forms(project: Project, params: Params) -> list[str]:
    forms = params.names("forms")
    unknown = [form for form in forms if form not in project.forms]
    if not unknown:
        return forms
    if params.get("forms"):  # A wrong name in a comma string gives every form (PyCap pull request 110).
        return list(project.forms)
    raise _not_valid("forms", unknown)


def _refuse_unknown_fields(project: Project, fields: Sequence[str]) -> None:
    """redcapAPI issue 231; since REDCap 13.4.10 `redcap_event_name` and its like too (REDCapR issue 477)."""
    known = {*project.field_by_name, *(f"{form}_complete" for form in project.forms)}
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise _not_valid("fields", unknown)


def _not_valid(parameter: str, names: Sequence[str]) -> ApiError:
    quoted = ", ".join(f"'{name}'" for name in names)
    return ApiError(400, f'The following values in the parameter "{parameter}" are not valid: {quoted}')


def _wanted(fields: set[str], forms: set[str]) -> Callable[[Column], bool]:
    def wanted(column: Column) -> bool:
        name = column.source.name if column.source else column.name
        return not (fields or forms) or name in fields or column.form in forms

    return wanted


def _access(project: Project, form: str) -> Access:
    return project.rights.forms.get(form, Access.FULL)


def _may_see(project: Project, column: Column) -> bool:
    """Columns without an export right vanish with status 200 (redcapAPI issue 332)."""
    if column.source is None:
        return _access(project, column.form) is not Access.NONE
    return column.name == project.id_field or not _hides(project, column.source)


def _hides(project: Project, source: Field) -> bool:
    access = _access(project, source.form)
    if access is Access.DEIDENTIFIED:
        return source.identifier or (source.name != project.id_field and _is_free_text_or_date(source))
    return access is Access.NONE or (access is Access.REMOVE_IDENTIFIERS and source.identifier)


def _is_free_text_or_date(source: Field) -> bool:
    unvalidated = source.kind == "text" and not source.validation
    return unvalidated or source.kind == "notes" or source.validation.startswith("date")


# --- date range ------------------------------------------------------------------------------------


def changed_records(project: Project, params: Params, time: ServerTime) -> set[str]:
    """Records with a log entry in the window: server-local wall time, shown late (PHPCap tests)."""
    begin = _wall_time(params, "dateRangeBegin", datetime.min)
    end = _wall_time(params, "dateRangeEnd", datetime.max)
    visible_until = project.clock() - time.visibility_lag

    def is_in_window(at: datetime) -> bool:
        return begin <= at.astimezone(time.zone).replace(tzinfo=None, microsecond=0) <= end

    return {
        row.record for row in project.log if row.record and row.at <= visible_until and is_in_window(row.at)
    }


def _wall_time(params: Params, name: str, otherwise: datetime) -> datetime:
    value = params.get(name)
    try:
        return datetime.strptime(value, WALL_TIME) if value else otherwise
    except ValueError:
        raise ApiError(400, f'The value of the parameter "{name}" is not valid') from None
