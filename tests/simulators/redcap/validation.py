"""Which text a field takes by import, and how it is stored."""

from __future__ import annotations

import re
from datetime import datetime

from tests.simulators.redcap.project import Column, Field

NOT_IN_FORMAT = (
    "The value you provided could not be validated because it does not follow the expected format. "
    "Please try again."  # PyCap issue 138
)
DATE_ORDERS = {"YMD": "%Y-%m-%d", "MDY": "%m/%d/%Y", "DMY": "%d/%m/%Y"}
# A datetime field has no seconds, a datetime_seconds field must have them (REDCap API help).
TIME_PARTS = {"date": "", "datetime": " %H:%M", "datetime_seconds": " %H:%M:%S"}
PATTERNS = {
    "integer": r"[-+]?\d+",
    "number": r"[-+]?(\d+\.?\d*|\.\d+)",
    "number_1dp": r"-?\d+\.\d",  # "22" is refused (redcapAPI issue 217)
    "number_2dp": r"-?\d+\.\d{2}",
    "email": r"[^@\s]+@[^@\s]+\.[^@\s]+",
    "zipcode": r"\d{5}(-\d{4})?",
    "time": r"([01]\d|2[0-3]):[0-5]\d",
}
# North American numbers without a country code, as redcapAPI checks them; an extension is let pass.
PHONE = re.compile(r"[2-9][0-8]\d[2-9]\d{6}((x|ext)\d+)?")


def stored_form(column: Column, value: str, date_format: str) -> str:
    """The text that is stored; ValueError with REDCap's words if the field does not take it."""
    source = column.source
    allowed = _codes(column)
    if allowed is not None:
        if value not in allowed:
            raise ValueError(f"The value is not a valid category for {column.name}")
        return value
    assert source is not None
    if source.kind in {"file", "sql"}:
        raise ValueError(f"The field {source.name} cannot be imported")
    return _validated(source, value, date_format)


def _codes(column: Column) -> set[str] | None:
    source = column.source
    if source is None:
        return {"0", "1", "2"}
    if column.code or source.kind in {"yesno", "truefalse"}:
        return {"0", "1"}
    return {code for code, _ in source.choices} if source.kind in {"radio", "dropdown"} else None


def _validated(source: Field, value: str, date_format: str) -> str:
    family = re.sub(r"_(ymd|mdy|dmy)$", "", source.validation)
    if family in TIME_PARTS:
        return _date(value, family, date_format)
    pattern = PATTERNS.get("integer" if source.kind == "slider" else source.validation)
    if pattern and not re.fullmatch(pattern, value):
        raise ValueError(NOT_IN_FORMAT)
    if source.validation == "phone" and not PHONE.fullmatch(re.sub(r"[\s().\-]", "", value.lower())):
        raise ValueError(NOT_IN_FORMAT)
    return value


def _date(value: str, family: str, date_format: str) -> str:
    """Any _ymd, _mdy or _dmy field takes the order of `dateFormat` and is stored year first."""
    layout = DATE_ORDERS.get(date_format, DATE_ORDERS["YMD"]) + TIME_PARTS[family]
    try:
        moment = datetime.strptime(value, layout)
    except ValueError:
        raise ValueError(NOT_IN_FORMAT) from None
    stored = moment.strftime(DATE_ORDERS["YMD"] + TIME_PARTS[family])
    if date_format not in {"MDY", "DMY"} and stored != value:  # strptime would take "2026-1-5"
        raise ValueError(NOT_IN_FORMAT)
    return stored
