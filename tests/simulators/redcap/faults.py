"""What goes wrong on demand. Each fault is something that a real REDCap, or what stands before it, does."""

from __future__ import annotations

import codecs
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from tests.simulators.redcap.answers import Answer, ApiError, html_answer, text_answer
from tests.simulators.redcap.importing import count_text

NO_PERMISSION = "You do not have permissions to use the API"
OUT_OF_MEMORY = (  # PyCap issues 26 (status 500) and 80
    "REDCap ran out of server memory. The request cannot be processed. Please try importing/exporting a "
    "smaller amount of data."
)
TOO_MUCH = (  # REDCapR issue 627 (REDCap 15.7.2)
    "We are sorry, but apparently the data export is not able to complete successfully. It may simply be that "
    "there is too much data trying to be exported at once, in which it is causing REDCap to crash. If this error "
    "occurs again, it is recommended that you attempt to export a smaller data set."
)
# Statuses that gateways and web servers give without a body; 520 and above are Cloudflare's.
WORDLESS = (200, 204, 301, 302, 307, 401, 403, 404, 501, 507, 509, 520, 522, 530)
BAN_PAGE = (
    "<!DOCTYPE HTML><html><head><title>REDCap</title></head><body><h1>IP address banned</h1>"
    "<p>Your IP address has been banned due to suspected abuse. Please contact your REDCap "
    "administrator.</p></body></html>"
)
PAGES = {
    "http_429": (429, "<html><body><h1>429 Too Many Requests</h1></body></html>"),
    "http_502": (502, "<html><body><h1>502 Bad Gateway</h1></body></html>"),
    "http_503": (503, "<html><body><h1>503 Service Unavailable</h1></body></html>"),
    "http_504": (504, "<html><body><h1>504 Gateway Time-out</h1></body></html>"),  # REDCapR pull request 383
    "tabs_page": (  # id3c, redcap_rsvc
        200,
        "<!DOCTYPE HTML><html><body><div>ERROR: You cannot have multiple browser tabs of the same "
        "REDCap page open at the same time.</div></body></html>",
    ),
    "login_page": (  # REDCapR issue 317: taken for a successful write
        200,
        '<!DOCTYPE HTML><html><head><title>REDCap</title></head><body><form action="/" name="form" '
        'method="post"><h2>Log In</h2><input name="username"><input name="password" type="password"></form>'
        "</body></html>",
    ),
    "maintenance_page": (
        200,
        "<!DOCTYPE HTML><html><body><h2>REDCap is currently offline</h2></body></html>",
    ),
    "ban_page": (403, BAN_PAGE),
    "firewall_page": (403, "<html><body><h1>403 Forbidden</h1></body></html>"),
}


class Context(Protocol):
    """What a fault may see and do of the request that it strikes."""

    @property
    def return_format(self) -> str: ...
    def answer(self, *, keep: float = 1.0) -> Answer: ...
    def wait(self, seconds: float) -> None: ...
    def revoke_token(self) -> None: ...


@dataclass(slots=True)
class Fault:
    """`times` None means until cleared; with `after_commit` the request is carried out, then struck."""

    name: str
    kind: str = "any"  # export, import, delete, metadata, any
    times: int | None = 1
    after_commit: bool = False
    seconds: float = 1.0
    keep: float = 0.5
    token: str | None = None
    hits: int = 0

    @property
    def is_spent(self) -> bool:
        return self.times is not None and self.hits >= self.times

    def strikes(self, kind: str, token: str) -> bool:
        return not self.is_spent and self.kind in {"any", kind} and self.token in {None, token}


@dataclass(slots=True)
class Faults:
    """Faults in the order in which they were added; the first that fits a request strikes it."""

    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        name: str,
        *,
        kind: str = "any",
        times: int | None = 1,
        after_commit: bool = False,
        seconds: float = 1.0,
        keep: float = 0.5,
        token: str | None = None,
    ) -> Fault:
        if name not in NAMES:
            raise ValueError(f"no fault {name!r}; there are {', '.join(sorted(NAMES))}")
        fault = Fault(name, kind, times, after_commit, seconds, keep, token)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, kind: str, token: str) -> Fault | None:
        with self._lock:
            fault = next((each for each in self._faults if each.strikes(kind, token)), None)
            if fault is not None:
                fault.hits += 1
            return fault

    def __len__(self) -> int:
        """How many faults still wait for a request."""
        return sum(not fault.is_spent for fault in self._faults)


