"""A stand-in for an OAuth 2.0 token endpoint (client credentials), over a real socket.

    with TokenEndpoint().serve() as endpoint:
        endpoint.url                     # http://127.0.0.1:PORT/token

Source: Microsoft docs, "Microsoft identity platform and the OAuth 2.0 client credentials flow".
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl


class Answer(NamedTuple):
    status: int
    body: bytes
    location: str | None = None


REJECTED = {
    "error": "invalid_client",
    "error_description": "AADSTS7000215: Invalid client secret provided. Trace ID: 0000 s3cret",
    "error_codes": [7000215],
}


@dataclass
class TokenEndpoint:
    """Issues token-1, token-2 … to one client; `answers` come first."""

    client_id: str = "11111111-2222-3333-4444-555555555555"
    client_secret: str = "s3cret~/+&="
    scope: str = "https://outlook.office365.com/.default"
    expires_in: Any = 3599
    answers: deque[Answer] = field(default_factory=deque)
    requests: list[dict[str, str]] = field(default_factory=list)
    valid: set[str] = field(default_factory=set)  # the newest token
    issued: set[str] = field(default_factory=set)  # all tokens
    url: str = ""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def answer(self, form: dict[str, str]) -> Answer:
        """The response to a token request."""
        self.requests.append(form)
        if self.answers:
            return self.answers.popleft()
        expected = {
            "grant_type": "client_credentials", "client_id": self.client_id,
            "client_secret": self.client_secret, "scope": self.scope,
        }  # fmt: skip
        return self._token() if form == expected else reject()

    def _token(self) -> Answer:
        token = f"token-{next(self._numbers)}"
        self.valid = {token}
        self.issued.add(token)
        content = {"token_type": "Bearer", "expires_in": self.expires_in, "access_token": token}
        return Answer(200, json.dumps(content).encode())

    @contextlib.contextmanager
    def serve(self) -> Iterator[TokenEndpoint]:
        with _Server(("127.0.0.1", 0), _Request) as server:
            server.endpoint = self
            self.url = f"http://127.0.0.1:{server.server_port}/token"
            thread = threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
            )
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def reject(**changes: Any) -> Answer:
    """Microsoft's rejection of a client."""
    return Answer(401, json.dumps(REJECTED | changes).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    endpoint: TokenEndpoint


class _Request(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # http.server finds methods by this name
        body = self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode()
        answer = cast(_Server, self.server).endpoint.answer(dict(parse_qsl(body)))
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        if answer.location:
            self.send_header("Location", answer.location)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Print nothing."""
