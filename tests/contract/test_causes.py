"""Whichever peer fails, and however: the same words, with its address, and without a login."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from redis.exceptions import RedisError

from shared import redis_client
from shared.config.schema import SmtpOAuth2, TwilioAccount
from shared.errors import Failure
from shared.redis_client import connect, redis_cause
from tests.certificates import make_authority
from tests.processes import free_port
from worker.checks.redis import check_broker, check_redis
from worker.mail import oauth2, smtp
from worker.mail.oauth2 import AccessTokens
from worker.mail.smtp import Mailer
from worker.redcap import client as redcap_client
from worker.redcap.client import RedcapClient
from worker.twilio import client as twilio_client
from worker.twilio.client import rest_client, time_of_message

SECRET = "geheim"
TIMEOUT = 0.3
ACCOUNT = "AC" + "a" * 32

Patch = pytest.MonkeyPatch
Ask = Callable[[str, bool, Patch], str]


@contextmanager
def listening(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server on loopback that treats every connection alike."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()

        def handle(connection: socket.socket) -> None:
            with suppress(OSError), connection:
                behave(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def failed(call: Callable[[], Any]) -> str:
    with pytest.raises(Failure) as caught:
        call()
    return str(caught.value)


def ask_redcap(address: str, tls: bool, patch: Patch) -> str:
    for name in ("REDCAP_CONNECT_TIMEOUT_SECONDS", "REDCAP_READ_TIMEOUT_SECONDS"):
        patch.setattr(redcap_client, name, TIMEOUT)
    client = RedcapClient(
        f"http{'s' * tls}://{address}/api/", SECRET, rate_limiter=Mock(), circuit_breaker=Mock()
    )
    return failed(client.version)


def ask_twilio(address: str, tls: bool, patch: Patch) -> str:
    patch.setattr(twilio_client, "TWILIO_TIMEOUT_SECONDS", TIMEOUT)
    patch.setenv("OPTOUT_TWILIO_API_URL", f"http{'s' * tls}://{address}")
    patch.setenv("OPTOUT_TEST_TOKEN", SECRET)
    account = TwilioAccount.model_validate({"account_sid": ACCOUNT, "auth_token": "env:OPTOUT_TEST_TOKEN"})
    return failed(lambda: time_of_message(rest_client(account), "SM" + "0" * 32))


def ask_token_endpoint(address: str, tls: bool, patch: Patch) -> str:
    patch.setattr(oauth2, "OAUTH2_TIMEOUT_SECONDS", TIMEOUT)
    patch.setenv("OPTOUT_TEST_SECRET", SECRET)
    # Configured addresses have https, and http on loopback only.
    values = {
        "client_id": "bridge",
        "client_secret": "env:OPTOUT_TEST_SECRET",
        "token_url": "https://localhost/",
    }
    config = SmtpOAuth2.model_validate(values).model_copy(
        update={"token_url": f"http{'s' * tls}://{address}/token"}
    )
    return failed(AccessTokens(config).get)


def ask_mail_server(address: str, tls: bool, patch: Patch) -> str:
    patch.setattr(smtp, "SMTP_TIMEOUT_SECONDS", TIMEOUT)
    patch.setattr(smtp._Connection, "_reply_seconds", TIMEOUT)
    mailer = Mailer(f"smtp{'s' * tls}://user:{SECRET}@{address}", "bridge@example.edu")
    return failed(mailer.check)


def ask_redis(address: str, tls: bool, patch: Patch) -> str:
    patch.setattr(redis_client, "SOCKET_TIMEOUT_SECONDS", TIMEOUT)
    url = f"redis{'s' * tls}://user:{SECRET}@{address}/0"
    patch.setenv("OPTOUT_REDIS_URL", url)
    with connect(url) as redis:
        [finding] = check_redis(redis, Mock())
        with pytest.raises(RedisError) as caught:
            redis.ping()
    observed: str = finding.observed  # type: ignore[union-attr]
    assert observed.endswith(redis_cause(caught.value))
    return observed


PEERS: dict[str, Ask] = {
    "REDCap": ask_redcap,
    "Twilio": ask_twilio,
    "token endpoint": ask_token_endpoint,
    "mail server": ask_mail_server,
    "Redis": ask_redis,
}


@pytest.fixture(params=PEERS)
def ask(request: pytest.FixtureRequest, monkeypatch: Patch) -> Callable[..., str]:
    """What is said of the peer at an address, which is checked to hold no secret."""
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _seconds: None)

    def asked(address: str, *, tls: bool = False) -> str:
        said: str = PEERS[request.param](address, tls, monkeypatch)
        assert SECRET not in said
        assert "Error" not in said
        assert address in said
        return said

    return asked


def test_a_name_that_does_not_exist(ask: Callable[..., str]) -> None:
    assert ask("no-such-host.invalid:4321").endswith("no-such-host.invalid:4321: name not found")


def test_a_port_at_which_nothing_listens(ask: Callable[..., str]) -> None:
    assert ask(f"127.0.0.1:{free_port()}").endswith(": refused: nothing listens there")


def stay_silent(_connection: socket.socket) -> None:
    threading.Event().wait(5)


def test_a_server_that_is_silent(ask: Callable[..., str]) -> None:
    with listening(stay_silent) as port:
        assert ask(f"127.0.0.1:{port}").endswith(": timed out after 0.3 s")


def test_a_certificate_that_is_not_trusted(ask: Callable[..., str], tmp_path: Path) -> None:
    make_authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")

    def behave(connection: socket.socket) -> None:
        with suppress(OSError):
            context.wrap_socket(connection, server_side=True)

    with listening(behave) as port:
        said = ask(f"127.0.0.1:{port}", tls=True)
    assert ": certificate not trusted: unable to get local issuer certificate" in said


def answer_in_clear(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"220 HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.recv(65536)


def test_tls_to_a_port_without_tls(ask: Callable[..., str]) -> None:
    with listening(answer_in_clear) as port:
        assert ask(f"127.0.0.1:{port}", tls=True).endswith(": no TLS, or another version of it")


def close_early(connection: socket.socket) -> None:
    """Greet as a mail server does, read a request, and close."""
    if connection.getsockname():
        connection.settimeout(0.1)
        with suppress(TimeoutError):
            connection.recv(65536)
            return
        connection.settimeout(5)
        connection.sendall(b"220 ready\r\n")
        connection.recv(65536)


def test_a_server_that_closes_in_the_dialogue(ask: Callable[..., str]) -> None:
    with listening(close_early) as port:
        assert ask(f"127.0.0.1:{port}").endswith(": connection cut")


def test_a_broker_is_described_like_redis(monkeypatch: Patch) -> None:
    [finding] = check_broker(f"amqp://user:{SECRET}@127.0.0.1:{(port := free_port())}//")
    assert finding.observed == f"127.0.0.1:{port}: refused: nothing listens there"  # type: ignore[union-attr]
