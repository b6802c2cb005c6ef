"""A project's structure as REDCap describes it, and what the program needs of it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from shared.errors import ProjectProblem
from worker.redcap.client import Row, redact

MINUTES, SECONDS = "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSchema:
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


def is_set(flag: object) -> bool:
    """Flags come as 0 and 1; other clients have met them as text."""
    return str(flag).lower() in {"1", "true"}


def time_format(field: Row) -> str:
    """How a time is written into a field, for strftime. Raises ProjectProblem where it holds none."""
    name, kind = field["field_name"], redact(field["field_type"])
    if kind != "text":
        raise ProjectProblem(
            "opt_out_field_is_no_text",
            f"opt_out_field: {name} is a {kind} field and cannot hold a time; name a text field "
            "with validation datetime_seconds_ymd",
        )
    validation = redact(str(field.get("text_validation_type_or_show_slider_number") or ""))
    if validation == "" or validation.startswith("datetime_seconds_"):
        return SECONDS
    if validation.startswith("datetime_"):
        return MINUTES  # REDCap takes no seconds there
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


def ids_look_hashed(records: Iterable[str]) -> bool:
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
    return read_time(value) is not None


def read_time(value: str) -> tuple[datetime, str] | None:
    for form in (SECONDS, MINUTES):
        with suppress(ValueError):
            return datetime.strptime(value, form), form
    return None
