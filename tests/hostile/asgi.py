"""Requests to the ASGI application, chunk by chunk, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from web.request_buffering import RequestBuffering

NEVER = None  # in place of a chunk: nothing more comes


class Answered(NamedTuple):
    status: int
    content_type: str
    body: bytes


def ask(
    app: RequestBuffering, chunks: Sequence[bytes | None] = (), *, path: str = "/twilio/inbound", query: bytes = b"",
    method: str = "POST", headers: dict[str, str] | None = None,
) -> Answered:  # fmt: skip
    """One request whose body comes in chunks."""
    return asyncio.run(answer(app, chunks, path=path, query=query, method=method, headers=headers))


async def answer(
    app: RequestBuffering, chunks: Sequence[bytes | None] = (), *, path: str = "/twilio/inbound", query: bytes = b"",
    method: str = "POST", headers: dict[str, str] | None = None,
) -> Answered:  # fmt: skip
    """The same, within an event loop."""
    rest, sent = list(chunks), []

    async def receive() -> dict[str, Any]:
        if rest and rest[0] is NEVER:
            await asyncio.sleep(3600)
        body = rest.pop(0) if rest else b""
        return {"type": "http.request", "body": body, "more_body": bool(rest)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "query_string": query, "http_version": "1.1",
        "scheme": "http", "server": ("127.0.0.1", 8000),
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()],
    }  # fmt: skip
    await app(scope, receive, send)
    start, end = sent
    told = dict(start["headers"])
    return Answered(start["status"], told.get(b"content-type", b"").decode(), end["body"])
