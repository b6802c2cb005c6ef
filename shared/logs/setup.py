"""Logs: one line per step, JSON unless it is a terminal, without phone numbers whatever is logged."""

import logging
import os
import re
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Any

import structlog

# A safety net below the rule that nobody logs a number, in the spellings that people and programs give one. Between
# its digits: space, dot, dash or slash of any kind, brackets, a space as forms or URLs write it, and the non-breaking
# one as Python's repr does. A line break is none of these: the number of a traceback's line would become one's head.
_GAP = (
    r"(?:[ \t\u00a0\u2000-\u200b\u202f\u2060\u3000.\-\u2010-\u2015\u2212/\u00b7()+]"
    r"|%20|%2[89DEF]|\\xa0|\\u00a0|\\u20[01][0-9a-f])"
)
# Neither within a word, such as a SID, nor behind its hyphen; nor a decimal's fraction, or what has one.
_BEGIN = r"(?<![^\W_])(?<![^\W_]-)(?<!\d\.)"
_END = r"(?![^\W_]|-[^\W_]|\.\d{3})"
_DATE = r"\d\d?[./-]\d\d?[./-]\d"
_PHONE = re.compile(
    # With "+", also as URLs write it (once or twice), up to E.164's 15 digits.
    rf"(?:(?<![^\W_])\+|%(?:25)?2B)\d(?:{_GAP}{{0,3}}\d){{6,14}}"
    # With the international prefix 00.
    rf"|{_BEGIN}00[1-9](?:{_GAP}{{0,3}}\d){{7,14}}{_END}"
    # North American: three, three and four digits, with or without a 1 in front.
    rf"|{_BEGIN}(?:1{_GAP}{{0,2}})?\(?\d{{3}}\)?{_GAP}{{0,2}}\d{{3}}{_GAP}{{0,2}}\d{{4}}{_END}"
    # As written within a country that dials 0 first: at least nine digits in groups.
    rf"|{_BEGIN}(?!{_DATE})(?=\(?0(?:{_GAP}{{0,2}}\d){{8}})\(?0[1-9]\d{{0,3}}(?:{_GAP}{{1,2}}\d{{2,8}}){{1,4}}{_END}"
    # Nothing but digits.
    rf"|{_BEGIN}\d{{10,12}}{_END}",
    re.IGNORECASE,
)

# These write what we must not keep: twilio.http_client logs the To and From filters of each request at
# INFO, the others repeat addresses and URLs at DEBUG. Source: twilio-python 9.13, http_client.py.
_DISCREET = ("twilio.http_client", "urllib3", "kombu", "amqp", "werkzeug", "asyncio")
# Celery's own two lines per task, which say less than the one that each step ends with.
_REPETITIVE = ("celery.worker.strategy", "celery.app.trace")


def configure_logging(level: str | None = None) -> None:
    """Send everything, ours and the libraries', to standard error in one form."""
    level = (level or os.environ.get("OPTOUT_LOG_LEVEL") or "INFO").upper()
    known = level if level in logging.getLevelNamesMapping() else "INFO"
    structlog.configure(
        processors=[*_processors(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(known)
    for name in _DISCREET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in _REPETITIVE:
        logging.getLogger(name).setLevel(
            root.level if root.level <= logging.DEBUG else max(logging.WARNING, root.level)
        )


def formatter() -> logging.Formatter:
    """Renders any record, ours or a library's. By this name deploy/granian-log.json hands it to the web server."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    return structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        foreign_pre_chain=_processors(),
    )


def _processors() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask_phone_numbers,
    ]


def mask_phone_numbers(
    _logger: Any, _method: str, fields: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace whatever looks like a phone number in any text of a log line, however deep."""
    for name, value in fields.items():
        if name != "timestamp":
            fields[name] = _masked(value)
    return fields


def _masked(value: Any) -> Any:
    match value:
        case StrEnum():
            return value
        case str():
            return _PHONE.sub("[number]", value)
        case bool() | float() | None:
            return value
        case dict():
            return {_masked(name): _masked(each) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_masked(each) for each in value]
        case int():
            return "[number]" if _PHONE.fullmatch(str(value)) else value
        case _:  # as the renderer would write it
            return _PHONE.sub("[number]", repr(value))
