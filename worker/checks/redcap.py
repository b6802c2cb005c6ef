"""Check one study's REDCap project: token, rights, structure and data. Writes nothing.

Phone numbers are read, as in every refresh of the phone index, and never leave this module.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import requests
from redis.exceptions import RedisError

from shared.batches import batches
from shared.config.schema import Config, Project
from shared.domain.phone import doubts_about, numbers_in
from shared.errors import ConfigError, RedcapRejected, RedcapUnavailable
from shared.redis_client import RedisClient
from worker.checks.clock import ClockWatch
from worker.checks.findings import Finding, FindingId, Passed, finding_id, format_records
from worker.redcap.circuit_breaker import CircuitBreaker
from worker.redcap.client import MAX_RECORDS_PER_REQUEST, RedcapClient, Row, new_session
from worker.redcap.rate_limit import RateLimiter
from worker.redcap.responses import ExportTooLarge
from worker.redcap.schema import (
    ProjectInfo,
    configured_fields,
    hidden_fields,
    ids_look_hashed,
    inspect,
    is_identifier,
    missing_data_codes,
    read_time,
)

_UNAVAILABLE: dict[str, FindingId] = {
    "redcap_banned": "redcap-banned",
    "redcap_page": "redcap-wrong-address",
    "redcap_redirects": "redcap-wrong-address",
}
_REJECTED: dict[str, FindingId] = {
    "redcap_forbidden": "redcap-token-refused",
    "redcap_no_such_field": "redcap-field-missing",
}


class OptionalRateLimiter(RateLimiter):
    """The workers' request budget. Without Redis no worker makes requests, and a check makes few."""

    def acquire(self) -> None:
        """Return as soon as one more request fits into the budget, or at once without Redis."""
        with suppress(RedisError):
            super().acquire()


class IgnoredCircuitBreaker(CircuitBreaker):
    """A check also sends requests to a host whose circuit is open, and does not change the circuit."""

    def check(self) -> None:
        """Let every request through."""

    def record_failure(self, *, banned: bool = False) -> None:
        """Record nothing."""

    def record_success(self) -> None:
        """Record nothing."""


def check_redcap(
    name: str, config: Config, *, redis: RedisClient, now: Callable[[], Any]
) -> Iterator[Finding | Passed]:
    """Check everything about one project, as far as REDCap answers."""
    project = config.projects[name]
    session, clock = new_session(), ClockWatch(now)
    session.hooks["response"].append(clock)
    try:
        check = RedcapCheck(name, project, _client(project, config, redis, session))
    except ConfigError:
        return  # reported as secret-missing
    try:
        yield from check.run()
    except RedcapUnavailable as error:
        yield check.finding(_UNAVAILABLE.get(error.code, "redcap-unreachable"), f"{error}")
    except RedcapRejected as error:
        yield check.finding(_REJECTED.get(error.code, "redcap-unreachable"), error.detail)
    yield from clock.findings(name, "REDCap's")


def _client(project: Project, config: Config, redis: RedisClient, session: requests.Session) -> RedcapClient:
    host = project.redcap_host
    return RedcapClient(
        project.redcap_url,
        project.redcap_token.resolve(),
        rate_limiter=OptionalRateLimiter(redis, host, config.redcap_rates[host]),
        circuit_breaker=IgnoredCircuitBreaker(redis, host),
        session=session,
    )


@dataclass(slots=True)
class ProjectData:
    """What an export of all records contains. Dictionaries without values keep the order of the export."""

    columns: set[str] = field(default_factory=set)
    records: set[str] = field(default_factory=set)
    records_by_phone: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    unreadable: dict[str, None] = field(default_factory=dict)
    doubtful: dict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    foreign_values: dict[str, None] = field(default_factory=dict)
    arms: set[tuple[str, str]] = field(default_factory=set)  # each record with each of its arms

    @property
    def records_with_phone(self) -> list[str]:
        return list(dict.fromkeys(record for records in self.records_by_phone.values() for record in records))

    @property
    def records_with_shared_phone(self) -> list[str]:
        shared = [records for records in self.records_by_phone.values() if len(records) > 1]
        return list(dict.fromkeys(record for records in shared for record in records))

    def add_phones(self, record: str, text: str, region: str) -> None:
        numbers = list(numbers_in(text, region)) if text else []
        for number in numbers:
            self.records_by_phone[number][record] = None
        if text and not numbers:
            self.unreadable[record] = None
        for doubt in doubts_about(text, region) if numbers else []:
            self.doubtful[doubt][record] = None