def strike(fault: Fault, context: Context) -> Answer:
    if fault.name in WITH_ANSWER:
        return WITH_ANSWER[fault.name](fault, context)
    if fault.after_commit:
        context.answer()
    return INSTEAD[fault.name](context)


# --- faults that replace the answer ----------------------------------------------------------------


def _page(name: str) -> Callable[[Context], Answer]:
    return lambda context: html_answer(*PAGES[name])


def _forbidden(context: Context) -> Answer:
    return ApiError(403, NO_PERMISSION).answer(context.return_format)


def _token_revoked(context: Context) -> Answer:
    context.revoke_token()
    return _forbidden(context)


def _memory_200(context: Context) -> Answer:
    """PHP's own complaint, then REDCap's, as one page with status 200."""
    php = b"<br />\n<b>Fatal error</b>:  Allowed memory size of 134217728 bytes exhausted<br />\n"
    return html_answer(200, (php + ApiError(500, OUT_OF_MEMORY).answer(context.return_format).body).decode())


def _empty(status: int) -> Callable[[Context], Answer]:
    return lambda context: html_answer(status, "")


def _error(status: int, message: str) -> Callable[[Context], Answer]:
    """An error of REDCap's; clients have met some with a status that says that all is well."""
    return lambda context: ApiError(status, message).answer(context.return_format)


def _too_much_as_text(context: Context) -> Answer:
    return text_answer(TOO_MUCH, context.return_format)


def _count_zero(context: Context) -> Answer:
    return text_answer(count_text(0, context.return_format), context.return_format)


def _reset(context: Context) -> Answer:
    return replace(html_answer(0, ""), reset=True)


INSTEAD: dict[str, Callable[[Context], Answer]] = {
    **{name: _page(name) for name in PAGES},
    "http_403": _forbidden,
    "http_500": _empty(500),  # PyCap issue 261: a crash with an empty body
    **{f"empty_{status}": _empty(status) for status in WORDLESS},
    "memory_200": _memory_200,
    "memory_400": _error(400, OUT_OF_MEMORY),
    "memory_500": _error(500, OUT_OF_MEMORY),
    "too_much_text": _too_much_as_text,
    **{f"too_much_{status}": _error(status, TOO_MUCH) for status in (200, 400, 500)},
    "error_200": _error(200, "You do not have the right to do this"),
    "count_zero": _count_zero,
    "token_revoked": _token_revoked,
    "reset": _reset,
}


# --- faults that spoil or delay the answer ---------------------------------------------------------


def _truncated(fault: Fault, context: Context) -> Answer:
    """A complete HTTP answer whose body stops half-way."""
    answer = context.answer()
    return replace(answer, body=answer.body[: int(len(answer.body) * fault.keep)])


def _cut_off(fault: Fault, context: Context) -> Answer:
    """The connection ends before the announced length."""
    return replace(context.answer(), cut_off=True)


def _missing_rows(fault: Fault, context: Context) -> Answer:
    """A well-formed export that silently lacks records (REDCapR issue 400)."""
    return context.answer(keep=fault.keep)


def _byte_order_mark(fault: Fault, context: Context) -> Answer:
    answer = context.answer()
    return replace(answer, body=codecs.BOM_UTF8 + answer.body)


def _windows_1252(fault: Fault, context: Context) -> Answer:
    """Values that were pasted in another encoding, and are sent as they are (redcapAPI issues 290 and 297)."""
    answer = context.answer()
    text = json.dumps(json.loads(answer.body), ensure_ascii=False)
    return replace(answer, body=text.encode("cp1252"))


def _slow_drip(fault: Fault, context: Context) -> Answer:
    return replace(context.answer(), drip_seconds=fault.seconds)


def _hang(fault: Fault, context: Context) -> Answer:
    """Does nothing for a while, before the work or (after_commit) behind it; then answers."""
    if not fault.after_commit:
        context.wait(fault.seconds)
        return context.answer()
    answer = context.answer()
    context.wait(fault.seconds)
    return answer


WITH_ANSWER: dict[str, Callable[[Fault, Context], Answer]] = {
    "truncated": _truncated,
    "cut_off": _cut_off,
    "missing_rows": _missing_rows,
    "byte_order_mark": _byte_order_mark,
    "windows_1252": _windows_1252,
    "slow_drip": _slow_drip,
    "hang": _hang,
}
NAMES = frozenset({*INSTEAD, *WITH_ANSWER})
