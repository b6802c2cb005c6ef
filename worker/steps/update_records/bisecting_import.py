"""Imports without the rows that REDCap rejects: it takes all rows of an import or none."""

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from shared.errors import RedcapRejected
from worker.redcap.gateway import RedcapProject
from worker.redcap.responses import RowsRejected

# A rejection that names no row is narrowed down by halving, which costs at most two imports for each row.
# If this many single rows are rejected, all for the same reason and without one success, it may not be the rows.
MAX_NAMELESS_REJECTIONS = 5
# Then sample this many of the remaining rows. If all fail for the same reason, assume a project-wide problem: about
# 20 imports instead of 1,000.
PROBES = 3

ImportRow = dict[str, str]


@dataclass(slots=True)
class Written:
    """What became of the records of one round."""

    saved: set[str] = field(default_factory=set)
    rejected: dict[str, str] = field(default_factory=dict)


class BisectingImport:
    """The imports of one round."""

    def __init__(self, gateway: RedcapProject, written: Written) -> None:
        self._gateway = gateway
        self._written = written
        self._waiting: deque[list[ImportRow]] = deque()
        self._nameless: list[RedcapRejected] = []  # of single rows, whose text names none
        self._reasons: set[str] = set()  # the different reasons of these

    def run(self, groups: Sequence[list[ImportRow]]) -> None:
        """Write groups of rows. Raises RedcapRejected if the rejection is not about single rows."""
        self._waiting.extend(groups)
        while self._waiting:
            self._waiting.extendleft(reversed(self._import(self._waiting.popleft())))
            if self._waiting and self._looks_project_wide():
                self._probe()

    def _import(self, rows: list[ImportRow]) -> list[list[ImportRow]]:
        """One import. Returns what of it has to be tried again."""
        try:
            self._gateway.write(rows)
        except RowsRejected as error:
            self._written.rejected |= error.reasons
            rest = [row for row in rows if self._id(row) not in error.reasons]
            return [rest] if rest else []
        except RedcapRejected as error:
            if error.code != "redcap_rejected":
                raise
            if len(rows) > 1:  # it names no row: halve until it is found
                return [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            self._note_nameless(self._id(rows[0]), error)
            return []
        self._written.saved.update(map(self._id, rows))
        return []

    def _note_nameless(self, record: str, error: RedcapRejected) -> None:
        self._written.rejected[record] = error.detail
        self._nameless.append(error)
        self._reasons.add(re.sub(rf"\b{re.escape(record)}\b", "…", error.detail))

    def _looks_project_wide(self) -> bool:
        return (
            not self._written.saved
            and len(self._nameless) >= MAX_NAMELESS_REJECTIONS
            and len(self._reasons) == 1
        )

    def _probe(self) -> None:
        """Try some of the remaining rows alone until one succeeds; raise the rejection if none does."""
        rest = [row for rows in self._waiting for row in rows]
        for row in rest[:: -ceil(len(rest) / PROBES)]:
            self._import([row])
            self._remove(row)
            if not self._looks_project_wide():
                return
        raise self._nameless[-1]

    def _remove(self, row: ImportRow) -> None:
        left = [[other for other in rows if other is not row] for rows in self._waiting]
        self._waiting = deque(rows for rows in left if rows)

    def _id(self, row: ImportRow) -> str:
        return row[self._gateway.schema.id_field]
