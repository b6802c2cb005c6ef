"""The simulator: projects behind tokens, latency, rate limit with ban, and a record of all calls."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, timedelta, tzinfo
from typing import Self

from tests.simulators.redcap.answers import Answer, ApiError, Params, html_answer, text_answer
from tests.simulators.redcap.control import answer_control
from tests.simulators.redcap.exporting import ServerTime, export_records
from tests.simulators.redcap.faults import BAN_PAGE, NO_PERMISSION, PAGES, Faults, strike
from tests.simulators.redcap.importing import delete_records, distinct_records, import_records
from tests.simulators.redcap.project import Project
from tests.simulators.redcap.server import running_server
from tests.simulators.redcap.structure import CALLS, log

MINUTE = 60.0


@dataclass(slots=True)
class Request:
    """One call. `status` 0: not answered yet, or the connection was dropped."""

    at: float  # time.monotonic()
    token: str
    content: str
    kind: str  # export, import, delete (of records), metadata (all else)
    records: int  # how many records the call names
    params: dict[str, str] = field(repr=False)  # without token and data
    status: int = 0
    seconds: float = 0.0


class RedcapSimulator:
    """Set the plain attributes at any time, also while it serves."""

    def __init__(self, projects: Mapping[str, Project] | None = None) -> None:
        self.projects: dict[str, Project] = dict(projects or {})
        self.faults = Faults()
        self.requests: list[Request] = []
        self.latency_seconds = 0.0
        self.seconds_per_record_written = 0.0
        self.requests_per_minute: int | None = None  # REDCap's own default is 600
        self.refuse_overlapping = False  # identical requests at the same time get the "multiple tabs" page
        self.most_records_named: int | None = None  # a proxy refused 847 ids and more (REDCapR issue 512)
        self.max_input_vars: int | None = 1000  # PHP's default: what comes after is silently dropped
        self.time_zone: tzinfo = UTC
        self.visibility_lag = timedelta()  # until a change shows in dateRange; PHPCap's tests wait a minute
        self.version = "15.5.0"
        self.banned: set[str] = set()
        self.revoked: set[str] = set()
        self.url = ""
        self.stopping = threading.Event()
        self._recent: dict[str, deque[float]] = {}
        self._running: set[tuple[tuple[str, str], ...]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def serve(self, port: int = 0, host: str = "127.0.0.1") -> Iterator[Self]:
        """Serves `url` until the block ends; the same port may be given again to play an outage."""
        self.stopping.clear()
        with running_server(self, host, port) as bound_port:
            self.url = f"http://{host}:{bound_port}/api/"
            yield self

    # --- what tests ask ----------------------------------------------------------------------------

    def count(self, kind: str | None = None, *, content: str | None = None, status: int | None = None) -> int:
        return sum(
            kind in {None, each.kind} and content in {None, each.content} and status in {None, each.status}
            for each in self.requests
        )

    def project_named(self, name: str) -> Project:
        """By token, title, or project id."""
        for token, project in self.projects.items():
            if name in {token, project.title, str(project.project_id)}:
                return project
        raise KeyError(name)

    def lift_ban(self) -> None:
        with self._lock:
            self.banned.clear()
            self._recent.clear()

    # --- answering ---------------------------------------------------------------------------------

    def answer(self, client: str, pairs: list[tuple[str, str]]) -> Answer:
        """One POST to the API."""
        params = Params(pairs[: self.max_input_vars])
        request = self._note(params)
        answer = self._ban_page(client, request.at) or self._answer_once(_Exchange(self, params, request))
        request.status = answer.status
        request.seconds = time.monotonic() - request.at
        return answer

    def control(self, method: str, path: str, body: bytes) -> Answer:
        return answer_control(self, method, path, body)

    def _note(self, params: Params) -> Request:
        token, content = params.get("token"), params.get("content")
        kind = _kind_of(params)
        project = self.projects.get(token)
        named = len(params.names("records"))
        if kind == "import" and project is not None:
            named = distinct_records(project, params)
        shown = {name: value for name, value in params.values.items() if name not in {"token", "data"}}
        request = Request(time.monotonic(), token, content, kind, named, shown)
        self.requests.append(request)
        return request

    def _ban_page(self, client: str, now: float) -> Answer | None:
        """Over the limit, the address stays banned until an administrator lifts it (PyCap issue 69)."""
        with self._lock:
            recent = self._recent.setdefault(client, deque())
            recent.append(now)
            while recent[0] <= now - MINUTE:
                recent.popleft()
            if self.requests_per_minute is not None and len(recent) > self.requests_per_minute:
                self.banned.add(client)
            return html_answer(403, BAN_PAGE) if client in self.banned else None

    def _answer_once(self, exchange: _Exchange) -> Answer:
        key = tuple(sorted(exchange.params.values.items()))
        with self._lock:
            overlaps = self.refuse_overlapping and key in self._running
            self._running.add(key)
        if overlaps:
            return html_answer(*PAGES["tabs_page"])
        named = len(exchange.params.names("records"))
        if self.most_records_named is not None and named > self.most_records_named:
            return html_answer(*PAGES["firewall_page"])
        try:
            return self._answer_with_faults(exchange)
        finally:
            with self._lock:
                self._running.discard(key)

    def _answer_with_faults(self, exchange: _Exchange) -> Answer:
        self.wait(self.latency_seconds)
        fault = self.faults.take(exchange.request.kind, exchange.request.token)
        return exchange.answer() if fault is None else strike(fault, exchange)

    def wait(self, seconds: float) -> None:
        """Sleeps; a server that goes down meanwhile drops the request without carrying it out."""
        if seconds and self.stopping.wait(seconds):
            raise ConnectionAbortedError

    def carry_out(self, params: Params, *, keep: float) -> Answer:
        token, content = params.get("token"), params.get("content")
        project = self.projects.get(token)
        # 403, not the 401 of the help page (REDCapR's tests).
        if project is None or token in self.revoked:
            raise ApiError(403, NO_PERMISSION)
        if content == "version":
            return text_answer(self.version, "csv")
        if content == "record":
            return self._records(project, params, keep=keep)
        if content != "log" and content not in CALLS:
            raise ApiError(400, 'The value of the parameter "content" is not valid')
        if not project.rights.api_export:
            raise ApiError(403, "You do not have API Export privileges")
        if content == "log":
            return log(project, params, self.time_zone)
        return CALLS[content](project, params)

    def _records(self, project: Project, params: Params, *, keep: float) -> Answer:
        kind = _kind_of(params)
        if kind == "import":
            return import_records(project, params, self._pause_for_writing)
        if kind == "delete":
            return delete_records(project, params)
        return export_records(project, params, ServerTime(self.time_zone, self.visibility_lag), keep=keep)

    def _pause_for_writing(self, records: int) -> None:
        self.wait(records * self.seconds_per_record_written)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """The request as faults see it."""

    simulator: RedcapSimulator
    params: Params
    request: Request

    @property
    def return_format(self) -> str:
        return self.params.return_format

    def answer(self, *, keep: float = 1.0) -> Answer:
        try:
            return self.simulator.carry_out(self.params, keep=keep)
        except ApiError as error:
            return error.answer(self.params.return_format)

    def wait(self, seconds: float) -> None:
        self.simulator.wait(seconds)

    def revoke_token(self) -> None:
        self.simulator.revoked.add(self.request.token)


def _kind_of(params: Params) -> str:
    """An import is told from an export by its `data`; no action is sent (PyCap, REDCapR)."""
    if params.get("content") != "record":
        return "metadata"
    if params.get("action") == "delete":
        return "delete"
    return "import" if "data" in params.values else "export"
