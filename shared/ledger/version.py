"""The version of what is stored: a program that is older than the ledger must not change it."""

from shared.errors import ConfigError
from shared.ledger import keys
from shared.redis_client import RedisClient

# Raise it with every change of the stored data that an older program would misread. 2: statuses by scope; 3: ended
# events are listed by state, and an event does not repeat what its key says; 4: short generations in the phone index.
LEDGER_VERSION = 4
SCOPES, LISTS_BY_STATE = 2, 3


def ledger_version(redis: RedisClient) -> int:
    """Return the version that the ledger was written with; 1 if none is stored."""
    return int(redis.get(keys.LEDGER_VERSION) or 1)


def require_ledger_version(redis: RedisClient) -> None:
    """Raise ConfigError if a newer program has written the ledger."""
    stored = ledger_version(redis)
    if stored > LEDGER_VERSION:
        problem = (
            f"was written by a newer version of the program (ledger version {stored}, known up to {LEDGER_VERSION}); "
            "install that version again, see docs/how-to/upgrade.md"
        )
        raise ConfigError("ledger", [f"ledger: {problem}"])
