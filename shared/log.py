"""Logs: one line per step, JSON unless it is a terminal, without phone numbers whatever is logged."""

import logging
import os
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

# A safety net below the rule that nobody logs a number: E.164, and North American spellings.
_PHONE = re.compile(r"(?<![\w-])(?:\+\d[\d ().-]{6,18}\d|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}|\d{10,11})(?![\w-])")

# These write what we must not keep: twilio.http_client logs the To and From filters of each request at
# INFO, the others repeat addresses and URLs at DEBUG. Source: twilio-python 9.13, http_client.py.
_DISCREET = ("twilio.http_client", "urllib3", "kombu", "amqp", "werkzeug", "asyncio")


def configure_logging(level: str | None = None) -> None:
    """Send everything, ours and the libraries', to standard error in one form."""
    level = (level or os.environ.get("OPTOUT_LOG_LEVEL") or "INFO").upper()
    known = level if level in logging.getLevelNamesMapping() else "INFO"
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask_phone_numbers,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(known)
    for name in _DISCREET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def mask_phone_numbers(
    _logger: Any, _method: str, fields: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replace whatever looks like a phone number in any text of a log line."""
    for name, value in fields.items():
        if isinstance(value, str) and name != "timestamp":
            fields[name] = _PHONE.sub("[number]", value)
    return fields
