"""REDCap over HTTP: a thin client that tells an answer from what only looks like one.

PyCap, the field's own library, is made for notebooks: an outage and a refusal raise the same error there,
and HTML can come back as data. Names below like "REDCapR #317" are issues of public REDCap clients in
which the behaviour was reported.
"""

import codecs
import csv
import html
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import ijson
import requests
import tenacity
from urllib3.exceptions import HTTPError as StreamError

from shared.errors import RedcapRejected, RedcapUnavailable

Row = dict[str, Any]

CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 60.0
# A whole project of 100,000 records is prepared in REDCap's memory before the first byte comes.
WHOLE_EXPORT_TIMEOUT_SECONDS = 300.0
# PHP's max_input_vars is 1,000, and a server refused 846 ids (REDCapR #512).
MAX_RECORDS_PER_REQUEST = 450

# How REDCap says that it was too much at once: PyCap #26 and #80 (with status 500, and 200), REDCapR #627
# (REDCap 15.7.2), and PHP itself.
_TOO_MUCH = ("ran out of server memory", "too much data", "smaller data set", "allowed memory size")
_PASSING_STATUS = {408, 425, 429}  # and whatever a server or gateway says of itself: 500 and above


class RowsRejected(RedcapRejected):
    """REDCap refused some rows of an import, and therefore all. `reasons` holds them by record id."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("redcap_validation", f"{len(reasons)} records were refused")
        self.reasons = reasons


class ExportTooLarge(RedcapUnavailable):
    """The export was too large for the server: ask for less at a time."""


class RateLimit(Protocol):
    """See `worker.redcap.rate_limit.RateLimiter`."""

    def acquire(self) -> None: ...


class Circuit(Protocol):
    """See `worker.redcap.circuit_breaker.CircuitBreaker`."""

    def check(self) -> None: ...
    def record_failure(self, *, banned: bool = False) -> None: ...
    def record_success(self) -> None: ...


class RedcapClient:
    """One project's API. Every method may raise RedcapUnavailable (try later) or RedcapRejected."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        rate_limiter: RateLimit,
        circuit_breaker: Circuit,
        count: Callable[[str, str], None] = lambda _content, _outcome: None,
        session: requests.Session | None = None,
    ) -> None:
        self._url = url
        self._token = token
        self._rate_limiter = rate_limiter
        self._circuit_breaker = circuit_breaker
        self._count = count
        self._session = session or new_session()

    def __repr__(self) -> str:
        return f"RedcapClient({urlsplit(self._url).hostname!r})"

    def get_object(self, content: str) -> Row:
        """The answer of a structure call that is one object: project."""
        answer = self._json(self._ask({"content": content}))
        if not isinstance(answer, dict):
            raise RedcapUnavailable("redcap_strange_answer", f"{content} is no object")
        return answer

    def get_list(self, content: str, *names: str) -> list[Row]:
        """The answer of a structure call that is a list of objects, each with these names, and not empty."""
        answer = self._json(self._ask({"content": content}))
        rows = answer if isinstance(answer, list) else []
        if not rows or not all(_holds(row, names) for row in rows):
            raise RedcapUnavailable("redcap_strange_answer", f"{content} is no list of what it should be")
        return rows

    def version(self) -> str:
        """REDCap's version, such as "14.5.10". Mails show it in links, so that nothing else may pass for it."""
        answer = self.text("version")
        if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){1,3}", answer):
            raise RedcapUnavailable("redcap_strange_answer", "version is no version")
        return answer

    def text(self, content: str) -> str:
        """The answer of one of the calls that give plain text: version, generateNextRecordName."""
        return _decoded(self._ask({"content": content}).content).strip()

    def export(
        self, fields: Sequence[str], *, records: Sequence[str] = (), events: Sequence[str] = ()
    ) -> list[Row]:
        """Rows of the named records (at most MAX_RECORDS_PER_REQUEST), or of all."""
        answer = self._json(self._ask(_export_request(fields, records=records, events=events)))
        if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
            raise RedcapUnavailable("redcap_strange_answer", "an export that is no list of rows")
        return answer

    def export_all(
        self, fields: Sequence[str], *, events: Sequence[str] = (), changed_since: str = ""
    ) -> Iterator[Row]:
        """Rows of all records, streamed in bounded memory; `changed_since` is the server's local time.

        Raises ExportTooLarge where the server cannot prepare so many.
        """
        request = _export_request(fields, events=events)
        if changed_since:
            request["dateRangeBegin"] = changed_since
        with closing(self._ask(request, stream=True)) as response:
            yield from self._rows(response)

    def import_rows(self, rows: Sequence[Mapping[str, str]], id_field: str) -> None:
        """Write rows that all have the same keys. Raises RowsRejected with a reason per record.

        REDCap creates a record whose id it does not know: the caller has just read these ids.
        """
        sent = {row[id_field] for row in rows}
        response = self._ask(
            {
                "content": "record",
                "type": "flat",
                # "overwrite" alone can clear a field; columns that are not sent stay untouched.
                "overwriteBehavior": "overwrite",
                "dateFormat": "YMD",
                "returnContent": "ids",
                "data": json.dumps(list(rows), ensure_ascii=False),
            },
            import_ids=sent,
        )
        self._check_written(self._json(response), sent)

    def import_nothing(self) -> None:
        """An import without rows, which changes nothing: raises RedcapRejected where the token may not import."""
        self._ask(
            {"content": "record", "type": "flat", "overwriteBehavior": "normal", "data": "[]"},
            import_ids=set(),
        )

    def _check_written(self, answer: Any, sent: set[str]) -> None:
        """An import that REDCap did not understand answers 200 and a count of 0 (PyCap #103)."""
        if isinstance(answer, list):
            written = {str(record) for record in answer} >= sent
        else:
            count = answer.get("count") if isinstance(answer, dict) else answer
            written = str(count) == str(len(sent))
        if written:
            return
        raise RedcapUnavailable("redcap_not_written", "the import's answer does not name all records")

    # --- asking ---------------------------------------------------------------------------------

    def _ask(
        self, request: dict[str, str], *, stream: bool = False, import_ids: set[str] | None = None
    ) -> requests.Response:
        content = "import" if import_ids is not None else request["content"]
        try:
            response = self._retrying(lambda: self._post(request, stream=stream, import_ids=import_ids))
        except RedcapUnavailable as error:
            if error.code != "redcap_circuit_open":  # then nobody was asked
                self._count(content, error.code)
                if not isinstance(error, ExportTooLarge):
                    self._circuit_breaker.record_failure(banned=error.code == "redcap_banned")
            raise
        except RedcapRejected as error:
            self._count(content, error.code)
            self._circuit_breaker.record_success()
            raise
        self._count(content, "ok")
        self._circuit_breaker.record_success()
        return response

    def _retrying(self, attempt: Callable[[], requests.Response]) -> requests.Response:
        """A few quick tries for what passes in a moment; longer outages are sweep's."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes_in_a_moment),
            wait=tenacity.wait_exponential_jitter(multiplier=0.3, max=2.0),
            stop=tenacity.stop_after_attempt(3),
            reraise=True,
        )(attempt)

    def _post(
        self, request: dict[str, str], *, stream: bool, import_ids: set[str] | None
    ) -> requests.Response:
        self._circuit_breaker.check()
        self._rate_limiter.acquire()
        body = {"token": self._token, "format": "json", "returnFormat": "json", **request}
        read_timeout = WHOLE_EXPORT_TIMEOUT_SECONDS if stream else READ_TIMEOUT_SECONDS
        try:
            response = self._session.post(
                self._url,
                data=body,
                timeout=(CONNECT_TIMEOUT_SECONDS, read_timeout),
                # A redirect turns the POST into a GET, which REDCap answers with 501 (REDCapR #166).
                allow_redirects=False,
                stream=stream,
            )
            self._classify(response, import_ids, unread=stream and not _claims_html(response))
        except requests.Timeout:
            kind = ExportTooLarge if stream else RedcapUnavailable
            raise kind("redcap_timeout", "no answer in time") from None
        except requests.RequestException as error:
            # Without its text: urllib3 repeats addresses, and a proxy's may hold a password.
            raise RedcapUnavailable("redcap_unreachable", type(error).__name__) from None
        return response

    def _classify(self, response: requests.Response, import_ids: set[str] | None, *, unread: bool) -> None:
        """Return if this is an answer; else raise what it is. A good answer of a stream is left unread."""
        if response.status_code != 200 or not unread:
            _judge(response.status_code, self._without_token(response.content), import_ids)

    def _without_token(self, body: bytes) -> str:
        """An answer's text where words of it may be repeated: who refuses a request may quote it."""
        return re.sub(re.escape(self._token), "…", _decoded(body), flags=re.IGNORECASE)

    def _json(self, response: requests.Response) -> Any:
        text = _decoded(response.content)
        try:
            return json.loads(text)
        except (ValueError, RecursionError):  # the latter for brackets within brackets, thousands of them
            raise _trouble(text) or RedcapUnavailable("redcap_strange_answer", "not JSON") from None

    def _rows(self, response: requests.Response) -> Iterator[Row]:
        try:
            body = _body(response)
            if not _decoded(body.peek(64)).lstrip().startswith("["):
                raise _no_rows(self._without_token(body.read(65_536)))
            yield from map(_as_row, ijson.items(_CleanUtf8(body), "item", use_float=True))
        except ijson.JSONError:
            raise ExportTooLarge("redcap_truncated", "the export broke off, or was no list of rows") from None
        except (requests.RequestException, StreamError, OSError) as error:
            raise ExportTooLarge("redcap_broken_export", type(error).__name__) from None


