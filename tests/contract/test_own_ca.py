"""An institution's own certificate authority: every peer is trusted with `OPTOUT_CA_FILE`, and none without."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Sink
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.config import broker_url, redis_url
from shared.config.certificates import ca_file
from shared.config.schema import SmtpOAuth2
from shared.config.secrets import Secret
from shared.errors import ConfigError, MailDeferred, RedcapUnavailable, TwilioUnavailable
from shared.messaging.celery_config import make_celery
from shared.redis_client import connect
from tests.builders import REDCAP_TOKEN, config
from tests.certificates import make_authority
from tests.processes import free_port
from tests.simulators.oauth2 import TokenEndpoint
from tests.simulators.redcap import RedcapSimulator, classic_study
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import ACCOUNT_SID, TwilioSimulator
from worker.checks.web import check_web
from worker.http_session import trusting
from worker.mail.oauth2 import AccessTokens
from worker.mail.smtp import Mailer
from worker.mail.verdicts import Recipients
from worker.redcap.client import RedcapClient
from worker.twilio.client import rest_client, translate_errors

SENDER = "optout-bridge@example.edu"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a private authority: ca.pem, and server.pem for 127.0.0.1 and localhost."""
    folder = tmp_path_factory.mktemp("ca")
    make_authority(folder)
    return folder


@pytest.fixture
def own_ca(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTOUT_CA_FILE", str(ca / "ca.pem"))


def _server_context(ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca / "server.pem")
    return context


@contextmanager
def tls_in_front_of(port: int, ca: Path) -> Iterator[int]:
    """A listener with the private authority's certificate that passes plain bytes on to a local port."""
    context, listener = _server_context(ca), socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        with (
            suppress(OSError),
            context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(("127.0.0.1", port)) as server,
        ):
            back = threading.Thread(target=pump, args=(server, client), daemon=True)
            back.start()
            pump(client, server)
            back.join()

    def listen() -> None:
        with suppress(OSError):
            while True:
                plain, _ = listener.accept()
                threading.Thread(target=serve, args=(plain,), daemon=True).start()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


# --- the peers: each connects, or raises its own error ------------------------------------------------


def _redis(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch, valkey_port: int) -> None:
    env.setenv(
        "OPTOUT_REDIS_URL", f"rediss://127.0.0.1:{stack.enter_context(tls_in_front_of(valkey_port, ca))}/0"
    )


def ledger(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch, valkey_port: int) -> None:
    _redis(stack, ca, env, valkey_port)
    assert stack.enter_context(connect(redis_url())).ping()


def broker(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch, valkey_port: int) -> None:
    _redis(stack, ca, env, valkey_port)
    connection = stack.enter_context(make_celery(broker_url()).connection())
    connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)


def redcap(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch, valkey_port: int) -> None:
    server = stack.enter_context(RedcapSimulator({REDCAP_TOKEN: classic_study()}).serve())
    port = stack.enter_context(tls_in_front_of(int(server.url.split(":")[2].split("/")[0]), ca))
    free: Any = type("Free", (), {"acquire": lambda _: None, "check": lambda _: None})()
    free.record_success = free.record_failure = lambda **_: None
    client = RedcapClient(
        f"https://127.0.0.1:{port}/api/", REDCAP_TOKEN, rate_limiter=free, circuit_breaker=free
    )
    stack.enter_context(client.session)
    assert client.version()
    assert list(client.export_all(["record_id"])) == []


def twilio(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch, valkey_port: int) -> None:
    server = stack.enter_context(TwilioSimulator().serve())
    port = stack.enter_context(tls_in_front_of(int(server.url.rsplit(":", 1)[1]), ca))
    env.setenv("OPTOUT_TWILIO_API_URL", f"https://127.0.0.1:{port}")
    client = rest_client(config().twilio["main"])
    with translate_errors():
        assert client.api.v2010.accounts(ACCOUNT_SID).fetch().sid == ACCOUNT_SID


def smtps(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch, valkey_port: int) -> None:
    server = stack.enter_context(SmtpSimulator().serve())
    port = stack.enter_context(tls_in_front_of(int(server.url.rsplit(":", 1)[1]), ca))
    Mailer(f"smtps://127.0.0.1:{port}", SENDER).check([])


def starttls(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch, valkey_port: int) -> None:
    port = free_port()
    server = Controller(Sink(), hostname="127.0.0.1", port=port, tls_context=_server_context(ca))
    server.start()
    stack.callback(server.stop)
    Mailer(f"smtp://127.0.0.1:{port}?starttls=true", SENDER).check([])


