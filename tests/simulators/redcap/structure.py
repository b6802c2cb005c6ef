"""The calls that describe a project: dictionary, events, repeats, project, users, log."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, tzinfo

from tests.simulators.redcap.answers import (
    Answer,
    ApiError,
    Cell,
    Params,
    Table,
    compact_json,
    structure_answer,
    text_answer,
)
from tests.simulators.redcap.importing import next_record_id
from tests.simulators.redcap.project import Field, LogRow, Project

METADATA_KEYS = (
    "field_name",
    "form_name",
    "section_header",
    "field_type",
    "field_label",
    "select_choices_or_calculations",
    "field_note",
    "text_validation_type_or_show_slider_number",
    "text_validation_min",
    "text_validation_max",
    "identifier",
    "branching_logic",
    "required_field",
    "custom_alignment",
    "question_number",
    "matrix_group_name",
    "matrix_ranking",
    "field_annotation",
)
LOG_FORMAT = "%Y-%m-%d %H:%M"  # REDCap cuts the log's timestamps to the minute (REDCapR issue 582)


def metadata(project: Project, params: Params) -> Answer:
    wanted_fields, wanted_forms = set(params.names("fields")), set(params.names("forms"))
    rows = [
        _metadata_row(each)
        for each in project.fields
        if not (wanted_fields or wanted_forms) or each.name in wanted_fields or each.form in wanted_forms
    ]
    return structure_answer(Table(METADATA_KEYS, rows), params, "records")


def _metadata_row(field: Field) -> list[Cell]:
    known = {
        "field_name": field.name,
        "form_name": field.form,
        "field_type": field.kind,
        "field_label": field.label or field.name,
        "select_choices_or_calculations": " | ".join(f"{code}, {label}" for code, label in field.choices),
        "text_validation_type_or_show_slider_number": field.validation,
        "identifier": "y" if field.identifier else "",
        "field_annotation": field.annotation,
    }
    return [known.get(key, "") for key in METADATA_KEYS]


def export_field_names(project: Project, params: Params) -> Answer:
    wanted = params.get("field")
    rows = [
        [column.source.name if column.source else column.name, column.code, column.name]
        for column in project.columns.values()
        if column.source is None or column.source.kind != "file"
        if not wanted or wanted == (column.source.name if column.source else column.name)
    ]
    header = ["original_field_name", "choice_value", "export_field_name"]
    return structure_answer(Table(header, rows), params, "fields")


def event(project: Project, params: Params) -> Answer:
    _refuse_classic(project, "events")
    header = ["event_name", "arm_num", "unique_event_name", "custom_event_label", "event_id"]
    rows: list[list[Cell]] = [
        [each.label, each.arm, each.unique_name, "", project.project_id * 100 + number]
        for number, each in enumerate(project.events, start=1)
    ]
    return structure_answer(Table(header, rows), params, "events")


def arm(project: Project, params: Params) -> Answer:
    _refuse_classic(project, "arms")
    return structure_answer(Table(["arm_num", "name"], list(project.arm_names.items())), params, "arms")


def form_event_mapping(project: Project, params: Params) -> Answer:
    _refuse_classic(project, "form/event mappings")
    rows: list[list[Cell]] = [
        [each.arm, each.unique_name, form] for each in project.events for form in each.forms
    ]
    return structure_answer(Table(["arm_num", "unique_event_name", "form"], rows), params, "items")


def _refuse_classic(project: Project, what: str) -> None:
    """The words of REDCapR's tests."""
    if not project.is_longitudinal:
        raise ApiError(400, f"You cannot export {what} for classic projects")


def instrument(project: Project, params: Params) -> Answer:
    """In csv the label is always quoted (REDCapTidieR's recorded answers)."""
    rows = [[form, form.replace("_", " ").capitalize()] for form in project.forms]
    header = ["instrument_name", "instrument_label"]
    if params.format == "csv":
        quoted = [f'{form}{params.delimiter}"{label}"' for form, label in rows]
        return text_answer("\n".join([params.delimiter.join(header), *quoted]), "csv")
    return structure_answer(Table(header, rows), params, "instruments")


def repeating_forms_events(project: Project, params: Params) -> Answer:
    if not project.repeating:
        raise ApiError(
            400,
            "You cannot export repeating instruments and events because the project does not contain any "
            "repeating instruments and events",
        )
    header = ["event_name"] * project.is_longitudinal + ["form_name", "custom_form_label"]
    rows = [[each.event] * project.is_longitudinal + [each.form, each.label] for each in project.repeating]
    return structure_answer(Table(header, rows), params, "items")


