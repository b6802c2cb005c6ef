"""What goes over the wire: request parameters, answers, errors, and the csv, json and xml renderings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

Cell = str | int
XML_HEAD = '<?xml version="1.0" encoding="UTF-8" ?>'
# REDCapTidieR's recorded answers, and redcapAPI issue 297 for csv; xml is by analogy.
CONTENT_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json; charset=utf-8",
    "xml": "text/xml; charset=utf-8",
}
HTML = "text/html; charset=UTF-8"
DELIMITERS = {"tab": "\t", ",": ",", ";": ";", "|": "|", "^": "^", "\t": "\t"}


@dataclass(slots=True)
class Answer:
    status: int
    content_type: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False  # drop the connection instead of answering
    drip_seconds: float = 0.0  # spread the body over this time
    cut_off: bool = False  # announce the whole body, send half of it, hang up


class ApiError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def answer(self, return_format: str) -> Answer:
        return text_answer(_error_text(self.message, return_format), return_format, status=self.status)


def _error_text(message: str, return_format: str) -> str:
    """The three shapes seen in PyCap issue 140, REDCapR's and REDCap.jl's tests."""
    if return_format == "json":
        return compact_json({"error": message})
    if return_format == "csv":
        return f"ERROR: {message}"
    return f"{XML_HEAD}<hash><error>{escape(message)}</error></hash>"


class Params:
    """The form that was posted. Names are case-sensitive (REDCap API help)."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.values = dict(pairs)

    def get(self, name: str, default: str = "") -> str:
        return self.values.get(name, default)

    def flag(self, name: str) -> bool:
        """PyCap sends True, REDCapR true or TRUE, others 1."""
        return self.get(name).lower() in {"true", "1"}

    def names(self, name: str) -> list[str]:
        """A list parameter, as `fields[0]=a&fields[1]=b` (PyCap) or `fields=a,b` (REDCapR)."""
        plain = [part.strip() for part in self.get(name).split(",") if part.strip()]
        return plain + [value for key, value in self.values.items() if key.startswith(f"{name}[")]

    @property
    def format(self) -> str:
        return self._known_format(self.get("format"), "xml")

    @property
    def return_format(self) -> str:
        """The format of errors and of import results; defaults to `format` (REDCap API help)."""
        return self._known_format(self.get("returnFormat"), self.format)

    @staticmethod
    def _known_format(value: str, otherwise: str) -> str:
        return value if value in CONTENT_TYPES else otherwise

    @property
    def delimiter(self) -> str:
        return DELIMITERS.get(self.get("csvDelimiter"), ",")


@dataclass(frozen=True, slots=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def compact_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def text_answer(text: str, data_format: str, *, status: int = 200) -> Answer:
    return Answer(status, CONTENT_TYPES[data_format], text.encode())


def html_answer(status: int, html: str) -> Answer:
    return Answer(status, HTML, html.encode())


def csv_text(rows: Iterable[Sequence[Cell]], delimiter: str = ",") -> str:
    """As PHP's fputcsv: a value with a space is quoted too (REDCapTidieR's recorded answers)."""
    needs_quotes = re.compile(rf'[{re.escape(delimiter)}"\s\\]').search

    def cell(value: Cell) -> str:
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if needs_quotes(text) else text

    return "".join(delimiter.join(map(cell, row)) + "\n" for row in rows)


def xml_text(table: Table, root: str) -> str:
    items = [f"<item>{_xml_cells(table.header, row)}</item>" for row in table.rows]
    return "\n".join([XML_HEAD, f"<{root}>", *items, f"</{root}>"])


def _xml_cells(header: Sequence[str], row: Sequence[Cell]) -> str:
    return "".join(f"<{name}>{_cdata(cell)}</{name}>" for name, cell in zip(header, row, strict=True))


def _cdata(value: Cell) -> str:
    return "<![CDATA[" + str(value).replace("]]>", "]]]]><![CDATA[>") + "]]>"


def json_text(table: Table) -> str:
    return compact_json([dict(zip(table.header, row, strict=True)) for row in table.rows])


def records_answer(table: Table, params: Params, header: Sequence[str] | None = None) -> Answer:
    """Records: an empty result is `[]` in json, an empty body without header in csv (REDCapR's tests)."""
    if params.format == "json":
        text = json_text(table)
    elif params.format == "xml":
        text = xml_text(table, "records")
    else:
        text = csv_text([header or table.header, *table.rows], params.delimiter) if table.rows else ""
    return text_answer(text, params.format)


def structure_answer(table: Table, params: Params, root: str) -> Answer:
    """Everything else: in csv without a newline at the end (REDCapTidieR's recorded answers)."""
    if params.format == "json":
        text = json_text(table)
    elif params.format == "xml":
        text = xml_text(table, root)
    else:
        text = csv_text([table.header, *table.rows], params.delimiter).removesuffix("\n")
    return text_answer(text, params.format)
