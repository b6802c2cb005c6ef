"""The console's WSGI entry point: reads the environment, and reports clearly what is missing."""

import sys

import structlog

from shared.config import load_config, redis_url, setting
from shared.errors import ConfigError
from shared.ledger import Ledger
from shared.logs.setup import configure_logging
from shared.redis_client import connect
from web.console.app import create_console
from web.console.context import ConsoleServices
from web.console.login import gate_from_environment

DEFAULT_FLOWER_URL = "http://127.0.0.1:5555"

configure_logging()
try:
    config = load_config()
    app = create_console(
        ConsoleServices(
            read_config=lambda: config,
            ledger=Ledger(connect(redis_url())),
            gate=gate_from_environment(),
            flower_url=setting("OPTOUT_CONSOLE_FLOWER_URL") or DEFAULT_FLOWER_URL,
        )
    )
except ConfigError as error:
    structlog.get_logger(__name__).critical("configuration_error", problems=error.problems)
    sys.exit(str(error))
