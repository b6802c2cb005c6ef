"""The WSGI entry point: reads the environment, and reports clearly what is missing."""

import sys
from contextlib import suppress
from functools import partial

import structlog
from redis.exceptions import RedisError

from shared.config import Config, redis_url
from shared.config.live import LiveConfiguration
from shared.errors import ConfigError
from shared.ledger.platform.kept_configuration import last_valid
from shared.ledger.platform.loaded_configurations import follow
from shared.ledger.version import require_ledger_version
from shared.logs.setup import configure_logging
from shared.messaging.publisher import make_publisher
from shared.redis_client import connect
from shared.redis_rights import missing_by_address, report_missing_rights
from web.app import build_services, create_app
from web.context import Services


def _build(config: Config, before: Services | None) -> Services:
    """Services that keep the hash key with which the process began: two keys would be two ledgers."""
    return build_services(config, redis, publish, hasher=before.hasher if before else None)


configure_logging()
try:
    redis = connect(redis_url())
    publish = make_publisher()
    live = LiveConfiguration(_build, last_valid=partial(last_valid, redis), settle_seconds=3.0)
    app = create_app(lambda: live.value)
    follow(redis, "web", live)
    with suppress(RedisError):
        require_ledger_version(redis)
        report_missing_rights(missing_by_address(redis))
except ConfigError as error:
    structlog.get_logger(__name__).critical("configuration_error", problems=error.problems)
    sys.exit(str(error))
