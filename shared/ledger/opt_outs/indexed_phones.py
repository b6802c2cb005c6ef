"""Sets the phones of records in the phone index, and makes those pending that are new and have a status."""

from collections.abc import Iterable, Set
from itertools import chain

from shared.ledger import keys
from shared.ledger.generations import DIGITS, LENGTH, PERIOD_MS, generation_text
from shared.ledger.lua_script import LuaScript
from shared.redis_client import RedisClient

# Concurrent exports do not begin further apart than this. What seems to come from a later one was written with a
# clock that was ahead, and does not take precedence.
LONGEST_EXPORT_MS = 3600 * 1000


class IndexedPhones:
    """The phones of one project's records. `worker.redcap.phone_index` reads them."""

    def __init__(self, redis: RedisClient, project: str) -> None:
        self._project = project
        self._put = LuaScript(redis, "put_phones")

    def put(self, phones: Iterable[tuple[str, Set[str]]], generation: int, *, was_complete: bool) -> None:
        """Set the phones of some records, of which an export that began in ms `generation` has shown all; 0 is none.

        If the index `was_complete` before, a phone that is new now was added since.
        """
        project = self._project
        self._put(
            keys={
                "phones_index": keys.index_phones(project),
                "records_index": keys.index_records(project),
                "statuses": keys.status(project),
                "pending": keys.pending(project),
                "due": keys.DUE,
                "since": keys.index_since(project),
            },
            args={
                "project": project,
                "generation": generation_text(generation) if generation else "",
                "now_ms": generation,
                "due_ms": generation,
                "believed_ms": LONGEST_EXPORT_MS,
                "was_complete": "1" if was_complete else "0",
                "length": LENGTH,
                "digits": DIGITS,
                "period_ms": PERIOD_MS,
            },
            rest=chain.from_iterable((record, "\n".join(sorted(held))) for record, held in phones),
        )
