"""The console's WSGI entry point: reads the environment, and reports clearly what is missing."""

import sys
from functools import partial

import structlog

from shared.config import Config, redis_url, setting
from shared.config.live import LiveConfiguration
from shared.errors import ConfigError
from shared.ledger import Ledger
from shared.ledger.platform.kept_configuration import last_valid
from shared.logs.setup import configure_logging
from shared.redis_client import connect
from web.console.app import create_console
from web.console.context import ConsoleServices
from web.console.login import gate_from_environment

DEFAULT_FLOWER_URL = "http://127.0.0.1:5555"

configure_logging()
try:
    redis = connect(redis_url())
    # The console has no hash key, and no token that a wrong address could receive.
    live = LiveConfiguration[Config](
        lambda config, _: config, last_valid=partial(last_valid, redis, signed=False)
    )
    app = create_console(
        ConsoleServices(
            read_config=live.current,
            ledger=Ledger(redis),
            gate=gate_from_environment(),
            flower_url=setting("OPTOUT_CONSOLE_FLOWER_URL") or DEFAULT_FLOWER_URL,
        )
    )
except ConfigError as error:
    structlog.get_logger(__name__).critical("configuration_error", problems=error.problems)
    sys.exit(str(error))