def new_session() -> requests.Session:
    """An HTTP session that keeps its connections; it holds no token, so projects may share it."""
    session = requests.Session()
    session.headers["User-Agent"] = "opt-out-bridge"
    session.headers["Accept"] = "application/json"
    return session


def _export_request(
    fields: Sequence[str], *, records: Sequence[str] = (), events: Sequence[str] = ()
) -> dict[str, str]:
    """An export's parameters. Lists go in PHP's array style: a comma string breaks on ids with commas,
    and once made a server answer with everything (PyCap #110)."""
    request = {"content": "record", "type": "flat", "rawOrLabel": "raw"}
    for name, values in (("fields", fields), ("records", records), ("events", events)):
        request |= {f"{name}[{number}]": value for number, value in enumerate(values)}
    return request


def _passes_in_a_moment(error: BaseException) -> bool:
    return isinstance(error, RedcapUnavailable) and error.code in {
        "redcap_unreachable",
        "redcap_server_error",
        "redcap_tabs_page",
        "redcap_strange_answer",
    }


def _body(response: requests.Response) -> io.BufferedReader:
    """The body as a stream, whether or not it has been looked at already."""
    if _claims_html(response):
        return io.BufferedReader(io.BytesIO(response.content))
    response.raw.decode_content = True
    response.raw.auto_close = False  # urllib3 would close at the end, under the buffer's feet
    return io.BufferedReader(response.raw, 65_536)


