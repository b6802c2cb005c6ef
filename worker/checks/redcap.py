"""One study's REDCap project: token, rights, structure and data, without writing anything.

Phone numbers are read, as in every refresh of the index, and never leave this module.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from redis.exceptions import RedisError

from shared.config import Config, Project
from shared.domain.phone import numbers_in
from shared.errors import ConfigError, ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.redis_client import RedisClient
from worker.checks.clock import ClockWatch
from worker.checks.findings import Finding, Seen, named
from worker.redcap.client import MAX_RECORDS_PER_REQUEST, ExportTooLarge, RedcapClient, Row, new_session
from worker.redcap.rate_limit import RateLimiter
from worker.redcap.schema import (
    arms_of,
    checkbox_column,
    ids_look_hashed,
    is_a_time,
    is_identifier,
    is_repeating,
    is_set,
    missing_data_codes,
    time_format,
)

_UNAVAILABLE = {
    "redcap_banned": "redcap-banned",
    "redcap_page": "redcap-wrong-address",
    "redcap_redirects": "redcap-wrong-address",
}
_REFUSED = {"redcap_forbidden": "redcap-token-refused", "redcap_no_such_field": "redcap-field-missing"}


class OptionalRateLimiter(RateLimiter):
    """The workers' request budget. Without Redis no worker makes requests, and a check makes few."""

    def acquire(self) -> None:
        """Return as soon as one more request fits into the budget, or at once without Redis."""
        with suppress(RedisError):
            super().acquire()


class IgnoredCircuitBreaker:
    """A check also asks a host that the workers leave alone, and does not change when they ask again."""

    def check(self) -> None:
        """Let every request through."""

    def record_failure(self, *, banned: bool = False) -> None:
        """Record nothing."""

    def record_success(self) -> None:
        """Record nothing."""


def check_redcap(
    name: str, config: Config, *, redis: RedisClient, now: Callable[[], Any]
) -> Iterator[Finding | Seen]:
    """Everything about one project, as far as each answer allows the next question."""
    project = config.projects[name]
    try:
        token = project.redcap_token.resolve()
    except ConfigError:
        return  # reported as secret-missing
    session, clock = new_session(), ClockWatch(now)
    session.hooks["response"].append(clock)
    client = RedcapClient(
        project.redcap_url,
        token,
        rate_limiter=OptionalRateLimiter(
            redis, urlsplit(project.redcap_url).netloc, config.redcap_rate(project)
        ),
        circuit_breaker=IgnoredCircuitBreaker(),
        session=session,
    )
    look = _Look(name, project, client)
    try:
        yield from look.all()
    except RedcapUnavailable as error:
        yield look.finding(_UNAVAILABLE.get(error.code, "redcap-unreachable"), f"{error}")
    except RedcapRejected as error:
        yield look.finding(_REFUSED.get(error.code, "redcap-unreachable"), error.detail)
    yield from clock.findings(name, "REDCap's")


@dataclass(slots=True)
class _Data:
    """What the records show, by record id."""

    columns: set[str] = field(default_factory=set)
    records: set[str] = field(default_factory=set)
    holders: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    unreadable: dict[str, None] = field(default_factory=dict)
    foreign: dict[str, None] = field(default_factory=dict)
    arms: set[tuple[str, str]] = field(default_factory=set)  # each record with each of its arms


