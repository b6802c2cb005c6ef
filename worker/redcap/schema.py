"""A project's structure as REDCap describes it, and whether the configuration fits it."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cached_property

from shared.config.schema import Project
from shared.errors import ProjectProblem, RedcapRejected
from worker.redcap.client import RedcapClient, Row
from worker.redcap.redaction import redact

MINUTES, SECONDS = "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"
NO_SUCH_FIELD = "redcap_no_such_field"
# By code: the finding of `optout check`, and the fix.
PROBLEMS = {
    "redcap_wrong_project": ("redcap-wrong-project", "use the token of the right project"),
    NO_SUCH_FIELD: ("redcap-field-missing", "correct the name in the configuration or add the field"),
    "opt_out_event_missing": ("redcap-event-missing", "name one of these events"),
    "no_such_event": ("redcap-event-missing", "name one of these events"),
    "events_in_two_arms": ("redcap-events-in-two-arms", "name two events of one arm, in a table per arm"),
    "opt_out_field_repeats": ("opt-out-field-repeats", "move it to an instrument and event that do not repeat"),
    "phone_field_unfit": ("phone-field-unfit", "name a text field that holds the number"),
    "opt_out_field_is_computed": ("opt-out-field-unfit", "remove that action tag, or name another field"),
    "opt_out_field_is_no_text": ("opt-out-field-unfit", "name a text field with validation datetime_seconds_ymd"),
    "opt_out_field_holds_no_time": ("opt-out-field-unfit", "set it to datetime_seconds_ymd in the Online Designer"),
    "opt_out_checkbox_unfit": ("opt-out-checkbox-unfit", "add that choice"),
    "event_needless": ("redcap-event-needless", "remove phone_event and opt_out_event"),
    "field_not_on_event": ("redcap-field-not-on-event", "designate the instrument for that event"),
}  # fmt: skip

# Kinds of field that can hold a number as text; an SQL or calculated field may read it from another project or field.
_KINDS_WITH_TEXT = {"text", "notes", "calc", "sql"}

# Codes and what was observed.
Observations = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSchema:
    """Where and how the opt-out is written, as REDCap's data dictionary says."""

    id_field: str
    longitudinal: bool
    time_format: str
    checkbox_column: str = ""
    project_id: str = ""
    version: str = field(default="", compare=False)
    typed_format: str = field(default="", compare=False)  # of a time that a person types, for strftime
    read_ms: int = field(default=0, compare=False)
    # Codes that mean "no value" in a field.
    missing_codes: Sequence[str] = ()
    # Whether the record id is tagged as an identifier: then exports without the full right hash it.
    id_is_identifier: bool = False
    # The arm of each event; empty in a classic project.
    arms: Mapping[str, str] = field(default_factory=dict)
    # Identifies the data dictionary from which it was read.
    dictionary: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        """A text that differs between schemas that differ."""
        compared = {part.name: getattr(self, part.name) for part in fields(self) if part.compare}
        return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]

    def arm(self, event: str | None) -> str:
        """Return an event's arm; that of an event which is newer than this schema is part of its name."""
        return self.arms.get(event or "") or arm_of(event or "")