def _claims_html(response: requests.Response) -> bool:
    return "html" in response.headers.get("Content-Type", "").lower()


def _as_windows_text(error: UnicodeError) -> tuple[str, int]:
    """Bytes that are no UTF-8 are mostly Windows' own: a lone A0 is its non-breaking space (redcapAPI #297).

    Read as such, a phone number stays whole around it.
    """
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


_ANY_BYTES = "optout_any_bytes"
codecs.register_error(_ANY_BYTES, _as_windows_text)


def _decoded(body: bytes) -> str:
    """An answer's text. A stored value may hold bytes that are no UTF-8 (redcapAPI #290, REDCapR #391)."""
    return body.decode("utf-8-sig", errors=_ANY_BYTES)


class _CleanUtf8:
    """A stream as `_decoded` reads it, for a parser that takes nothing but UTF-8: one bad byte ends no export."""

    def __init__(self, body: io.BufferedReader) -> None:
        self._body = body
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors=_ANY_BYTES)

    def read(self, size: int) -> bytes:
        """About `size` bytes; none only at the end (or where none are asked for)."""
        while chunk := self._body.read(size):
            # A chunk may end within a character; what is left of it comes with the next one.
            if text := self._decoder.decode(chunk):
                return text.encode()
        return self._decoder.decode(b"", final=size != 0).encode()


def _as_row(item: Any) -> Row:
    if not isinstance(item, dict):
        raise RedcapUnavailable("redcap_strange_answer", "an export with something that is no row")
    return item


def _holds(row: Any, names: Sequence[str]) -> bool:
    """Whether this is an object with text under each of these names."""
    return isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names)


def _judge(status: int, text: str, import_ids: set[str] | None) -> None:
    """Status first, then what the body looks like: no answer that we ask for begins with "<", and every page does.

    Only REDCap's own words are a refusal, for which changes are given up. Whatever else comes instead of an
    answer, from gateways, firewalls or logins, is taken to pass.
    """
    if 300 <= status < 400:
        raise RedcapUnavailable(
            "redcap_redirects", f"status {status}: write the final address in redcap_url, with /api/"
        )
    if status in _PASSING_STATUS or status >= 500:
        raise _trouble(text) or RedcapUnavailable("redcap_server_error", f"status {status}")
    message = _error_message(text)
    if message is not None:
        raise _refusal(status, message, import_ids)
    if status != 200 or text.lstrip()[:1] == "<":
        raise _page(status, text)


def _page(status: int, text: str) -> RedcapUnavailable:
    """Something for people where an answer for programs was due: never an answer, whatever its status."""
    if trouble := _trouble(text):
        return trouble
    if "banned" in text.lower() or status == 403:
        return RedcapUnavailable("redcap_banned", f"a page with status {status}: is our address banned?")
    return RedcapUnavailable(
        "redcap_page", f"a page with status {status}: login, maintenance or a wrong redcap_url"
    )


