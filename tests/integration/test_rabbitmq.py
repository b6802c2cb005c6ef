"""RabbitMQ as the broker, Redis for the ledger only: a real server, killed and restarted."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from shared.config import broker_url
from shared.ledger import keys
from shared.messaging.celery_config import make_celery
from shared.messaging.publisher import CeleryPublisher
from shared.messaging.tasks import QUEUES, TaskName
from tests.certificates import make_authority
from tests.processes import Platform, Process, free_port, wait_until
from tests.simulators.redcap import Project, RedcapSimulator, classic_study, enrol, fictional_phone
from tests.simulators.twilio import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    PUBLIC_URL,
    SENDER,
    SERVICE_SID,
    Account,
    TwilioSimulator,
)
from worker.checks.findings import Passed
from worker.checks.redis import check_broker

# Debian's own start script would change to another user; the server's own runs as whoever starts it.
SERVERS = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not SERVERS, reason="rabbitmq-server is not installed (Debian: apt install rabbitmq-server)"
    ),
]

TOKEN = "FAKEASTHMATOKEN00000000000000000"
CONFIG = f"""
public_url = "{PUBLIC_URL}"

[twilio.main]
account_sid = "{ACCOUNT_SID}"
auth_token = "env:TEST_TWILIO_TOKEN"

[projects.asthma]
redcap_url = "{{redcap_url}}"
redcap_token = "env:TEST_REDCAP_TOKEN"
twilio = "main"
messaging_service_sid = "{SERVICE_SID}"
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
"""


TLS = """
listeners.ssl.default = 127.0.0.1:{port}
ssl_options.certfile = {folder}/server.pem
ssl_options.keyfile = {folder}/server.pem
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
"""


class RabbitMq:
    """A server of our own on loopback: own ports, data and name server, so that no other one is met."""

    def __init__(self, folder: Path) -> None:
        self.port, self.tls_port = free_port(), free_port()
        make_authority(folder)
        (folder / "rabbitmq.conf").write_text(TLS.format(folder=folder, port=self.tls_port))
        names = str(free_port())
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": names,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "optout-test@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        }
        epmd = shutil.which("epmd") or "epmd"
        self.names = Process("epmd", [epmd, "-port", names, "-address", "127.0.0.1"], env=env, folder=folder)
        self.server = Process("rabbitmq", [str(SERVERS[-1])], env=env, folder=folder)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self.tls_url = f"amqps://guest:guest@127.0.0.1:{self.tls_port}//"

    def start(self) -> None:
        """Start, and wait until it takes connections."""
        if not self.names.running:
            self.names.start()
        started = self.server.text().count("Server startup complete")
        self.server.start()
        wait_until(
            lambda: self.server.text().count("Server startup complete") > started,
            seconds=90,
            what="RabbitMQ is up",
        )

    def stop(self) -> None:
        """Stop the server and its name server."""
        self.server.stop()
        self.names.stop()


@dataclass(frozen=True)
class Stage:
    """The platform on RabbitMQ, a study, and participants who text."""

    platform: Platform
    rabbitmq: RabbitMq
    study: Project
    twilio: TwilioSimulator

    def text(self, record: int, body: str = "STOP") -> int:
        """A participant's text; answers the webhook's status."""
        texted = self.twilio.text(
            from_=fictional_phone(record), body=body, service=SERVICE_SID, advanced_opt_out=True
        )
        return texted.status

    def hurry(self) -> None:
        """Let the minute be over after which sweep publishes again, and have it swept."""
        redis: Any = self.platform.redis
        if due := redis.zrange(keys.DUE, 0, -1):
            redis.zadd(keys.DUE, dict.fromkeys(due, 0), xx=True)
        with suppress(OperationalError), make_celery(self.rabbitmq.url) as app:  # may still be starting
            CeleryPublisher(app)(TaskName.SWEEP)

    def expect_opted_out(self, records: range, seconds: float = 150) -> None:
        """Wait until all show it. What a fault left behind, sweep finds within minutes: time passes faster here."""
        deadline = time.monotonic() + seconds
        while not self._all_opted_out(records, seconds=15):
            assert time.monotonic() < deadline, "not all are opted out"
            self.hurry()

    def _all_opted_out(self, records: range, *, seconds: float) -> bool:
        with suppress(TimeoutError):
            wait_until(
                lambda: all(self.study.value(str(record), "sms_opt_out_at") for record in records),
                seconds=seconds,
                what="all are opted out",
            )
            return True
        return False


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("rabbitmq")
    study = classic_study()
    enrol(study, 200)
    rabbitmq = RabbitMq(folder)
    twilio = TwilioSimulator([Account(sid=ACCOUNT_SID, auth_token=AUTH_TOKEN)], public_url=PUBLIC_URL)
    twilio.add_service(sid=SERVICE_SID, senders=[SENDER])
    with RedcapSimulator({TOKEN: study}).serve() as redcap:
        secrets = {
            "OPTOUT_HASH_KEY": "insecure-hash-key-of-the-tests-only",
            "OPTOUT_BROKER_URL": rabbitmq.tls_url,
            "OPTOUT_CA_FILE": str(folder / "ca.pem"),
            "TEST_TWILIO_TOKEN": AUTH_TOKEN,
            "TEST_REDCAP_TOKEN": TOKEN,
        }
        try:
            rabbitmq.start()
            with Platform(folder, CONFIG.format(redcap_url=redcap.url), secrets) as platform:
                platform.start()
                twilio.deliver_to(platform.web_url)
                yield Stage(platform, rabbitmq, study, twilio)
        finally:
            rabbitmq.stop()


@contextmanager
def another_server(context: ssl.SSLContext) -> Iterator[int]:
    """A listener that takes TLS connections."""
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        with suppress(OSError):
            while True:
                plain, _ = listener.accept()
                with suppress(OSError):
                    context.wrap_socket(plain, server_side=True).close()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_tls_trusts_ca_pem_and_the_name_in_the_certificate_only(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The platform of this module connects by amqps, too."""
    monkeypatch.setenv("OPTOUT_CA_FILE", str(stage.platform.folder / "ca.pem"))
    monkeypatch.setenv("OPTOUT_BROKER_URL", stage.rabbitmq.tls_url)
    assert [type(finding) for finding in check_broker(broker_url())] == [Passed]
    monkeypatch.delenv("OPTOUT_CA_FILE")
    refused = pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED")
    with make_celery(broker_url()) as app, app.connection() as connection, refused:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
    [finding] = check_broker(broker_url())
    assert getattr(finding, "id", "") == "broker-unreachable"
    make_authority(tmp_path, "rabbitmq.example.edu")  # a certificate of another host
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem")
    monkeypatch.setenv("OPTOUT_CA_FILE", str(tmp_path / "ca.pem"))
    refused = pytest.raises(OperationalError, match="IP address mismatch")
    with (
        another_server(server) as port,
        make_celery(f"amqps://127.0.0.1:{port}//").connection() as connection,
        refused,
    ):
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)


