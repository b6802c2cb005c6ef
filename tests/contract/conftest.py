"""A real server for what must be true of Redis itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from tests.processes import Process, free_port, valkey_binary, wait_until


@pytest.fixture(scope="package")
def valkey_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A Valkey on loopback that keeps nothing."""
    folder, port = tmp_path_factory.mktemp("valkey"), free_port()
    options = {"port": str(port), "bind": "127.0.0.1", "dir": str(folder), "save": ""}
    command = [valkey_binary(), *(part for name, value in options.items() for part in (f"--{name}", value))]
    server = Process("valkey", command, env={}, folder=folder)
    server.start()
    try:
        with Redis(port=port) as client:
            wait_until(client.ping, what="the server answers")
        yield port
    finally:
        server.stop()


@pytest.fixture
def valkey_url(valkey_port: int) -> str:
    """Where it is reached."""
    return f"redis://127.0.0.1:{valkey_port}/0"
