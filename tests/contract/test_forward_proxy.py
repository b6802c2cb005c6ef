"""Behind a forward proxy: REDCap and Twilio are reached through it, this machine and other containers without it."""

from __future__ import annotations

import datetime
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml  # type: ignore[import-untyped]

from tests.builders import REDCAP_TOKEN
from tests.processes import ROOT
from tests.simulators.redcap import RedcapSimulator, classic_study
from tests.simulators.smtp import SmtpSimulator, serve_inbox
from worker.checks.web import check_web
from worker.redcap.client import RedcapClient


class ForwardProxy:
    """A proxy for http (absolute addresses) and https (CONNECT) that counts what comes."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._listen, daemon=True)

    @contextmanager
    def serve(self) -> Iterator[ForwardProxy]:
        self._thread.start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._thread.join(5)

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            head = client.recv(65536)
            line = head.split(b"\r\n", 1)[0].decode()
            self.requests.append(line)
            method, target, _ = line.split()
            parts = urlsplit(target if "://" in target else f"//{target}")
            with socket.create_connection((str(parts.hostname), parts.port or 80)) as server:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    server.sendall(head.replace(f"{parts.scheme}://{parts.netloc}".encode(), b"", 1))
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join(5)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ForwardProxy]:
    with ForwardProxy().serve() as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            monkeypatch.setenv(name, server.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield server


def test_redcap_is_reached_through_the_proxy(proxy: ForwardProxy) -> None:
    free: Any = type("Free", (), {"acquire": lambda _: None, "check": lambda _: None})()
    free.record_success = free.record_failure = lambda **_: None
    with RedcapSimulator({REDCAP_TOKEN: classic_study()}).serve() as redcap:
        client = RedcapClient(redcap.url, REDCAP_TOKEN, rate_limiter=free, circuit_breaker=free)
        with client.session:
            assert client.version()
        assert proxy.requests == [f"POST {redcap.url} HTTP/1.1"]


@pytest.mark.usefixtures("proxy")
def test_web_on_this_machine_is_checked_without_the_proxy(proxy: ForwardProxy) -> None:
    with RedcapSimulator({}).serve() as server:
        port = urlsplit(server.url).port
        [finding] = check_web(f"http://127.0.0.1:{port}", lambda: datetime.datetime.now(datetime.UTC))
    assert getattr(finding, "id", "") == "web-is-another"
    assert proxy.requests == []


@pytest.mark.parametrize("service", ["web", "flower", "console"])
@pytest.mark.usefixtures("proxy")
def test_a_health_check_of_compose_asks_its_own_container(service: str, proxy: ForwardProxy) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    _, python, option, code = services[service]["healthcheck"]["test"]
    assert (python, option) == ("python", "-c")
    with SmtpSimulator().serve() as smtp, serve_inbox(smtp) as url:  # answers 200 at its root
        address = code.split("'")[1]
        code = code.replace(address, f"{url}/")
        done = subprocess.run(
            [sys.executable, option, code], env=os.environ, capture_output=True, check=False
        )
    assert (done.returncode, proxy.requests) == (0, []), done.stderr