class _Look:
    """The questions of one project, in the order in which each is worth asking."""

    def __init__(self, name: str, project: Project, client: RedcapClient) -> None:
        self._name = name
        self._project = project
        self._client = client
        self._missing_codes: list[str] = []
        self._arms: dict[str, str] = {}

    def finding(self, id_: str, seen: str) -> Finding:
        return Finding(id=id_, subject=self._name, seen=seen)

    def all(self) -> Iterator[Finding | Seen]:
        """Raises RedcapUnavailable or RedcapRejected where REDCap ends the conversation."""
        version = self._client.version()
        about = self._client.get_object("project")
        metadata = self._client.get_list("metadata", "field_name", "field_type", "form_name")
        yield Seen(self._name, f"REDCap {version} answers; the token opens project {about.get('project_id')}")
        yield from self._project_id(about)
        yield from self._import_right()
        yield from self._group()
        fields = {row["field_name"]: row for row in metadata}
        self._missing_codes = missing_data_codes(about)
        yield from self._fields(fields)
        longitudinal = is_set(about.get("is_longitudinal"))
        yield from self._events(fields, longitudinal)
        if is_set(about.get("has_repeating_instruments_or_events")):
            yield from self._repeats(fields)
        yield from self._records(str(metadata[0]["field_name"]), fields, longitudinal)

    # --- rights -----------------------------------------------------------------------------------

    def _project_id(self, about: dict[str, Any]) -> Iterator[Finding]:
        wanted, seen = self._project.redcap_project_id, str(about.get("project_id"))
        if wanted is not None and seen != str(wanted):
            yield self.finding(
                "redcap-wrong-project", f"redcap_project_id is {wanted}, the token opens {seen}"
            )

    def _import_right(self) -> Iterator[Finding]:
        try:
            self._client.import_nothing()
        except RedcapUnavailable:
            return  # a server that stumbles over an import without rows: it cannot be told
        except RedcapRejected as error:
            if error.code == "redcap_forbidden":
                yield self.finding("redcap-no-import-right", error.detail)

    def _group(self) -> Iterator[Finding]:
        """A user in a Data Access Group gets record names with the group's number before them (PHPCap's tests)."""
        try:
            next_name = self._client.text("generateNextRecordName")
        except (RedcapRejected, RedcapUnavailable):
            return  # without automatic names, or the right to create records, it cannot be told
        if re.fullmatch(r"\d+-\d+", next_name):
            group = next_name.partition("-")[0]
            yield self.finding("redcap-one-group-only", f"REDCap names its new records {group}-…")

    # --- structure --------------------------------------------------------------------------------

    def _configured(self) -> dict[str, str]:
        keys = ("phone_field", "opt_out_field", "opt_out_checkbox")
        return {key: name for key in keys if (name := getattr(self._project, key)) is not None}

    def _fields(self, fields: dict[str, Row]) -> Iterator[Finding]:
        for key, name in self._configured().items():
            if name not in fields:
                yield self.finding("redcap-field-missing", f"{key}: the project has no field {name}")
        try:
            if self._project.opt_out_field in fields:
                time_format(fields[self._project.opt_out_field])
        except ProjectProblem as error:
            yield self.finding("opt-out-field-unfit", error.detail)
        try:
            if self._project.opt_out_checkbox in fields:
                checkbox_column(fields, self._project.opt_out_checkbox)
        except ProjectProblem as error:
            yield self.finding("opt-out-checkbox-unfit", error.detail)

    def _events(self, fields: dict[str, Row], longitudinal: bool) -> Iterator[Finding]:
        phone_event, opt_out_event = self._project.phone_event, self._project.opt_out_event
        if not longitudinal:
            if phone_event or opt_out_event:
                seen = "the project is not longitudinal, but an event is configured"
                yield self.finding("redcap-event-needless", seen)
            return
        self._arms = arms_of(self._client.get_list("event", "unique_event_name"))
        known = list(self._arms)
        if opt_out_event is None:
            seen = f"opt_out_event: missing in a longitudinal project; it has {', '.join(known)}"
            yield self.finding("redcap-event-missing", seen)
        for key, event in (("phone_event", phone_event), ("opt_out_event", opt_out_event)):
            if event is not None and event not in known:
                seen = f"{key}: there is no event {event}; the project has {', '.join(known)}"
                yield self.finding("redcap-event-missing", seen)
        arms = self._arms.get(phone_event or ""), self._arms.get(opt_out_event or "")
        if None not in arms and arms[0] != arms[1]:
            seen = f"phone_event {phone_event} is in arm {arms[0]}, opt_out_event {opt_out_event} in arm {arms[1]}"
            yield self.finding("redcap-events-in-two-arms", seen)
        yield from self._designations(fields, known)

    def _designations(self, fields: dict[str, Row], known: list[str]) -> Iterator[Finding]:
        designated = {
            (row["unique_event_name"], row["form"])
            for row in self._client.get_list("formEventMapping", "unique_event_name", "form")
        }
        for key, name in self._configured().items():
            event = self._project.phone_event if key == "phone_field" else self._project.opt_out_event
            if event in known and name in fields and (event, fields[name]["form_name"]) not in designated:
                seen = (
                    f"{key}: {name} is on instrument {fields[name]['form_name']}, not designated for {event}"
                )
                yield self.finding("redcap-field-not-on-event", seen)

    def _repeats(self, fields: dict[str, Row]) -> Iterator[Finding]:
        repeating = self._client.get_list("repeatingFormsEvents")
        for key in ("opt_out_field", "opt_out_checkbox"):
            name = getattr(self._project, key)
            form = str(fields[name]["form_name"]) if name in fields else ""
            if form and is_repeating(repeating, form, self._project.opt_out_event):
                yield self.finding("opt-out-field-repeats", f"{key}: instrument {form} of {name} repeats")

    # --- data -------------------------------------------------------------------------------------

    def _records(self, id_field: str, fields: dict[str, Row], longitudinal: bool) -> Iterator[Finding | Seen]:
        wanted = [id_field, *(name for name in self._configured().values() if name in fields)]
        data = self._read(id_field, wanted, longitudinal)
        yield Seen(self._name, f"{len(data.records)} records, {len(data.holders)} different phone numbers")
        hidden = [name for name in wanted if not self._is_shown(name, data.columns)]
        if data.columns and hidden:
            yield self.finding("redcap-hides-field", f"REDCap does not export {', '.join(hidden)}")
        elif is_identifier(fields[id_field]) and ids_look_hashed(data.records):
            seen = (
                f"{len(data.records)} records, each with 32 hex digits in {id_field}, which is an identifier"
            )
            yield self.finding("redcap-hashes-record-ids", seen)
        elif not data.holders and self._project.phone_field in fields:
            seen = f"{len(data.records)} records, none with a number in {self._project.phone_field}"
            yield self.finding("phones-none", seen)
        yield from self._out_of_reach(data)
        if data.unreadable:
            yield self.finding("phones-unreadable", named(list(data.unreadable)))
        shared = dict.fromkeys(
            record for records in data.holders.values() if len(records) > 1 for record in records
        )
        if shared:
            yield self.finding("phones-shared", f"{named(list(shared))} share numbers with one another")
        if data.foreign:
            yield self.finding("opt-out-values-foreign", named(list(data.foreign)))

    def _out_of_reach(self, data: _Data) -> Iterator[Finding]:
        arm = self._arms.get(self._project.opt_out_event or "")
        phoned = dict.fromkeys(record for records in data.holders.values() for record in records)
        outside = [record for record in phoned if (record, arm) not in data.arms]
        if arm is not None and outside:
            yield self.finding("redcap-records-in-another-arm", f"{named(outside)} not in arm {arm}")

    @staticmethod
    def _is_shown(name: str, columns: set[str]) -> bool:
        return any(column == name or column.startswith(f"{name}___") for column in columns)

    def _read(self, id_field: str, wanted: list[str], longitudinal: bool) -> _Data:
        """The configured fields of all records."""
        data = _Data()
        for row in self._rows(id_field, wanted, data):
            record, event = str(row.get(id_field, "")), str(row.get("redcap_event_name") or "")
            data.columns.update(row)
            data.records.add(record)
            data.arms.add((record, self._arms.get(event, "")))
            if not longitudinal or self._project.phone_event in {None, event}:
                self._note_phone(record, str(row.get(self._project.phone_field) or "").strip(), data)
            value = str(row.get(self._project.opt_out_field) or "").strip()
            is_foreign = value and not is_a_time(value) and value not in self._missing_codes
            if is_foreign and (not longitudinal or event == self._project.opt_out_event):
                data.foreign[record] = None
        return data

    def _rows(self, id_field: str, wanted: list[str], data: _Data) -> Iterator[Row]:
        """One streamed export; in portions where the server cannot do it at once, as the worker reads."""
        last = ""
        try:
            for row in self._client.export_all(wanted):
                last = str(row.get(id_field, ""))
                yield row
        except ExportTooLarge:
            # The export may have broken off within its last record: that one is read again.
            yield from self._portions(id_field, wanted, data.records - {last})

    def _portions(self, id_field: str, wanted: list[str], seen: set[str]) -> Iterator[Row]:
        ids = dict.fromkeys(str(row.get(id_field, "")) for row in self._client.export_all([id_field]))
        left = [record for record in ids if record not in seen]
        for start in range(0, len(left), MAX_RECORDS_PER_REQUEST):
            yield from self._client.export(wanted, records=left[start : start + MAX_RECORDS_PER_REQUEST])

    def _note_phone(self, record: str, text: str, data: _Data) -> None:
        numbers = list(numbers_in(text, self._project.default_region)) if text else []
        for number in numbers:
            data.holders[number][record] = None
        if text and not numbers:
            data.unreadable[record] = None
