"""A mail server that accepts connections and never answers occupies few processes, and not for long."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.message import EmailMessage
from typing import Any

import pytest
import time_machine

from shared.errors import MailDeferred, MailRejected
from shared.ledger import keys
from shared.retry_policy import MAIL_SERVER_PAUSES_SECONDS
from tests.fakes import fake_redis
from tests.processes import free_port, wait_until
from tests.simulators.smtp import SmtpSimulator
from worker.mail import server_guard, smtp
from worker.mail.server_guard import ServerGuard, process_slot
from worker.mail.smtp import Mailer

SENDER = "optout-bridge@example.edu"


class Silent:
    """A server whose connections are accepted, and never answered."""

    def __init__(self, port: int = 0, drip: bytes = b"") -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.accepted: list[socket.socket] = []
        self._drip = drip
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                self.accepted.append(connection)
                while self._drip:
                    connection.sendall(self._drip)
                    time.sleep(0.05)
        except OSError:
            return

    def close(self) -> None:
        self._drip = b""
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *self.accepted):
            each.close()
        self._thread.join(5)


@pytest.fixture
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


@pytest.fixture
def redis() -> Any:
    return fake_redis()


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp, "SMTP_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(server_guard, "MAIL_SERVER_SLOW_SECONDS", 0.2)


def mail() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = SENDER, "coordinator@example.edu"
    message.set_content("Saved.\n")
    return message


def error_of(mailer: Mailer) -> MailDeferred:
    with pytest.raises(MailDeferred) as caught:
        mailer.send(mail())
    return caught.value


def test_after_a_timeout_all_processes_pause_without_connecting(silent: Silent, redis: Any) -> None:
    first, other = (Mailer(f"smtp://127.0.0.1:{silent.port}", SENDER, redis=redis) for _ in range(2))
    assert error_of(first).code == "smtp_unreachable"
    assert (error_of(first).code, error_of(other).code) == ("smtp_paused", "smtp_paused")
    assert len(silent.accepted) == 1


def test_the_pause_grows_and_one_process_tries_at_a_time(silent: Silent, redis: Any) -> None:
    mailer = Mailer(f"smtp://127.0.0.1:{silent.port}", SENDER, redis=redis)
    pauses = []
    with time_machine.travel("2026-05-04T12:00:00Z", tick=True) as traveller:
        for _ in range(6):
            assert error_of(mailer).code == "smtp_unreachable"
            stored = redis.hget(keys.mail_pause(mailer.address), "until")
            pauses.append(round(float(stored) - time.time()))
            traveller.shift(MAIL_SERVER_PAUSES_SECONDS[-1] + 1)
        assert pauses == [20, 60, 120, 300, 300, 300]
        redis.set(keys.mail_probe(mailer.address), "1")
        assert "another process" in str(error_of(mailer))


@pytest.mark.parametrize("reply", ["", "451 4.7.1 Later", "550 5.1.1 No such user"])
def test_any_answer_ends_the_pause(redis: Any, reply: str) -> None:
    silent = Silent()
    mailer = Mailer(f"smtp://127.0.0.1:{silent.port}", SENDER, redis=redis)
    error_of(mailer)
    silent.close()
    redis.hset(keys.mail_pause(mailer.address), "until", time.time() - 1)
    server = SmtpSimulator()
    if reply:
        server.reply("RCPT", reply)
    with server.serve(silent.port):
        if reply:
            with pytest.raises((MailDeferred, MailRejected)):
                mailer.send(mail())
        else:
            mailer.send(mail())
        assert not redis.exists(keys.mail_pause(mailer.address), keys.mail_probe(mailer.address))
        mailer.send(mail())
    assert server.inbox


def test_a_refused_connection_needs_no_pause(redis: Any) -> None:
    mailer = Mailer(f"smtp://127.0.0.1:{free_port()}", SENDER, redis=redis)
    assert [error_of(mailer).code for _ in range(3)] == ["smtp_unreachable"] * 3


def test_a_server_that_sends_a_byte_now_and_then_is_left(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp, "SMTP_DIALOGUE_SECONDS", 0.5)
    server = Silent(drip=b"220-wait\r\n")
    mailer = Mailer(f"smtp://127.0.0.1:{server.port}", SENDER, redis=redis)
    began = time.monotonic()
    assert error_of(mailer).code == "smtp_unreachable"
    assert time.monotonic() - began < 3
    assert error_of(mailer).code == "smtp_paused"
    server.close()


def test_a_clock_that_was_set_back_ends_no_pause_later(silent: Silent, redis: Any) -> None:
    mailer = Mailer(f"smtp://127.0.0.1:{silent.port}", SENDER, redis=redis)
    redis.hset(keys.mail_pause(mailer.address), "until", time.time() + 86_400)
    assert error_of(mailer).code == "smtp_unreachable"


def test_half_of_the_processes_stay_free(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_guard, "USUAL_SECONDS", 0.1)
    mailer = Mailer(f"smtp://127.0.0.1:{free_port()}", SENDER, redis=redis)
    with ExitStack() as stack:
        for _ in range(ServerGuard.limit):
            stack.enter_context(process_slot(mailer.address, ServerGuard.limit))
        assert error_of(mailer).code == "smtp_busy"
    assert error_of(mailer).code == "smtp_unreachable"


def test_without_a_place_for_temporary_files_mail_is_sent(
    redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
    with SmtpSimulator().serve() as server:
        Mailer(server.url, SENDER, redis=redis).send(mail())
        assert len(server.wait_for(1)) == 1


def _hold(server: str) -> None:
    with process_slot(server, 1):
        time.sleep(60)


def test_a_killed_process_leaves_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_guard, "MAIL_SERVER_WAIT_SECONDS", 0.0)
    server = f"127.0.0.1:{free_port()}"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(server,))
    process.start()

    def taken() -> bool:
        try:
            with process_slot(server, 1):
                return False
        except MailDeferred:
            return True

    wait_until(taken, what="the process holds its place")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not taken()