class ProjectInfo:
    """REDCap's description of a project. Each part is requested when it is first used."""

    def __init__(self, client: RedcapClient) -> None:
        self._client = client
        self.began = datetime.now(UTC)

    @cached_property
    def project(self) -> Row:
        """The project's settings."""
        return self._client.get_object("project")

    @cached_property
    def metadata(self) -> list[Row]:
        """The data dictionary. Its first field is the record id (REDCap API help, "Export Metadata")."""
        return self._client.get_list("metadata", "field_name", "field_type", "form_name")

    @property
    def dictionary(self) -> str:
        """Identify the data dictionary."""
        return hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def fields(self) -> dict[str, Row]:
        """The fields of the data dictionary, by name."""
        return {row["field_name"]: row for row in self.metadata}

    @cached_property
    def arms(self) -> dict[str, str]:
        """The arm of each event; empty in a classic project."""
        return arms_of(self._client.get_list("event", "unique_event_name")) if self.is_longitudinal else {}

    @cached_property
    def designations(self) -> set[tuple[str, str]]:
        """Event and instrument, for each instrument of each event."""
        rows = self._client.get_list("formEventMapping", "unique_event_name", "form")
        return {(row["unique_event_name"], row["form"]) for row in rows}

    @cached_property
    def repeating(self) -> list[Row]:
        """The repeating instruments and events. If none is left, REDCap may still set the flag, and reject this."""
        if not is_set(self.project.get("has_repeating_instruments_or_events")):
            return []
        try:
            return self._client.get_list("repeatingFormsEvents", may_be_empty=True)
        except RedcapRejected as error:
            if error.code != "redcap_rejected":
                raise
            return []

    @property
    def project_id(self) -> str:
        return str(self.project.get("project_id", ""))

    @property
    def is_longitudinal(self) -> bool:
        return is_set(self.project.get("is_longitudinal"))

    def form(self, name: str | None) -> str:
        """Return the instrument of a field, or "" if there is no such field."""
        return str(self.fields[name]["form_name"]) if name in self.fields else ""

    def schema(self, config: Project, version: str) -> ProjectSchema:
        """Return what is needed to read and write the opt-out. The configuration must have no problem."""
        return ProjectSchema(
            id_field=self.metadata[0]["field_name"],
            longitudinal=self.is_longitudinal,
            time_format=time_format(self.fields[config.opt_out_field]),
            checkbox_column=checkbox_column(self.fields, config.opt_out_checkbox),
            project_id=self.project_id,
            version=version,
            typed_format=typed_format(self.fields[config.opt_out_field]),
            missing_codes=missing_data_codes(self.project),
            id_is_identifier=is_identifier(self.metadata[0]),
            arms=self.arms,
            dictionary=self.dictionary,
        )


@dataclass(frozen=True, slots=True)
class SchemaProblem:
    """Something in a project that does not fit the configuration."""

    code: str
    observed: str

    @property
    def finding(self) -> str:
        """The id of the finding of `optout check`."""
        return PROBLEMS[self.code][0]

    def as_error(self) -> ProjectProblem:
        """Return the error that keeps opt-outs from being written, and their events."""
        return ProjectProblem(self.code, f"{self.observed}; {PROBLEMS[self.code][1]}")


def inspect(config: Project, info: ProjectInfo, *, blocking_only: bool = False) -> Iterator[SchemaProblem]:
    """Return every problem, or only those which keep opt-outs from being written."""
    for rule in _BLOCKING_RULES if blocking_only else (*_BLOCKING_RULES, *_OTHER_RULES):
        for code, observed in rule(config, info):
            yield SchemaProblem(code, observed)


def configured_fields(config: Project) -> dict[str, str]:
    """Return the names of the configured fields, by key."""
    return _configured(config, "phone_field", "opt_out_field", "opt_out_checkbox")


def _configured(config: Project, *keys: str) -> dict[str, str]:
    return {key: name for key in keys if (name := getattr(config, key)) is not None}


def _wrong_project(config: Project, info: ProjectInfo) -> Observations:
    wanted, opened = config.redcap_project_id, info.project_id
    if wanted is not None and opened != str(wanted):
        yield "redcap_wrong_project", f"redcap_project_id: {wanted}, but redcap_token opens project {opened}"


def _missing_fields(config: Project, info: ProjectInfo) -> Observations:
    for key, name in configured_fields(config).items():
        if name not in info.fields:
            yield NO_SUCH_FIELD, f"{key}: the project has no field {name}"


def _unfit_phone_field(config: Project, info: ProjectInfo) -> Observations:
    name = config.phone_field
    kind = str(info.fields[name]["field_type"]) if name in info.fields else "text"
    if kind not in _KINDS_WITH_TEXT:
        yield "phone_field_unfit", f"phone_field: {name} is a {redact(kind)} field and cannot hold a number"


