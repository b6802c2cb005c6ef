"""What has been counted since the ledger began: for `/metrics`, the console, `optout top` and `optout check`."""

from collections.abc import Mapping

from shared.ledger import keys
from shared.ledger.base import LedgerBase

Counts = dict[tuple[str, ...], int]  # by label values


class Counters(LedgerBase):
    """Reads the counts; `Ledger.count` and the scripts add to them."""

    def ended(self) -> Counts:
        """Events that have ended, by project, source and state."""
        return _decode(self.redis.hgetall(keys.COUNTS))

    def others(self) -> dict[str, Counts]:
        """Everything else, by name."""
        found: dict[str, Counts] = {}
        for (name, *labels), number in _decode(self.redis.hgetall(keys.METRICS)).items():
            found.setdefault(name, {})[tuple(labels)] = number
        return found


def _decode(stored: Mapping[str, str]) -> Counts:
    return {tuple(field.split("|")): int(number) for field, number in sorted(stored.items())}
