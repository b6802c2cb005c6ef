"""The WSGI entry point: reads the environment, and reports clearly what is missing."""

import sys
from contextlib import suppress

import structlog
from redis.exceptions import RedisError

from shared.config import load_config, redis_url
from shared.errors import ConfigError
from shared.ledger.loaded_configurations import keep_publishing
from shared.ledger.version import require_ledger_version
from shared.logs.setup import configure_logging
from shared.messaging.publisher import make_publisher
from shared.redis_client import connect
from shared.redis_rights import missing_by_address, report_missing_rights
from web.app import build_services, create_app

configure_logging()
try:
    redis = connect(redis_url())
    config = load_config()
    app = create_app(build_services(config, redis, make_publisher()))
    keep_publishing(redis, "web", lambda: config.digest)
    with suppress(RedisError):
        require_ledger_version(redis)
        report_missing_rights(missing_by_address(redis))
except ConfigError as error:
    structlog.get_logger(__name__).critical("configuration_error", problems=error.problems)
    sys.exit(str(error))
