"""The HTTP side: one thread per connection, kept alive; it only moves bytes."""

from __future__ import annotations

import io
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from tests.simulators.redcap.answers import XML_HEAD, Answer, html_answer, text_answer

NOT_FOUND = html_answer(404, "<!DOCTYPE HTML><html><body><h1>Not Found</h1></body></html>")
NOT_IMPLEMENTED = text_answer(  # REDCapR issue 166
    f"{XML_HEAD}<hash><error>The requested method is not implemented.</error></hash>", "xml", status=501
)
# Seen on a recorded answer (REDCapTidieR).
API_HEADERS = {
    "Expires": "0",
    "Cache-Control": "no-store, no-cache, must-revalidate",
    "Pragma": "no-cache",
    "Access-Control-Allow-Origin": "*",
    "REDCap-Random-Text": "Kq7TnDwxvHsgSEE3",
}
DRIPS = 20


class Application(Protocol):
    stopping: threading.Event

    def answer(self, client: str, pairs: list[tuple[str, str]]) -> Answer: ...
    def control(self, method: str, path: str, body: bytes) -> Answer: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], application: Application) -> None:
        super().__init__(address, _Handler)
        self.application = application
        self.connections: set[socket.socket] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError | ValueError):  # a client that went away is no error
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def running_server(application: Application, host: str, port: int) -> Iterator[int]:
    server = _Server((host, port), application)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        application.stopping.set()
        server.shutdown()
        server.hang_up()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "Apache"
    sys_version = ""
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Silent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if path.startswith("/_sim/"):
            self._send(self.server.application.control("POST", self.path, body))
        elif path.endswith("/api/"):
            self._answer_api(body)
        elif path.endswith("/api"):  # A redirect turns the POST into a GET (REDCapR issue 166).
            self._send(Answer(301, "text/html", b"", {"Location": f"{path}/"}))
        else:
            self._send(NOT_FOUND)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/_sim/"):
            self._send(self.server.application.control("GET", self.path, b""))
        else:
            self._send(NOT_IMPLEMENTED if path.endswith("/api/") else NOT_FOUND)

    def _answer_api(self, body: bytes) -> None:
        answer = self.server.application.answer(self.client_address[0], self._form(body))
        answer.headers.update(API_HEADERS)
        if answer.reset:
            self._reset()
        else:
            self._send(answer)

    def _form(self, body: bytes) -> list[tuple[str, str]]:
        content_type, options = parse_options_header(self.headers.get("Content-Type"))
        _, form, _ = FormDataParser().parse(io.BytesIO(body), content_type, len(body), options)
        return list(form.items(multi=True))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.cut_off:
            self.close_connection = True
        self.end_headers()
        body = answer.body[: len(answer.body) // 2] if answer.cut_off else answer.body
        if answer.drip_seconds:
            self._drip(body, answer.drip_seconds)
        else:
            self.wfile.write(body)

    def _drip(self, body: bytes, seconds: float) -> None:
        size = max(1, len(body) // DRIPS)
        for start in range(0, len(body), size):
            self.server.application.stopping.wait(seconds / DRIPS)
            self.wfile.write(body[start : start + size])

    def _reset(self) -> None:
        """Drops the connection with a TCP reset: no answer, no orderly end."""
        self.close_connection = True
        self.server.connections.discard(self.connection)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
