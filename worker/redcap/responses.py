"""What an answer of REDCap is: an answer to the request, a rejection, or a failure.

Names like "REDCapR #317" are issues of public REDCap clients in which the behaviour was reported.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from shared.errors import RedcapRejected, RedcapUnavailable
from worker.redcap.redaction import redact

# How REDCap says that a request was too large: PyCap #26 and #80 (with status 500 and 200), REDCapR #627
# (REDCap 15.7.2), and PHP itself.
_TOO_LARGE = ("ran out of server memory", "too much data", "smaller data set", "allowed memory size")
_TRANSIENT_STATUS = {408, 425, 429}


class RowsRejected(RedcapRejected):
    """REDCap rejected some rows of an import, and therefore all. `reasons` holds them by record id."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("redcap_validation", f"{len(reasons)} records were rejected")
        self.reasons = reasons


class ExportTooLarge(RedcapUnavailable):
    """The server cannot prepare the export: request fewer records at a time."""


@dataclass(frozen=True)
class Answer:
    """An answer of REDCap. Its text must not contain the token: it may be repeated in messages."""

    status: int
    text: str
    # The record ids of the import that it answers.
    sent: AbstractSet[str] = frozenset()
    # Why the caller cannot use it, although it looks like a success.
    defect: str = ""

    @property
    def is_redirect(self) -> bool:
        return 300 <= self.status < 400

    @property
    def is_server_failure(self) -> bool:
        return self.status in _TRANSIENT_STATUS or self.status >= 500

    @cached_property
    def rejection(self) -> str | None:
        """REDCap's own words, or None. Only these are a rejection, after which changes are abandoned.

        Anything else that is not an answer comes from gateways, firewalls or logins, and is temporary.
        """
        return None if self.is_redirect or self.is_server_failure else _error_message(self.text)

    @property
    def is_success(self) -> bool:
        """No answer that this program requests begins with "<", and every page does."""
        is_page = self.text.lstrip().startswith("<")
        return self.status == 200 and not self.defect and not is_page and self.rejection is None

    def mentions(self, *words: str) -> bool:
        """Whether the answer contains all these words."""
        text = (self.text if self.rejection is None else self.rejection).lower()
        return all(word in text for word in words)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of answer that is not a success, and the error that it becomes."""

    name: str
    matches: Callable[[Answer], bool]
    error: type[RedcapUnavailable | RedcapRejected]
    hint: str


# The first match counts.
KINDS = (
    Kind("redcap_redirects", lambda answer: answer.is_redirect,
         RedcapUnavailable, "status {status}: write the final address in redcap_url, with /api/"),
    Kind("redcap_out_of_memory", lambda answer: any(map(answer.mentions, _TOO_LARGE)),
         ExportTooLarge, "more at once than the server can prepare"),
    Kind("redcap_tabs_page", lambda answer: answer.mentions("multiple", "browser tabs"),
         RedcapUnavailable, "the page about several browser tabs"),
    Kind("redcap_server_error", lambda answer: answer.is_server_failure,
         RedcapUnavailable, "status {status}"),
    Kind("redcap_forbidden", lambda answer: answer.rejection is not None and answer.status in {401, 403},
         RedcapRejected, "status {status}: {message}"),
    Kind("redcap_no_such_field", lambda answer: answer.rejection is not None and _names_unknown_field(answer),
         RedcapRejected, "status {status}: {message}"),
    Kind("redcap_rejected", lambda answer: answer.rejection is not None,
         RedcapRejected, "status {status}: {message}"),
    Kind("redcap_strange_answer", lambda answer: bool(answer.defect),
         RedcapUnavailable, "{defect}"),
    Kind("redcap_banned", lambda answer: answer.status == 403 or answer.mentions("banned"),
         RedcapUnavailable, "a page with status {status}: is our address banned?"),
    Kind("redcap_page", lambda _answer: True,
         RedcapUnavailable, "a page with status {status}: login, maintenance or a wrong redcap_url"),
)  # fmt: skip


def raise_for_response(answer: Answer) -> None:
    """Raise the error that an answer stands for, unless it is a success."""
    if not answer.is_success:
        raise classify(answer)


def classify(answer: Answer) -> RedcapUnavailable | RedcapRejected:
    """Return the error that an answer stands for. Only for answers that are not a success."""
    rejection = answer.rejection or ""
    if reasons := row_reasons(rejection, answer.sent):
        return RowsRejected(reasons)
    kind = next(kind for kind in KINDS if kind.matches(answer))
    detail = kind.hint.format(status=answer.status, message=redact(rejection), defect=answer.defect)
    return kind.error(kind.name, detail)


def row_reasons(message: str, sent: AbstractSet[str]) -> dict[str, str]:
    """Return REDCap's reasons by record id, from lines of "record","field","value","message" (PyCap #138).

    The value is replaced: it may be personal data.
    """
    reasons: dict[str, str] = {}
    for cells in _csv_lines(message):
        record = _record_named(cells[0], sent) if len(cells) == 4 else None
        if record is not None:
            _, field, value, text = cells
            reasons[record] = redact(f"{field}: {text.replace(value, '…') if value else text}")
    return reasons


def _record_named(cell: str, sent: AbstractSet[str]) -> str | None:
    """Longitudinal projects name the row "7" or "7 (enrolment_arm_1)" (sibispy reads both forms)."""
    return next((name for name in (cell, cell.rpartition(" (")[0]) if name in sent), None)


def _csv_lines(message: str) -> Iterator[list[str]]:
    """Return the lines of a message that can be read as CSV: a message without such lines names no row.

    csv raises for a lone CR, which `newline=None` treats as the end of a line, and for a cell of more than 131,072
    characters (CPython, Modules/_csv.c).
    """
    with suppress(csv.Error):
        yield from csv.reader(io.StringIO(message, newline=None))


def _names_unknown_field(answer: Answer) -> bool:
    return answer.mentions("not valid", "fields") or answer.mentions("were not found in the project")


def _error_message(text: str) -> str | None:
    """Return the text of REDCap's error, which may come with status 200: PyCap checks only the key "error"."""
    text = text.strip()
    if text.startswith("ERROR:"):
        return text.removeprefix("ERROR:").lstrip()
    with suppress(ValueError, RecursionError):
        answer = json.loads(text, strict=False) if text.startswith("{") else {}
        return str(answer["error"]) if "error" in answer else None
    return None
