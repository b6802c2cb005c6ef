"""REDCap's API over HTTP, without any knowledge of a study.

PyCap, the common library, is made for notebooks: it raises the same error for an outage and a rejection, and can
return HTML as data. Names like "REDCapR #317" are issues of public REDCap clients in which the behaviour was
reported.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import KW_ONLY, dataclass, field
from typing import Any
from urllib.parse import urlsplit

import ijson
import requests
import tenacity
from urllib3.exceptions import HTTPError as StreamError

from shared.causes import cause_in_words, host_and_port
from shared.errors import RedcapRejected, RedcapUnavailable
from shared.retry_policy import (
    REDCAP_CONNECT_TIMEOUT_SECONDS,
    REDCAP_EXPORT_TIMEOUT_SECONDS,
    REDCAP_READ_TIMEOUT_SECONDS,
)
from worker.http_session import failure_in_words, trusting
from worker.redcap.circuit_breaker import CircuitBreaker
from worker.redcap.decoding import Utf8Stream, claims_html, decode, open_stream
from worker.redcap.rate_limit import RateLimiter
from worker.redcap.responses import Answer, ExportTooLarge, classify, raise_for_response

Row = dict[str, Any]

# PHP's max_input_vars is 1,000, and a server rejected 846 ids (REDCapR #512).
MAX_RECORDS_PER_REQUEST = 450

_MAX_ERROR_BYTES = 65_536
# Failures that often pass within seconds.
_BRIEF_FAILURES = {"redcap_unreachable", "redcap_server_error", "redcap_tabs_page", "redcap_strange_answer"}


@dataclass(repr=False, eq=False)
class RedcapClient:
    """The API of one project. Every method may raise RedcapUnavailable (try later) or RedcapRejected."""

    url: str
    token: str
    _: KW_ONLY
    rate_limiter: RateLimiter
    circuit_breaker: CircuitBreaker
    count: Callable[[str, str], None] = lambda _content, _outcome: None
    session: requests.Session = field(default_factory=lambda: new_session())

    def __repr__(self) -> str:
        return f"RedcapClient({urlsplit(self.url).hostname!r})"

    def get_object(self, content: str) -> Row:
        """Return the answer to a structure request that is one object: project."""
        answer = self._json(self._request({"content": content}))
        if not isinstance(answer, dict):
            raise RedcapUnavailable("redcap_strange_answer", f"{content} is not an object")
        return answer

    def get_list(self, content: str, *names: str, may_be_empty: bool = False) -> list[Row]:
        """Return the answer to a structure request: at least one object, each with text under these names."""
        rows = self._rows(self._request({"content": content}))
        if not (rows or may_be_empty) or not all(
            isinstance(row.get(name), str) for row in rows for name in names
        ):
            raise RedcapUnavailable("redcap_strange_answer", f"{content} lacks rows or {', '.join(names)}")
        return rows

    def version(self) -> str:
        """Return REDCap's version, such as "14.5.10". It is checked, because mails show it in links."""
        answer = self.text("version")
        if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){1,3}", answer):
            raise RedcapUnavailable("redcap_strange_answer", "version is not a version number")
        return answer

    def text(self, content: str) -> str:
        """Return the answer to a request for plain text: version, generateNextRecordName."""
        return decode(self._request({"content": content}).content).strip()

    def export(
        self, fields: Sequence[str], *, records: Sequence[str] = (), events: Sequence[str] = ()
    ) -> list[Row]:
        """Return the rows of the named records (at most MAX_RECORDS_PER_REQUEST), or of all."""
        return self._rows(self._request(_export_request(fields, records=records, events=events)))

    def export_all(
        self, fields: Sequence[str], *, events: Sequence[str] = (), changed_since: str = ""
    ) -> Iterator[Row]:
        """Stream the rows of all records in bounded memory; `changed_since` is the server's local time.

        Raises ExportTooLarge if the server cannot prepare them all.
        """
        request = _export_request(fields, events=events)
        if changed_since:
            request["dateRangeBegin"] = changed_since
        with closing(self._request(request, stream=True)) as response:
            yield from self._streamed_rows(response)

    def import_rows(self, rows: Sequence[Mapping[str, str]], id_field: str) -> None:
        """Write rows that all have the same keys. Raises RowsRejected with a reason per record.

        REDCap creates a record whose id it does not know: the caller has just read these ids.
        """
        sent = {row[id_field] for row in rows}
        # "overwrite" alone can clear a field; columns that are not sent stay untouched.
        behaviour = {"overwriteBehavior": "overwrite", "dateFormat": "YMD", "returnContent": "ids"}
        data = json.dumps(list(rows), ensure_ascii=False)
        request = {"content": "record", "type": "flat", **behaviour, "data": data}
        _check_written(self._json(self._request(request, import_ids=sent)), sent)

    def import_nothing(self) -> None:
        """Import no rows, which changes nothing. Raises RedcapRejected if the token may not import."""
        request = {"content": "record", "type": "flat", "overwriteBehavior": "normal", "data": "[]"}
        self._request(request, import_ids=set())

    # --- requests -------------------------------------------------------------------------------

    def _request(
        self, request: dict[str, str], *, stream: bool = False, import_ids: AbstractSet[str] | None = None
    ) -> requests.Response:
        content = request["content"] if import_ids is None else "import"
        try:
            response = _retry_briefly(lambda: self._post(request, stream, import_ids or frozenset()))
        except (RedcapUnavailable, RedcapRejected) as error:
            self._record(content, error)
            raise
        self._record(content, None)
        return response

    def _record(self, content: str, error: RedcapUnavailable | RedcapRejected | None) -> None:
        """Update the metrics and the circuit breaker."""
        if error and error.code == "redcap_circuit_open":
            return  # no request was made
        self.count(content, error.code if error else "ok")
        if not isinstance(error, RedcapUnavailable):
            self.circuit_breaker.record_success()
        elif not isinstance(error, ExportTooLarge):
            self.circuit_breaker.record_failure(banned=error.code == "redcap_banned")

    def _post(self, request: dict[str, str], stream: bool, import_ids: AbstractSet[str]) -> requests.Response:
        self.circuit_breaker.check()
        self.rate_limiter.acquire()
        try:
            response = self._send(request, stream)
            if not (stream and response.status_code == 200 and not claims_html(response)):
                text = self._without_token(response.content)
                raise_for_response(Answer(response.status_code, text, import_ids))
        except requests.Timeout as error:
            kind = ExportTooLarge if stream else RedcapUnavailable
            raise kind("redcap_timeout", _failure(error, stream)) from None
        except requests.RequestException as error:
            raise RedcapUnavailable("redcap_unreachable", _failure(error, stream)) from None
        return response

    def _send(self, request: dict[str, str], stream: bool) -> requests.Response:
        return self.session.post(
            self.url,
            data={"token": self.token, "format": "json", "returnFormat": "json", **request},
            timeout=(REDCAP_CONNECT_TIMEOUT_SECONDS, _read_timeout(stream)),
            # A redirect turns the POST into a GET, which REDCap answers with 501 (REDCapR #166).
            allow_redirects=False,
            stream=stream,
        )

    # --- answers --------------------------------------------------------------------------------

    def _without_token(self, body: bytes) -> str:
        """Return an answer's text for use in messages: a server that rejects a request may quote it."""
        return re.sub(re.escape(self.token), "…", decode(body), flags=re.IGNORECASE)

    def _json(self, response: requests.Response) -> Any:
        try:
            return json.loads(decode(response.content), strict=False)
        except (ValueError, RecursionError):  # the latter for thousands of nested brackets
            text = self._without_token(response.content)
            raise classify(Answer(response.status_code, text, defect="not JSON")) from None

    def _rows(self, response: requests.Response) -> list[Row]:
        answer = self._json(response)
        if not isinstance(answer, list):
            raise RedcapUnavailable("redcap_strange_answer", "the answer is not a list of rows")
        return list(map(_row, answer))

    def _streamed_rows(self, response: requests.Response) -> Iterator[Row]:
        try:
            body = open_stream(response)
            if not decode(body.peek(64)).lstrip().startswith("["):
                text = self._without_token(body.read(_MAX_ERROR_BYTES))
                raise classify(Answer(200, text, defect="the export is not a list of rows"))
            yield from map(_row, ijson.items(Utf8Stream(body), "item", use_float=True))
        except ijson.JSONError:
            raise ExportTooLarge(
                "redcap_truncated", "the export is incomplete or not a list of rows"
            ) from None
        except (requests.RequestException, StreamError, OSError) as error:
            cause = cause_in_words(error, timeout_seconds=REDCAP_EXPORT_TIMEOUT_SECONDS)
            raise ExportTooLarge("redcap_broken_export", f"{host_and_port(self.url)}: {cause}") from None


