"""Buffers each request completely before a thread runs the WSGI application.

A WSGI server assigns a thread to a request before the body has arrived, so a few slow clients can occupy all
threads. Here the event loop waits for bodies, each for a limited time, and threads handle complete requests only.
(The bridges a2wsgi and asgiref pass the body on in pieces or use a single thread, and reject queries that are not
ASCII with an error of their own.)

Behind a proxy that buffers requests, any WSGI server can run `web.wsgi:app` directly.
"""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

from web.twilio.limits import EVENTS_LIMIT_BYTES, INBOUND_LIMIT_BYTES
from web.twilio.twiml import CONTENT_TYPE, EMPTY_RESPONSE

# Twilio sends the body at once; it gives up after 15 s, Event Streams after 5 s.
BODY_SECONDS = 5.0
# Threads mostly wait for Redis, which waits for the disk.
THREADS = 8
# Bodies larger than a webhook's that are held in memory at the same time.
LARGE_BODIES = 16
# Needs no other service, so it never blocks.
LIVENESS_PATH = "/healthz"

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Wsgi = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]
Response = tuple[int, list[tuple[bytes, bytes]], bytes]


class BodyTimeout(Exception):
    """The body did not arrive in time, or the client disconnected."""


class TooLarge(Exception):
    """The body is longer than any route accepts."""


class RequestBuffering:
    """An ASGI application that reads each request's body and then runs the WSGI application in a thread."""

    def __init__(self, wsgi: Wsgi, *, body_seconds: float = BODY_SECONDS, threads: int = THREADS) -> None:
        self._wsgi = wsgi
        self._body_seconds = body_seconds
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="request")
        self._large = asyncio.Semaphore(LARGE_BODIES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Response one request."""
        status, headers, content = await self._answer(scope, receive)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        if scope["path"].rstrip("/") == LIVENESS_PATH:
            # Not in a thread: all threads may be waiting for a Redis that hangs.
            return self._call(_environ(scope, b""))
        try:
            async with asyncio.timeout(self._body_seconds):
                body = await self._body(receive)
        except (BodyTimeout, TimeoutError):
            # Not 408: after a 4xx Event Streams discards the event. Source: Twilio docs, Event Streams FAQ,
            # "At-least-once delivery".
            return _rejection(503)
        except TooLarge:
            return _rejection(413)
        environ = _environ(scope, body)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._call, environ)

    async def _body(self, receive: Receive) -> bytes:
        """The whole body. Raises BodyTimeout or TooLarge."""
        chunks, more = await _chunks(receive, [], INBOUND_LIMIT_BYTES)
        if more:
            async with self._large:
                chunks, more = await _chunks(receive, chunks, EVENTS_LIMIT_BYTES)
        if more:
            raise TooLarge
        return b"".join(chunks)

    def _call(self, environ: WSGIEnvironment) -> Response:
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], None]:
            started[:] = [
                int(status[:3]),
                [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers],
            ]
            return _no_write

        content = self._wsgi(environ, start_response)
        try:
            body = b"".join(content)
        finally:
            close = getattr(content, "close", None)
            if close is not None:
                close()
        return started[0], started[1], body


async def _chunks(receive: Receive, chunks: list[bytes], limit: int) -> tuple[list[bytes], bool]:
    """Read until the body ends or exceeds `limit` bytes. Returns the chunks, and whether it exceeds the limit."""
    size = sum(map(len, chunks))
    while size <= limit:
        message = await receive()
        if message["type"] != "http.request":
            raise BodyTimeout
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if not message.get("more_body", False):
            return chunks, size > limit
    return chunks, True


def _environ(scope: Scope, body: bytes) -> WSGIEnvironment:
    """The WSGI environment of a request. Source: PEP 3333, and the ASGI specification's "WSGI Compatibility"."""
    host, port = scope.get("server") or ("", 0)
    environ: WSGIEnvironment = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": scope["path"].encode().decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in scope["headers"]:
        _add_header(environ, name.decode("latin-1"), value.decode("latin-1"))
    # The length received, whatever the header announced.
    environ["CONTENT_LENGTH"] = str(len(body))
    return environ


def _add_header(environ: WSGIEnvironment, name: str, value: str) -> None:
    if "_" in name or name == "transfer-encoding":
        return  # "x_twilio_signature" would be read as "x-twilio-signature"
    key = name.upper().replace("-", "_")
    key = key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
    environ[key] = f"{environ[key]},{value}" if key in environ else value


def _rejection(status: int) -> Response:
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"connection", b"close")]
    return status, headers, EMPTY_RESPONSE.encode()


def _no_write(_data: bytes) -> None:
    raise RuntimeError("the application must return its body; write() is not supported")