def _trouble(text: str) -> RedcapUnavailable | None:
    """What REDCap says of itself, with any status: it passes, or asks for less."""
    lowered = text.lower()
    if any(words in lowered for words in _TOO_MUCH):
        return ExportTooLarge("redcap_out_of_memory", "more at once than the server can prepare")
    if "multiple" in lowered and "browser tabs" in lowered:
        return RedcapUnavailable("redcap_tabs_page", "the page about several browser tabs")
    return None


def _no_rows(text: str) -> RedcapUnavailable | RedcapRejected:
    """What an export is that is no list of rows, though its status is 200."""
    message = _error_message(text)
    if message is not None:
        return _refusal(200, message, None)
    return _trouble(text) or RedcapUnavailable("redcap_strange_answer", "an export that is no list of rows")


def _error_message(text: str) -> str | None:
    """REDCap's own words, also where the status says that all is well: PyCap goes by the key "error" alone."""
    text = text.strip()
    if text.startswith("ERROR:"):
        return text.removeprefix("ERROR:").lstrip()
    try:
        answer = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        return None
    return str(answer["error"]) if isinstance(answer, dict) and "error" in answer else None


def _refusal(status: int, message: str, import_ids: set[str] | None) -> RedcapRejected | RedcapUnavailable:
    """What REDCap's own words mean."""
    reasons = _row_reasons(message, import_ids or set())
    if reasons:
        return RowsRejected(reasons)
    return _trouble(message) or RedcapRejected(
        _refusal_code(status, message), f"status {status}: {redact(message)}"
    )


def _refusal_code(status: int, message: str) -> str:
    lowered = message.lower()
    if status in {401, 403}:
        return "redcap_forbidden"
    if ("not valid" in lowered and "fields" in lowered) or "were not found in the project" in lowered:
        return "redcap_no_such_field"
    return "redcap_rejected"


def _row_reasons(message: str, sent: set[str]) -> dict[str, str]:
    """REDCap's reasons by record id: lines of "record","field","value","message" (PyCap #138).

    The value is left out: it is what somebody stored.
    """
    reasons: dict[str, str] = {}
    for cells in _lines_of_cells(message):
        # Longitudinal projects have named the row "7 (enrolment_arm_1)" (sibispy reads both forms).
        record = (
            next((name for name in (cells[0], cells[0].rpartition(" (")[0]) if name in sent), None)
            if cells
            else None
        )
        if len(cells) == 4 and record is not None:
            _, field, value, text = cells
            reasons[record] = redact(f"{field}: {text.replace(value, '…') if value else text}")
    return reasons


def _lines_of_cells(message: str) -> Iterator[list[str]]:
    """A message read as CSV, as far as it goes: what cannot be read is REDCap's refusal still, but names no row.

    csv refuses a lone CR, which `newline=None` takes for the end of a line, and a cell of more than 131,072
    characters (CPython, Modules/_csv.c).
    """
    with suppress(csv.Error):
        yield from csv.reader(io.StringIO(message, newline=None))


# What is shown is 300 characters; a megabyte would keep the expressions below busy for minutes.
MAX_REDACTED_LENGTH = 2_000
_STRAIGHT = str.maketrans(dict.fromkeys("“”„‟«»″「」『』", '"') | dict.fromkeys("‘’‚‛‹›′`´", "'"))
_NO_WORDS_OF_REDCAPS = (
    re.compile(r"[0-9A-Fa-f]{32,}"),  # a token, another's too
    re.compile(r'"[^"]*(?:"|$)'),
    re.compile(r"(?<!\w)'.*?(?:'(?!\w)|$)", re.DOTALL),  # no apostrophe: that stands within or behind a word
    re.compile(r"\S*@\S*"),
    re.compile(r"[+(]*\d(?:[\W_]{0,4}\d){6,}"),  # a number, whatever its digits are parted by
)


def redact(message: str) -> str:
    """A message of REDCap's without what may be somebody's data: quoted values, numbers, addresses.

    Spellings are made alike first (Unicode Standard Annex 15, NFKC): a non-breaking space becomes a space, a wide
    digit a digit.
    """
    message = html.unescape(message[:MAX_REDACTED_LENGTH]).translate(_STRAIGHT)
    # Not our own mark of what was left out, which would become three dots.
    message = "…".join(unicodedata.normalize("NFKC", part) for part in message.split("…"))
    message = re.sub(r"<[^<>]*>", " ", message)
    for form in _NO_WORDS_OF_REDCAPS:
        message = form.sub("…", message)
    return " ".join(message.split())[:300]
