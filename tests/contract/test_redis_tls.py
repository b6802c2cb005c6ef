"""TLS to Redis: a server whose certificate nobody trusts learns nothing, neither from the ledger nor the broker."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from shared.config import broker_url, redis_url
from shared.messaging.celery_config import make_celery
from shared.redis_client import connect

# A self-signed certificate of 127.0.0.1 with its key, made for this test.
UNTRUSTED = Path(__file__).with_name("untrusted.pem")


class Listener:
    """A TLS server that keeps what clients say."""

    def __init__(self) -> None:
        self.heard = b""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(UNTRUSTED)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as client:
                self.heard += client.recv(1000)
                client.sendall(b"-ERR\r\n")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def address(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> str:
    address = f"rediss://:S3cret@127.0.0.1:{listener.port}/0"
    monkeypatch.setenv("OPTOUT_REDIS_URL", address)
    return address


@pytest.mark.usefixtures("address")
def test_the_ledger_tells_an_untrusted_server_nothing(listener: Listener) -> None:
    with pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(redis_url()).ping()
    assert listener.heard == b""


@pytest.mark.usefixtures("address")
def test_the_broker_client_tells_an_untrusted_server_nothing(listener: Listener) -> None:
    app = make_celery(broker_url())
    with app.connection() as connection, pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
    assert listener.heard == b""


def test_verification_can_be_switched_off_in_the_address(listener: Listener, address: str) -> None:
    with pytest.raises(RedisError), connect(f"{address}?ssl_cert_reqs=none") as client:
        client.ping()
    assert b"S3cret" in listener.heard
