"""The version of what is stored: a program that is older than the ledger must not change it."""

from shared.errors import ConfigError
from shared.ledger import keys
from shared.redis_client import RedisClient

# Raise it with every change of the stored data that an older program would misread.
LEDGER_VERSION = 1


def require_ledger_version(redis: RedisClient) -> None:
    """Note this program's version. Raises ConfigError if a newer one has written the ledger."""
    stored = int(redis.get(keys.LEDGER_VERSION) or 0)
    if stored > LEDGER_VERSION:
        problem = (
            f"was written by a newer version of the program (ledger version {stored}, known up to {LEDGER_VERSION}); "
            "install that version again, see docs/how-to/upgrade.md"
        )
        raise ConfigError("ledger", [f"ledger: {problem}"])
    if stored < LEDGER_VERSION:
        redis.set(keys.LEDGER_VERSION, LEDGER_VERSION)