def project_info(project: Project, params: Params) -> Answer:
    """One object, not a list, with 0 and 1 for no and yes (PyCap, REDCapR)."""
    info: dict[str, Cell] = {
        "project_id": project.project_id,
        "project_title": project.title,
        "creation_time": "2026-01-05 09:00:00",
        "production_time": "",
        "in_production": 0,
        "project_language": "English",
        "purpose": project.purpose,
        "purpose_other": "",
        "project_notes": "",
        "custom_record_label": "",
        "secondary_unique_field": "",
        "is_longitudinal": int(project.is_longitudinal),
        "has_repeating_instruments_or_events": int(bool(project.repeating)),
        "surveys_enabled": int(bool(project.survey_forms)),
        "scheduling_enabled": 0,
        "record_autonumbering_enabled": 1,
        "randomization_enabled": 0,
        "ddp_enabled": 0,
        "project_irb_number": "",
        "project_grant_number": "",
        "project_pi_firstname": "",
        "project_pi_lastname": "",
        "display_today_now_button": 1,
        # "code, label | code, label" (REDCapR's and PyCap's project info)
        "missing_data_codes": " | ".join(
            f"{code}, {label}" for code, label in project.missing_data_codes.items()
        ),
        "external_modules": "",
        "bypass_branching_erase_field_prompt": 0,
    }
    if params.format == "json":
        return text_answer(compact_json(info), "json")
    return structure_answer(Table(list(info), [list(info.values())]), params, "items")


def next_record_name(project: Project, params: Params) -> Answer:
    name = next_record_id(project)
    dag = project.rights.dag
    return text_answer(f"{project.dags.index(dag) + 1}-{name}" if dag else name, "csv")


def dag(project: Project, params: Params) -> Answer:
    if not project.rights.data_access_groups:  # redcapAPI issue 365
        raise ApiError(
            400,
            "Insufficient user privileges: You must have 'API Export' privileges and 'Data Access Groups' "
            "privileges in the project.",
        )
    header = ["data_access_group_name", "unique_group_name", "data_access_group_id"]
    rows: list[list[Cell]] = [
        [name.capitalize(), name, number] for number, name in enumerate(project.dags, start=1)
    ]
    return structure_answer(Table(header, rows), params, "dags")


def user(project: Project, params: Params) -> Answer:
    rights = project.rights
    if not rights.user_rights:  # A least-privilege token usually lacks it; the status is by analogy.
        raise ApiError(403, "You do not have User Rights privileges")
    row: dict[str, object] = {
        "username": project.username,
        "email": "",
        "data_access_group": rights.dag or "",
        "api_export": int(rights.api_export),
        "api_import": int(rights.api_import),
        "record_create": int(rights.record_create),
        "record_delete": int(rights.record_delete),
        "logging": int(rights.logging),
        "forms": dict.fromkeys(project.forms, 1),
        "forms_export": {form: rights.forms.get(form, "full") for form in project.forms},
    }
    if params.format == "json":
        return text_answer(compact_json([row]), "json")
    return structure_answer(Table(list(row), [[str(each) for each in row.values()]]), params, "users")


def log(project: Project, params: Params, zone: tzinfo) -> Answer:
    if not project.rights.logging:
        raise ApiError(403, "You do not have Logging privileges")
    header = ["timestamp", "username", "action", "details", "record"]
    begin, end = params.get("beginTime"), params.get("endTime")
    rows: list[list[Cell]] = []
    for row in reversed(project.log):  # newest first
        stamp = wall_minute(row.at, zone)
        if (not begin or stamp >= begin) and (not end or stamp <= end) and _log_matches(row, params):
            rows.append([stamp, row.username, row.action, row.details, row.record])
    return structure_answer(Table(header, rows), params, "logs")


def wall_minute(at: datetime, zone: tzinfo) -> str:
    return at.astimezone(zone).strftime(LOG_FORMAT)


def _log_matches(row: LogRow, params: Params) -> bool:
    kind, username, record = params.get("logtype"), params.get("user"), params.get("record")
    return (
        (not kind or row.kind == kind or (kind == "record" and row.kind.startswith("record_")))
        and username in {"", row.username}
        and record in {"", row.record}
    )


Call = Callable[[Project, Params], Answer]
CALLS: dict[str, Call] = {
    "metadata": metadata,
    "exportFieldNames": export_field_names,
    "event": event,
    "arm": arm,
    "formEventMapping": form_event_mapping,
    "instrument": instrument,
    "repeatingFormsEvents": repeating_forms_events,
    "project": project_info,
    "generateNextRecordName": next_record_name,
    "dag": dag,
    "user": user,
}