def _unfit_opt_out_field(config: Project, info: ProjectInfo) -> Observations:
    name = config.opt_out_field
    if name not in info.fields or time_format(info.fields[name]):
        return
    kind, validation = redact(info.fields[name]["field_type"]), redact(_validation(info.fields[name]))
    if tag := computing_tag(info.fields[name]):
        observed = f"opt_out_field: {name} has the action tag {tag}, so REDCap computes it and drops what is imported"
        yield "opt_out_field_is_computed", observed
    elif kind != "text":
        observed = f"opt_out_field: {name} is a {kind} field and cannot hold a time"
        yield "opt_out_field_is_no_text", observed
    else:
        observed = f"opt_out_field: {name} has validation {validation}, which cannot hold date and time"
        yield "opt_out_field_holds_no_time", observed


def _unfit_checkbox(config: Project, info: ProjectInfo) -> Observations:
    name = config.opt_out_checkbox
    if name in info.fields and not checkbox_column(info.fields, name):
        observed = f"opt_out_checkbox: {name} is not a checkbox field with a choice coded 1"
        yield "opt_out_checkbox_unfit", observed


def _missing_events(config: Project, info: ProjectInfo) -> Observations:
    if not info.is_longitudinal:
        return
    listed = ", ".join(sorted(info.arms))
    if config.opt_out_event is None:
        observed = f"opt_out_event: missing, but the project is longitudinal and has {listed}"
        yield "opt_out_event_missing", observed
    for key, name in _configured_events(config).items():
        if name not in info.arms:
            yield "no_such_event", f"{key}: the project has no event {name}, but {listed}"


def _configured_events(config: Project) -> dict[str, str]:
    return _configured(config, "phone_event", "opt_out_event")


def _events_in_two_arms(config: Project, info: ProjectInfo) -> Observations:
    events = {key: name for key, name in _configured_events(config).items() if name in info.arms}
    if len({info.arms[name] for name in events.values()}) > 1:
        places = [f"{key} {name} is in arm {info.arms[name]}" for key, name in events.items()]
        yield "events_in_two_arms", ", ".join(places)


def _repeating_fields(config: Project, info: ProjectInfo) -> Observations:
    """REDCap would reject an import with a field that repeats, whether it is the field or the checkbox."""
    for key, name in _configured(config, "opt_out_field", "opt_out_checkbox").items():
        form = info.form(name)
        if form and is_repeating(info.repeating, form, config.opt_out_event):
            yield "opt_out_field_repeats", f"{key}: the instrument {form} of {name}, or its event, repeats"


def _needless_events(config: Project, info: ProjectInfo) -> Observations:
    if not info.is_longitudinal and _configured_events(config):
        yield "event_needless", "the project is not longitudinal, but an event is configured"


def _fields_not_on_event(config: Project, info: ProjectInfo) -> Observations:
    for key, name in configured_fields(config).items():
        event = config.phone_event if key == "phone_field" else config.opt_out_event
        form = info.form(name)
        if event in info.arms and form and (event, form) not in info.designations:
            observed = f"{key}: {name} is on instrument {form}, not designated for {event}"
            yield "field_not_on_event", observed


_BLOCKING_RULES = (
    _wrong_project,
    _missing_fields,
    _missing_events,
    _events_in_two_arms,
    _repeating_fields,
    _unfit_phone_field,
    _unfit_opt_out_field,
    _unfit_checkbox,
)
# Not checked before each write: one costs a request, and for the other REDCap rejects the write itself.
_OTHER_RULES = (_needless_events, _fields_not_on_event)


def is_set(flag: object) -> bool:
    """Return whether a flag is set: REDCap sends 0 and 1, and other clients have received text."""
    return str(flag).lower() in {"1", "true"}