def _read_timeout(stream: bool) -> float:
    return REDCAP_EXPORT_TIMEOUT_SECONDS if stream else REDCAP_READ_TIMEOUT_SECONDS


def _failure(error: requests.RequestException, stream: bool) -> str:
    connecting = isinstance(error, requests.ConnectTimeout)
    timeout = REDCAP_CONNECT_TIMEOUT_SECONDS if connecting else _read_timeout(stream)
    return failure_in_words(error, timeout_seconds=timeout)


def new_session() -> requests.Session:
    """Return an HTTP session that keeps its connections. It holds no token, so projects may share it."""
    session = trusting(requests.Session())
    session.headers["User-Agent"] = "opt-out-bridge"
    session.headers["Accept"] = "application/json"
    return session


def _export_request(
    fields: Sequence[str], *, records: Sequence[str] = (), events: Sequence[str] = ()
) -> dict[str, str]:
    """Return an export's parameters. Lists are sent as PHP arrays: a comma-separated string breaks on ids with
    commas, and once made a server return all records (PyCap #110)."""
    request = {"content": "record", "type": "flat", "rawOrLabel": "raw"}
    for name, values in (("fields", fields), ("records", records), ("events", events)):
        request |= {f"{name}[{number}]": value for number, value in enumerate(values)}
    return request


def _retry_briefly(attempt: Callable[[], requests.Response]) -> requests.Response:
    """Retry a few times what often passes within seconds; `optout.sweep` retries after longer outages."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_brief),
        wait=tenacity.wait_exponential_jitter(multiplier=0.3, max=2.0),
        stop=tenacity.stop_after_attempt(3),
        reraise=True,
    )(attempt)


def _is_brief(error: BaseException) -> bool:
    return isinstance(error, RedcapUnavailable) and error.code in _BRIEF_FAILURES


def _row(item: Any) -> Row:
    if not isinstance(item, dict):
        raise RedcapUnavailable("redcap_strange_answer", "an answer with an entry that is not a row")
    return item


def _check_written(answer: Any, sent: AbstractSet[str]) -> None:
    """Raise unless all records were written: for an import that it did not understand, REDCap returns 200 and a
    count of 0 (PyCap #103)."""
    if isinstance(answer, list):
        written = {str(record) for record in answer} >= sent
    else:
        count = answer.get("count") if isinstance(answer, dict) else answer
        written = str(count) == str(len(sent))
    if not written:
        raise RedcapUnavailable("redcap_not_written", "the import's answer does not name all records")