class RedcapCheck:
    """The check of one project: each part after those which it depends on."""

    def __init__(self, name: str, project: Project, client: RedcapClient) -> None:
        self._name = name
        self._project = project
        self._client = client
        self._info = ProjectInfo(client)

    def finding(self, id_: FindingId, observed: str, count: int = 0) -> Finding:
        return Finding(id=id_, subject=self._name, observed=observed, count=count)

    def run(self) -> Iterator[Finding | Passed]:
        """Raises RedcapUnavailable or RedcapRejected if REDCap does not answer a request that the rest needs."""
        version, project_id = self._client.version(), self._info.project.get("project_id")
        yield Passed(self._name, f"REDCap {version} answers; the token opens project {project_id}")
        yield from self._import_right()
        yield from self._group()
        for problem in inspect(self._project, self._info):
            yield self.finding(finding_id(problem.finding), problem.observed)
        yield from self._data()

    # --- rights -----------------------------------------------------------------------------------

    def _import_right(self) -> Iterator[Finding]:
        try:
            self._client.import_nothing()
        except RedcapUnavailable:
            return  # a server that fails at an import without rows: the right is unknown
        except RedcapRejected as error:
            if error.code == "redcap_forbidden":
                yield self.finding("redcap-no-import-right", error.detail)

    def _group(self) -> Iterator[Finding]:
        """Names of new records begin with the group's number for a user in a Data Access Group (PHPCap's tests)."""
        try:
            next_name = self._client.text("generateNextRecordName")
        except (RedcapRejected, RedcapUnavailable):
            return  # without automatic names, or the right to create records, the group is unknown
        if re.fullmatch(r"\d+-\d+", next_name):
            group = next_name.partition("-")[0]
            yield self.finding("redcap-one-group-only", f"REDCap names its new records {group}-…")

    # --- data -------------------------------------------------------------------------------------

    def _data(self) -> Iterator[Finding | Passed]:
        names = [self._id_field, *configured_fields(self._project).values()]
        wanted = [name for name in names if name in self._info.fields]
        data = self._read(wanted)
        yield Passed(
            self._name, f"{len(data.records)} records, {len(data.records_by_phone)} different phone numbers"
        )
        yield from self._readability(data, wanted)
        yield from self._records_in_another_arm(data)
        yield from self._listed("phones-unreadable", "", list(data.unreadable))
        for doubt, records in data.doubtful.items():
            yield from self._listed("phones-doubtful", f": {doubt}", list(records))
        yield from self._listed(
            "phones-shared", " share numbers with one another", data.records_with_shared_phone
        )
        yield from self._listed("opt-out-values-foreign", "", list(data.foreign_values))

    def _listed(self, id_: FindingId, text: str, records: list[str]) -> Iterator[Finding]:
        if records:
            yield self.finding(id_, format_records(records) + text, len(records))

    def _readability(self, data: ProjectData, wanted: list[str]) -> Iterator[Finding]:
        count, phone_field = len(data.records), self._project.phone_field
        if hidden := hidden_fields(wanted, data.columns):
            yield self.finding("redcap-hides-field", f"REDCap does not export {', '.join(hidden)}")
        elif is_identifier(self._info.metadata[0]) and ids_look_hashed(data.records):
            seen = f"{count} records, each with 32 hex digits in {self._id_field}, which is an identifier"
            yield self.finding("redcap-hashes-record-ids", seen)
        elif not data.records_by_phone and phone_field in self._info.fields:
            yield self.finding("phones-none", f"{count} records, none with a number in {phone_field}")

    def _records_in_another_arm(self, data: ProjectData) -> Iterator[Finding]:
        arm = self._info.arms.get(self._project.opt_out_event or "")
        outside = [record for record in data.records_with_phone if (record, arm) not in data.arms]
        if arm is not None:
            yield from self._listed("redcap-records-in-another-arm", f" not in arm {arm}", outside)

    @property
    def _id_field(self) -> str:
        return str(self._info.metadata[0]["field_name"])

    def _read(self, wanted: list[str]) -> ProjectData:
        """Read the configured fields of all records."""
        data = ProjectData()
        for row in self._rows(wanted, data):
            record = self._record_id(row)
            data.columns.update(row)
            data.records.add(record)
            data.arms.add((record, self._info.arms.get(_text(row, "redcap_event_name"), "")))
            if self._is_at(row, self._project.phone_event):
                data.add_phones(record, _text(row, self._project.phone_field), self._project.default_region)
            if self._is_at(row, self._project.opt_out_event) and self._has_foreign_value(row):
                data.foreign_values[record] = None
        return data

    def _is_at(self, row: Row, event: str | None) -> bool:
        """Return whether a row belongs to an event. Classic projects have no events; None means any event."""
        return not self._info.is_longitudinal or event in {None, _text(row, "redcap_event_name")}

    def _has_foreign_value(self, row: Row) -> bool:
        value = _text(row, self._project.opt_out_field)
        return bool(value) and read_time(value) is None and value not in self._missing_codes

    @cached_property
    def _missing_codes(self) -> list[str]:
        return missing_data_codes(self._info.project)

    def _record_id(self, row: Row) -> str:
        return str(row.get(self._id_field, ""))

    def _rows(self, wanted: list[str], data: ProjectData) -> Iterator[Row]:
        """Stream one export; in batches if the server cannot export all at once, as the worker does."""
        last = ""
        try:
            for row in self._client.export_all(wanted):
                last = self._record_id(row)
                yield row
        except ExportTooLarge:
            # The export may have ended within its last record: that one is read again.
            yield from self._rows_except(wanted, data.records - {last})

    def _rows_except(self, wanted: list[str], read: set[str]) -> Iterator[Row]:
        ids = dict.fromkeys(map(self._record_id, self._client.export_all([self._id_field])))
        for batch in batches((record for record in ids if record not in read), MAX_RECORDS_PER_REQUEST):
            yield from self._client.export(wanted, records=batch)


def _text(row: Row, name: str) -> str:
    return str(row.get(name) or "").strip()