def _tokens(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch) -> tuple[TokenEndpoint, AccessTokens]:
    endpoint = stack.enter_context(TokenEndpoint().serve())
    port = stack.enter_context(tls_in_front_of(int(endpoint.url.split(":")[2].split("/")[0]), ca))
    env.setenv("CLIENT_SECRET", endpoint.client_secret)
    table = SmtpOAuth2(
        token_url=f"https://127.0.0.1:{port}/token", client_id=endpoint.client_id,
        client_secret=Secret("env:CLIENT_SECRET"), scope=endpoint.scope,
    )  # fmt: skip
    return endpoint, AccessTokens(table)


def token(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch, valkey_port: int) -> None:
    assert _tokens(stack, ca, env)[1].get() == "token-1"


def mailbox(stack: ExitStack, ca: Path, env: pytest.MonkeyPatch, valkey_port: int) -> None:
    """As Microsoft 365: a token endpoint with https, and a login by XOAUTH2 after STARTTLS only."""
    endpoint, tokens = _tokens(stack, ca, env)
    server = SmtpSimulator(
        SENDER, token_is_valid=endpoint.issued.__contains__, tls_context=_server_context(ca)
    )
    url = stack.enter_context(server.serve()).url
    mailer = Mailer(f"{url.replace(':@', '@')}?starttls=true", SENDER, tokens=tokens)
    assert mailer.check(["coordinator@example.edu"]) == Recipients()


PEERS: dict[str, tuple[Callable[..., None], type[Exception]]] = {
    "ledger": (ledger, RedisConnectionError),
    "broker": (broker, OperationalError),
    "redcap": (redcap, RedcapUnavailable),
    "twilio": (twilio, TwilioUnavailable),
    "smtps": (smtps, MailDeferred),
    "starttls": (starttls, MailDeferred),
    "token": (token, MailDeferred),
    "mailbox": (mailbox, MailDeferred),
}


@pytest.mark.usefixtures("own_ca", "naps")
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_of_the_private_authority_is_trusted(
    peer: str, ca: Path, monkeypatch: pytest.MonkeyPatch, valkey_port: int
) -> None:
    with ExitStack() as stack:
        PEERS[peer][0](stack, ca, monkeypatch, valkey_port)


@pytest.mark.usefixtures("naps")
@pytest.mark.parametrize("peer", PEERS)
def test_without_the_file_no_peer_is_trusted(
    peer: str, ca: Path, monkeypatch: pytest.MonkeyPatch, valkey_port: int
) -> None:
    with ExitStack() as stack, pytest.raises(PEERS[peer][1]):
        PEERS[peer][0](stack, ca, monkeypatch, valkey_port)


@pytest.mark.usefixtures("own_ca")
def test_the_public_authorities_stay_trusted() -> None:
    """The file is added to them: a session's context has all of both."""
    public = len(ssl.create_default_context().get_ca_certs())
    with trusting(requests.Session()) as session:
        pool: Any = session.get_adapter("https://redcap.example.edu").poolmanager  # type: ignore[attr-defined]
        assert len(pool.connection_pool_kw["ssl_context"].get_ca_certs()) == public + 1


@pytest.mark.usefixtures("own_ca")
def test_the_check_of_web_trusts_the_authority_too(ca: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(RedcapSimulator({}).serve())
        port = stack.enter_context(tls_in_front_of(int(server.url.split(":")[2].split("/")[0]), ca))
        [finding] = check_web(f"https://127.0.0.1:{port}", lambda: datetime.datetime.now(datetime.UTC))
    assert getattr(finding, "id", "") == "web-is-another", "the certificate was accepted"


@pytest.mark.parametrize("content", ["", "\n  \n", None, "folder"])
def test_no_file_an_empty_one_or_a_folder_changes_nothing(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTOUT_CA_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("OPTOUT_REDIS_URL", "rediss://redis.example.edu/0")
    if content == "folder":
        (tmp_path / "ca.pem").mkdir()
    elif content is not None:
        (tmp_path / "ca.pem").write_text(content)
    assert ca_file() == ""
    assert redis_url() == "rediss://redis.example.edu/0?ssl_cert_reqs=required"


@pytest.mark.parametrize("content", ["not a certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n", "\0"])
def test_a_file_without_certificates_is_named_in_one_line(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text(content)
    monkeypatch.setenv("OPTOUT_CA_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("OPTOUT_REDIS_URL", "rediss://redis.example.edu/0")
    with pytest.raises(ConfigError) as raised:
        redis_url()
    [line] = raised.value.problems
    assert line.startswith("OPTOUT_CA_FILE: ")
    assert "PEM" in line


def test_another_file_in_the_address_takes_precedence(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTOUT_CA_FILE", str(ca / "ca.pem"))
    address = "rediss://h/0?ssl_ca_certs=/other.pem&ssl_cert_reqs=none"
    monkeypatch.setenv("OPTOUT_REDIS_URL", address)
    assert redis_url() == address
