"""Failures of the REST API on demand, and the log of the requests that it received."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    TOO_MANY = "429"
    UNAVAILABLE = "503"
    SERVER_ERROR = "500"
    NOT_FOUND = "404"
    HANG = "hang"
    RESET = "reset"
    TRUNCATED = "truncated"


@dataclass(slots=True)
class Fault:
    """A failure on demand. `resource` "" means any; `page` counts from 0; `times` None means for ever."""

    kind: FaultKind
    resource: str = ""
    method: str = ""
    page: int | None = None
    times: int | None = 1
    seconds: float = 30.0  # how long a hang lasts

    def meets(self, seen: LoggedRequest) -> bool:
        return (
            self.times != 0
            and self.resource in {"", seen.resource}
            and self.method in {"", seen.method}
            and self.page in {None, seen.page}
        )


@dataclass(slots=True)
class LoggedRequest:
    """A REST request that the simulator received; `status` 0 when the connection was cut."""

    method: str
    resource: str
    path: str
    query: dict[str, str]
    form: dict[str, str]
    status: int = 0

    @property
    def page(self) -> int:
        value = self.query.get("Page", "0")
        return int(value) if value.isdigit() else 0
