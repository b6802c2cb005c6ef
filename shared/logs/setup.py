"""Log format: one line per step, JSON except on a terminal or with OPTOUT_LOG_FORMAT, with phone numbers removed."""

import logging
import os
import sys

import structlog

from shared.logs.redaction import mask_phone_numbers

# Loggers that may log secrets: twilio.http_client logs the To and From filters of each request at INFO, the others
# log addresses and URLs at DEBUG. Source: twilio-python 9.13, http_client.py.
_MAY_LOG_SECRETS = ("twilio.http_client", "urllib3", "kombu", "amqp", "werkzeug", "asyncio")
# Celery's own two lines per task, which contain less than each step's final line.
_REDUNDANT = ("celery.worker.strategy", "celery.app.trace")


def configure_logging(level: str | None = None) -> None:
    """Send all log records, the program's and the libraries', to standard error in one format."""
    level = (level or os.environ.get("OPTOUT_LOG_LEVEL") or "INFO").upper()
    known = level if level in logging.getLevelNamesMapping() else "INFO"
    structlog.configure(
        processors=[*_processors(), _renderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[known]),
        logger_factory=_StandardError,
        cache_logger_on_first_use=True,
    )
    # No line shows them. Source: Python docs, Logging HOWTO, "Optimization".
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(known)
    for name in _MAY_LOG_SECRETS:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name in _REDUNDANT:
        logging.getLogger(name).setLevel(
            root.level if root.level <= logging.DEBUG else max(logging.WARNING, root.level)
        )


class _StandardError:
    """Writes the program's own lines. By way of the standard library's loggers, a line takes twice the time."""

    def __init__(self, name: str = "") -> None:
        self.name = name  # for add_logger_name

    def msg(self, message: str) -> None:
        sys.stderr.write(message + "\n")

    debug = info = warning = error = critical = exception = msg


def formatter() -> logging.Formatter:
    """Renders the records of libraries as lines of the program. deploy/granian-log.json names this function."""
    return structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer()],
        foreign_pre_chain=_processors(),
    )


def _renderer() -> structlog.typing.Processor:
    form = os.environ.get("OPTOUT_LOG_FORMAT") or ("text" if sys.stderr.isatty() else "json")
    return structlog.dev.ConsoleRenderer() if form == "text" else structlog.processors.JSONRenderer()


def _processors() -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask_phone_numbers,
    ]
