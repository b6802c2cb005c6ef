"""Removes phone numbers from log lines."""

import re
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any

# A safety net: no code logs a number, but a library's text may contain one, in any common spelling. Between digits:
# space, dot, dash or slash of any kind, brackets, spaces as forms or URLs encode them, and the non-breaking space as
# Python's repr shows it. Not a line break: otherwise a traceback's line number would join the digits after it.
_GAP = (
    r"(?:[ \t\u00a0\u2000-\u200b\u202f\u2060\u3000.\-\u2010-\u2015\u2212/\u00b7()+]"
    r"|%20|%2[89DEF]|\\xa0|\\u00a0|\\u20[01][0-9a-f])"
)
# Not within a word such as a SID or after its hyphen, and not part of a decimal number.
_BEGIN = r"(?<![^\W_])(?<![^\W_]-)(?<!\d\.)"
_END = r"(?![^\W_]|-[^\W_]|\.\d{3})"
_DATE = r"\d\d?[./-]\d\d?[./-]\d"
_PHONE = re.compile(
    # With "+", also URL-encoded once or twice, up to E.164's 15 digits.
    rf"(?:(?<![^\W_])\+|%(?:25)?2B)\d(?:{_GAP}{{0,3}}\d){{6,14}}"
    # With the international prefix 00.
    rf"|{_BEGIN}00[1-9](?:{_GAP}{{0,3}}\d){{7,14}}{_END}"
    # North American: three, three and four digits, with or without a leading 1.
    rf"|{_BEGIN}(?:1{_GAP}{{0,2}})?\(?\d{{3}}\)?{_GAP}{{0,2}}\d{{3}}{_GAP}{{0,2}}\d{{4}}{_END}"
    # National format with a leading 0: at least nine digits in groups.
    rf"|{_BEGIN}(?!{_DATE})(?=\(?0(?:{_GAP}{{0,2}}\d){{8}})\(?0[1-9]\d{{0,3}}(?:{_GAP}{{1,2}}\d{{2,8}}){{1,4}}{_END}"
    # Digits only.
    rf"|{_BEGIN}\d{{10,12}}{_END}",
    re.IGNORECASE,
)
_DIGIT = re.compile(r"\d")  # most texts have none, and need no further look


def mask_phone_numbers(
    _logger: Any, _method: str, fields: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """structlog processor: replace everything that looks like a phone number, at any depth."""
    for name, value in fields.items():
        if name != "timestamp":
            fields[name] = _mask(value)
    return fields


def _mask(value: Any) -> Any:
    match value:
        case str() if not isinstance(value, StrEnum):
            return _mask_text(value)
        case StrEnum() | bool() | float() | None:
            return value
        case dict():
            return {_mask(name): _mask(each) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return list(map(_mask, value))
        case int() if not _PHONE.fullmatch(str(value)):
            return value
        case _:  # as the renderer shows it
            return _mask_text(repr(value))


def _mask_text(text: str) -> str:
    return _PHONE.sub("[number]", text) if _DIGIT.search(text) else text