def time_format(field: Row) -> str:
    """Return how a time is written into a field, for strftime; "" if the field cannot hold one."""
    validation = _validation(field)
    if field["field_type"] != "text" or computing_tag(field):
        return ""
    if validation == "" or validation.startswith("datetime_seconds_"):
        return SECONDS
    return MINUTES if validation.startswith("datetime_") else ""  # REDCap rejects seconds there


def typed_format(field: Row) -> str:
    """Return how a person types a time into a field: REDCap's pages, unlike its API, use the order of its validation.

    Source: REDCap's help text "Text validation", datetime (D-M-Y …), datetime (M-D-Y …).
    """
    order = {"mdy": "%m-%d-%Y", "dmy": "%d-%m-%Y"}.get(_validation(field).rpartition("_")[2], "%Y-%m-%d")
    return time_format(field).replace("%Y-%m-%d", order)


def computing_tag(field: Row) -> str:
    """Return the action tag that makes REDCap compute a text field as it does a calc field, or "".

    Source: REDCap's help text "Action Tags", @CALCTEXT and @CALCDATE.
    """
    found = re.search(r"@CALC(?:TEXT|DATE)\b", str(field.get("field_annotation") or ""), re.IGNORECASE)
    return found[0].upper() if found else ""


def _validation(field: Row) -> str:
    return str(field.get("text_validation_type_or_show_slider_number") or "")


def checkbox_column(fields: Mapping[str, Row], name: str | None) -> str:
    """Return the import column of a checkbox' choice 1; "" if there is none."""
    field = fields.get(name or "", {})
    choices = str(field.get("select_choices_or_calculations") or "")
    is_checkbox = field.get("field_type") == "checkbox"
    return f"{name}___1" if is_checkbox and "1" in _codes(choices) else ""


def _codes(choices: str) -> list[str]:
    """Return the codes of choices in the form "code, label | code, label"."""
    codes = [choice.split(",", 1)[0].strip() for choice in choices.split("|")]
    return [code for code in codes if code]


def missing_data_codes(project: Row) -> list[str]:
    """Return the codes that mean "no value" in any field; they are separated by "|" or by lines."""
    return _codes(str(project.get("missing_data_codes") or "").replace("\n", "|"))


def arm_of(event: str) -> str:
    """Return an event's arm by its unique name: `enrolment_arm_1`, or `enrolment_arm_1b` if two have one label."""
    found = re.search(r"_arm_(\d+)[a-z]*$", event)
    return found[1] if found else ""


def arms_of(events: Iterable[Row]) -> dict[str, str]:
    """Return the arm of each event, by its unique name."""
    names = ((event, str(event["unique_event_name"])) for event in events)
    return {name: str(event.get("arm_num") or arm_of(name)) for event, name in names}


def hidden_fields(names: Iterable[str], columns: AbstractSet[str]) -> list[str]:
    """Return the fields that an export with rows lacks. A checkbox is exported as one column for each choice."""
    exported = columns | {column.rpartition("___")[0] for column in columns}
    return [name for name in names if columns and name not in exported]


def ids_look_hashed(records: Iterable[str]) -> bool:
    """Return whether all record ids look like the hashes that replace identifiers: 32 hex digits (REDCapR #74)."""
    ids = list(records)
    return bool(ids) and all(re.fullmatch(r"[0-9a-f]{32}", record) for record in ids)


def is_identifier(field: Row) -> bool:
    """Return whether a field of the data dictionary is tagged as an identifier."""
    return str(field.get("identifier") or "").lower() in {"y", "1"}


def is_repeating(rows: Iterable[Row], form: str, event: str | None) -> bool:
    """Return whether a form repeats at an event. A row without a form is about the whole event (PyCap's doctest)."""
    return any(
        (row.get("event_name") or event) == event and (row.get("form_name") or form) == form for row in rows
    )


def read_time(value: str) -> tuple[datetime, str] | None:
    """Return a field's value as a time, with its format; None if it is not written as REDCap exports times."""
    for form in (SECONDS, MINUTES):
        with suppress(ValueError):
            return datetime.strptime(value, form), form  # noqa: DTZ007  the field has no time zone
    return None
