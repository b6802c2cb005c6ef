"""Runs the Flask application in the event loop, with complete requests only.

A WSGI server assigns a thread to a request before the body has arrived, so a few slow clients can occupy all
threads. Here the event loop waits for bodies, each for a limited time. The application does not block:
`web.recording` writes what many requests submit together, and a request is answered when its part is on disk. A view
that has to wait raises NeedsThread, and runs again in a thread. (The bridges a2wsgi and asgiref pass the body on in
pieces and use threads, and reject queries that are not ASCII with an error of their own.)

Behind a proxy that buffers requests, any WSGI server can run `web.wsgi:app` directly.
"""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any
from wsgiref.types import WSGIEnvironment

from flask import Flask, Response, g
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from shared.retry_policy import BODY_SECONDS, STORE_SECONDS
from web.context import IN_EVENT_LOOP, NeedsThread
from web.recording import Submitted, Writer
from web.twilio.limits import EVENTS_LIMIT_BYTES, INBOUND_LIMIT_BYTES
from web.twilio.twiml import empty_response

# For what waits: /readyz, /metrics and large batches of events.
THREADS = 4
# Bodies larger than a webhook's that are held in memory at the same time.
LARGE_BODIES = 16

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class RequestBuffering:
    """An ASGI application that reads each request's body, runs the Flask application, and waits for the writer."""

    def __init__(
        self, app: Flask, *, body_seconds: float = BODY_SECONDS, store_seconds: float = STORE_SECONDS
    ) -> None:
        self._app = app
        self._writer = Writer(store_seconds)
        self._body_seconds = body_seconds
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="request")
        self._large = asyncio.Semaphore(LARGE_BODIES)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = await self._answer(scope, receive)
        headers = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in response.headers]
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.get_data()})

    async def _answer(self, scope: dict[str, Any], receive: Receive) -> Response:
        try:
            async with asyncio.timeout(self._body_seconds):
                body = await self._body(receive)
        except (ClientDisconnected, TimeoutError):
            # Not 408: after a 4xx Event Streams discards the event. Source: Twilio docs, Event Streams FAQ,
            # "At-least-once delivery".
            return empty_response(503, connection="close")
        except RequestEntityTooLarge:
            return empty_response(413, connection="close")
        try:
            response, submitted = self._call(scope, body)
        except NeedsThread:
            run = asyncio.get_running_loop().run_in_executor
            response, submitted = await run(self._threads, self._call, scope, body)
        is_stored = submitted is None or await self._writer.stored(*submitted)
        return response if is_stored else empty_response(503)

    async def _body(self, receive: Receive) -> bytes:
        """The whole body. Raises ClientDisconnected or RequestEntityTooLarge."""
        body, more, is_large = bytearray(), True, False
        try:
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientDisconnected
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > EVENTS_LIMIT_BYTES:
                    raise RequestEntityTooLarge
                if more and not is_large and len(body) > INBOUND_LIMIT_BYTES:
                    is_large = await self._large.acquire()
        finally:
            if is_large:
                self._large.release()
        return bytes(body)

    def _call(self, scope: dict[str, Any], body: bytes) -> tuple[Response, Submitted | None]:
        """The application's response, and what has to be on disk before it is sent."""
        with self._app.request_context(_environ(scope, body)):
            try:
                response = self._app.full_dispatch_request()
            except Exception as error:  # noqa: BLE001  as Flask.wsgi_app does
                response = self._app.handle_exception(error)
            return response, g.get("submitted")


def _environ(scope: dict[str, Any], body: bytes) -> WSGIEnvironment:
    """What Flask reads of a WSGI environment. Source: PEP 3333, and the ASGI specification's "WSGI Compatibility"."""
    host, port = scope.get("server") or ("", 0)
    environ: WSGIEnvironment = {
        IN_EVENT_LOOP: True,
        "REQUEST_METHOD": scope["method"],
        "PATH_INFO": scope["path"].encode().decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
    }
    for name, value in scope["headers"]:
        # Without those with an underscore: "x_twilio_signature" would be read as "x-twilio-signature".
        if b"_" not in name and name != b"transfer-encoding":
            key, text = _key(name), value.decode("latin-1")
            environ[key] = f"{environ[key]},{text}" if key in environ else text
    # The length received, whatever the header announced.
    return environ | {"CONTENT_TYPE": environ.get("HTTP_CONTENT_TYPE", ""), "CONTENT_LENGTH": str(len(body))}


@lru_cache(maxsize=256)
def _key(header: bytes) -> str:
    return "HTTP_" + header.decode("latin-1").upper().replace("-", "_")
