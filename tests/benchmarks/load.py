"""The load generator: signed webhooks, prepared beforehand, over raw sockets that stay open.

It runs in a process of its own and does as little as it can per request, because it shares the cores with what it
measures: its own CPU time is part of each result.
"""

from __future__ import annotations

import multiprocessing
import resource
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from urllib.parse import urlencode, urlsplit

from tests.simulators.redcap import fictional_phone
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, SENDER, SERVICE_SID, sign_form

PATH = "/twilio/inbound"
PATIENCE_SECONDS = 30.0


def webhook(
    number: int,
    *,
    phone: int | None = None,
    change: str = "STOP",
    host: str = "127.0.0.1",
    service: str = SERVICE_SID,
    to: str = SENDER,
) -> bytes:
    """A signed inbound-message request as it goes over the wire; message and phone are told by their number.

    The parameters are those that Twilio sends for a text from a US number.
    """
    form = {
        "ToCountry": "US", "ToState": "CA", "SmsMessageSid": f"SM{number:032x}", "NumMedia": "0",
        "ToCity": "", "FromZip": "", "SmsSid": f"SM{number:032x}", "FromState": "CA",
        "SmsStatus": "received", "FromCity": "", "Body": change, "FromCountry": "US", "To": to,
        "MessagingServiceSid": service, "ToZip": "", "NumSegments": "1",
        "MessageSid": f"SM{number:032x}", "AccountSid": ACCOUNT_SID, "OptOutType": change,
        "From": fictional_phone(number if phone is None else phone), "ApiVersion": "2010-04-01",
    }  # fmt: skip
    body = urlencode(form).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        f"X-Twilio-Signature: {sign_form(PUBLIC_URL + PATH, form, AUTH_TOKEN)}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass(slots=True)
class Load:
    """What one run of the generator saw."""

    latencies: list[float] = field(default_factory=list)  # seconds, in the order of the answers
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the generator itself
    late: int = 0  # open loop: requests that began more than 5 ms after their time

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, part: float) -> float:
        """Seconds below which this part (0 to 1) of the answers came."""
        return percentile(self.latencies, part)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part (0 to 1) of the values lie; nearest rank."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def closed_loop(url: str, requests: Sequence[bytes], *, connections: int) -> Load:
    """All requests as fast as the answers come; each connection sends its next one when it has its answer."""
    return _in_a_process(_closed, url, requests, connections)


def open_loop(url: str, requests: Sequence[bytes], *, per_second: float, connections: int = 64) -> Load:
    """Requests at fixed times, whatever the answers; latency counts from when each was due."""
    return _in_a_process(_open, url, requests, connections, per_second)


def exchange(url: str, request: bytes) -> int:
    """One request over a connection of its own. Answers the status."""
    (wire,) = _wires(url, 1)
    wire.send(request, time.perf_counter())
    while (status := wire.answer()) is None:
        pass
    wire.socket.close()
    return status


def _in_a_process(work: Callable[..., Load], *args: object) -> Load:
    # Forked, so that the prepared requests are not sent through a pipe.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, work, *args), daemon=True)
    process.start()
    sender.close()
    try:
        load: Load = receiver.recv()
    finally:
        process.join()
    return load


def _report(sender: Connection, work: Callable[..., Load], *args: object) -> None:
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    load = work(*args)
    load.seconds = load.seconds or time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    load.cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    sender.send(load)


class _Wire:
    """One open connection with at most one request under way."""

    __slots__ = ("began", "received", "socket")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=PATIENCE_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began = 0.0
        self.received = b""

    def send(self, request: bytes, began: float) -> None:
        self.began, self.received = began, b""
        self.socket.sendall(request)

    def answer(self) -> int | None:
        """The status, once the whole answer is here."""
        chunk = self.socket.recv(65_536)
        if not chunk:
            raise ConnectionError("the server closed the connection")
        self.received += chunk
        head, gap, body = self.received.partition(b"\r\n\r\n")
        if not gap or len(body) < _content_length(head):
            return None
        return int(head[9:12])


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise ValueError("an answer without Content-Length")


def _wires(url: str, number: int) -> list[_Wire]:
    parts = urlsplit(url)
    return [_Wire((parts.hostname or "", parts.port or 80)) for _ in range(number)]


def _answered(selector: selectors.BaseSelector, load: Load, timeout: float | None) -> Iterator[_Wire]:
    """The connections whose answer is complete, noted in `load`."""
    for key, _ in selector.select(timeout):
        wire: _Wire = key.data
        status = wire.answer()
        if status is not None:
            load.latencies.append(time.perf_counter() - wire.began)
            load.statuses[status] += 1
            yield wire


def _closed(url: str, requests: Sequence[bytes], connections: int) -> Load:
    load, selector, wires = Load(), selectors.DefaultSelector(), _wires(url, connections)
    for wire in wires:
        selector.register(wire.socket, selectors.EVENT_READ, wire)
    rest = iter(requests)
    began = time.perf_counter()
    for wire, request in zip(wires, rest, strict=False):
        wire.send(request, time.perf_counter())
    while len(load.latencies) < len(requests):
        for wire in _answered(selector, load, PATIENCE_SECONDS):
            if (request := next(rest, None)) is not None:  # type: ignore[assignment]
                wire.send(request, time.perf_counter())
    load.seconds = time.perf_counter() - began
    return load


def _open(url: str, requests: Sequence[bytes], connections: int, per_second: float) -> Load:
    load, selector = Load(), selectors.DefaultSelector()
    idle = deque(_wires(url, connections))
    for wire in idle:
        selector.register(wire.socket, selectors.EVENT_READ, wire)
    began = time.perf_counter()
    for number, request in enumerate(requests):
        due = began + number / per_second
        while (now := time.perf_counter()) < due or not idle:
            idle.extend(_answered(selector, load, max(0.0, due - now) if idle else PATIENCE_SECONDS))
        load.late += now - due > 0.005
        idle.popleft().send(request, due)
    while len(load.latencies) < len(requests):
        idle.extend(_answered(selector, load, PATIENCE_SECONDS))
    load.seconds = time.perf_counter() - began
    return load