def test_a_stop_goes_its_way_through_rabbitmq(stage: Stage) -> None:
    assert stage.text(1) == 200
    stage.expect_opted_out(range(1, 2), seconds=30)


def test_an_invalid_message_is_set_aside(stage: Stage) -> None:
    entries = {
        "no_task": {},
        "unknown_task": {"task": "qzxjv.task", "id": "1"},
        "invalid_body": {"task": TaskName.LOOKUP, "id": "1"},
    }
    with make_celery(stage.rabbitmq.url) as app, app.connection_for_write() as connection:
        producer = connection.Producer()
        for headers in entries.values():
            producer.publish(
                b"qzxjv", routing_key=QUEUES[TaskName.LOOKUP], headers=headers, content_type="application/json",
                content_encoding="utf-8",
            )  # fmt: skip
    redis: Any = stage.platform.redis
    wait_until(lambda: redis.llen(keys.INVALID_MESSAGES) == len(entries), what="all are set aside")
    assert redis.lrange(keys.INVALID_MESSAGES, 0, -1) == ["qzxjv"] * len(entries)
    assert "qzxjv" not in stage.platform["worker"].text()
    assert stage.text(2) == 200
    stage.expect_opted_out(range(2, 3), seconds=30)
    redis.delete(keys.INVALID_MESSAGES)


def test_redis_holds_the_ledger_and_no_queue(stage: Stage) -> None:
    stored = [str(key) for key in stage.platform.redis.scan_iter()]
    assert [key for key in stored if not key.startswith("optout:")] == []
    assert stored


def test_a_killed_worker_leaves_its_messages_to_the_next(stage: Stage) -> None:
    records = range(10, 80)
    for record in records:
        if record == 40:
            stage.platform["worker"].kill()
        assert stage.text(record) == 200
    stage.platform.start("worker")
    stage.expect_opted_out(records)


def test_rabbitmq_may_go_and_come_back_during_a_burst(stage: Stage) -> None:
    """The web process stores first: it goes on answering 200, and sweep publishes what RabbitMQ did not get."""
    records = range(100, 180)
    for record in records:
        if record == 120:
            stage.rabbitmq.server.stop()
        if record == 150:
            stage.rabbitmq.start()
        assert stage.text(record) == 200
    stage.hurry()
    stage.expect_opted_out(records, seconds=240)
    for name in ("web", "worker", "beat", "flower"):
        assert stage.platform[name].running, name
