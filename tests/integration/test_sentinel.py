"""A primary, two replicas and three sentinels: the primary is killed while webhooks arrive."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from redis import Redis
from redis.exceptions import RedisError

from shared.domain.events import Source
from shared.ledger import Ledger, StaffDecision
from shared.redis_client import NotReplicated, RedisClient, connect, execute_replicated
from tests.builders import opt_out_event
from tests.integration.world import HASH_KEY, STUDIES, World, configuration, sender_of, service_sid
from tests.processes import REDIS_CONF, Platform, Process, free_port, valkey_binary, wait_until
from tests.simulators.redcap import RedcapSimulator
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import AUTH_TOKEN, Account, TwilioSimulator

pytestmark = pytest.mark.timeout(300)

NAME = "optout-primary"
PASSWORD, SENTINEL_PASSWORD = "of/redis+1", "of@sentinels+2"


class Servers:
    """Three servers and three sentinels on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ports = [free_port() for _ in range(3)]
        self.sentinel_ports = [free_port() for _ in range(3)]
        self.servers = {port: self._server(port) for port in self.ports}
        self.sentinels = [self._sentinel(port) for port in self.sentinel_ports]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        login, options = quote(PASSWORD, safe=""), f"sentinel_password={quote(SENTINEL_PASSWORD, safe='+')}"
        return f"redis+sentinel://:{login}@{hosts}/{NAME}/2?{options}"

    def _server(self, port: int) -> Process:
        data = self._folder / str(port)
        data.mkdir()
        conf = shutil.copy(REDIS_CONF, data)  # sentinels have it rewritten
        command = [
            valkey_binary(), str(conf), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(data),
            "--requirepass", PASSWORD, "--masterauth", PASSWORD, "--repl-diskless-sync-delay", "0",
        ]  # fmt: skip
        if port != self.ports[0]:
            command += ["--replicaof", "127.0.0.1", str(self.ports[0])]
        return Process(f"server-{port}", command, env={}, folder=self._folder)

    def _sentinel(self, port: int) -> Process:
        conf = self._folder / f"sentinel-{port}.conf"
        conf.write_text(f"""bind 127.0.0.1
port {port}
dir {self._folder}
requirepass "{SENTINEL_PASSWORD}"
sentinel sentinel-pass "{SENTINEL_PASSWORD}"
sentinel monitor {NAME} 127.0.0.1 {self.ports[0]} 2
sentinel auth-pass {NAME} "{PASSWORD}"
sentinel down-after-milliseconds {NAME} 1000
sentinel failover-timeout {NAME} 6000
""")
        command = [valkey_binary(), str(conf), "--sentinel"]
        return Process(f"sentinel-{port}", command, env={}, folder=self._folder)

    def start(self) -> None:
        """Start all, and wait until primary and sentinels know each other."""
        for each in self.servers.values():
            each.start()
        primary = Redis(port=self.ports[0], password=PASSWORD, decode_responses=True)
        wait_until(lambda: _replicas_in_sync(primary) == 2, what="both replicas have all data")
        for sentinel in self.sentinels:
            sentinel.start()
        for port in self.sentinel_ports:
            one = Redis(port=port, password=SENTINEL_PASSWORD, decode_responses=True)
            wait_until(partial(_knows_all, one), what="the sentinels know each other")
            one.close()
        primary.close()

    def primary(self) -> int:
        """The port of the primary that the first sentinel names."""
        with Redis(port=self.sentinel_ports[0], password=SENTINEL_PASSWORD, decode_responses=True) as one:
            address: Any = one.sentinel_get_master_addr_by_name(NAME)
            return int(address[1])

    def stop(self) -> None:
        for each in [*self.sentinels, *self.servers.values()]:
            each.kill()


def _replicas_in_sync(primary: Redis) -> int:
    found: dict[str, Any] = primary.info("replication")
    return [found[name]["state"] for name in ("slave0", "slave1") if name in found].count("online")


def _knows_all(sentinel: Redis) -> bool:
    masters: Any = sentinel.sentinel_masters()
    state = masters[NAME]
    return bool(state["num-other-sentinels"] == 2 and state["num-slaves"] == 2)


class SentinelPlatform(Platform):
    """Its processes know the sentinels only."""

    def __init__(self, folder: Path, config: str, secrets: dict[str, str], url: str) -> None:
        self._sentinels = url
        super().__init__(folder, config, secrets, level="DEBUG")
        self.redis_url = url
        self.redis = connect(url)

    def _process(self, name: str, command: list[str]) -> Process:  # type: ignore[override]
        self.env["OPTOUT_REDIS_URL"] = self._sentinels
        return super()._process(name, command)

    def _console_env(self) -> dict[str, str]:
        return super()._console_env() | {"OPTOUT_REDIS_URL": self._sentinels}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("servers"))
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()


@contextmanager
def sentinel_world(folder: Path, url: str) -> Iterator[World]:
    redcap = RedcapSimulator({token: make() for token, _, make, _ in STUDIES.values()})
    with ExitStack() as stack:
        stack.enter_context(redcap.serve())
        smtp = stack.enter_context(SmtpSimulator().serve())
        twilio = TwilioSimulator([Account()])
        api = stack.enter_context(twilio.serve())
        secrets = {f"{name.upper()}_TOKEN": token for name, (token, *_) in STUDIES.items()} | {
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN, "OPTOUT_HASH_KEY": HASH_KEY, "OPTOUT_SMTP_URL": smtp.url,
            "OPTOUT_TWILIO_API_URL": api.url, "FLOWER_UNAUTHENTICATED_API": "true",
        }  # fmt: skip
        platform = SentinelPlatform(folder, configuration(redcap.url), secrets, url)
        stack.enter_context(platform)
        platform.start("web", "worker", "beat", "flower", "console")
        twilio.deliver_to(platform.web_url)
        for number in {service for _, service, _, _ in STUDIES.values()}:
            twilio.add_service(sid=service_sid(number), senders=[sender_of(number)])
        yield World(platform, redcap, smtp, twilio)


def test_the_primary_is_killed_in_a_burst(servers: Servers, tmp_path: Path) -> None:
    with sentinel_world(tmp_path, servers.url) as world:
        world.ended(world.text(world.enrol().phone))
        first = servers.primary()
        people = [world.enrol() for _ in range(60)]
        with ThreadPoolExecutor(12) as pool:
            texts = pool.map(lambda each: (each, world.text(each.phone)), people[:40])
            time.sleep(0.2)
            servers.servers[first].kill()
            accepted = [(person, text) for person, text in texts if text.answer.status == 200]
        wait_until(lambda: servers.primary() != first, what="another primary")

        def stored_again() -> bool:
            person = people.pop()
            text = world.text(person.phone)
            if text.answer.status != 200:
                return False
            accepted.append((person, text))
            return True

        wait_until(stored_again, what="web stores in the new primary")
        wait_until(lambda: world.platform.redis.ping())
        world.ended(accepted[-1][1], seconds=120)  # at the latest the second sweep asks again
        wait_until(
            lambda: all(world.value(person) for person, _ in accepted), seconds=120, what="REDCap shows all"
        )
        wait_until(
            lambda: "redis_changed" in world.platform["worker"].text(), seconds=90, what="a sweep notices"
        )
        check = world.platform.run("check", check=False)
        assert "redis-unreachable" not in check.stdout + check.stderr
        assert requests.get(f"{world.platform.flower_url}/healthcheck", timeout=5).ok
        assert requests.get(f"{world.platform.console_url}/healthz", timeout=5).ok
        assert all(world.platform[name].running for name in ("web", "worker", "beat", "flower", "console"))


@contextmanager
def writing(redis: RedisClient, key: str) -> Iterator[set[str]]:
    """Add numbers to a set all the time. Yields those that were confirmed."""
    confirmed, ended = set[str](), threading.Event()

    def write() -> None:
        for number in itertools.takewhile(lambda _: not ended.is_set(), itertools.count()):
            with suppress(RedisError), redis.pipeline(transaction=True) as pipe:
                pipe.sadd(key, number)
                execute_replicated(redis, pipe)
                confirmed.add(str(number))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write)
        try:
            wait_until(lambda: confirmed, what="a write")
            yield confirmed
        finally:
            ended.set()


def more_than(confirmed: set[str]) -> None:
    before = len(confirmed)
    wait_until(lambda: len(confirmed) > before, what="a further write")


def replicas_of(port: int) -> int:
    """How many replicas a primary has."""
    with Redis(port=port, password=PASSWORD, decode_responses=True) as primary:
        return _replicas_in_sync(primary)


def all_together(servers: Servers) -> None:
    """Have all servers run as one primary and two replicas."""
    for server in servers.servers.values():
        if not server.running:
            server.start()
    wait_until(lambda: replicas_of(servers.primary()) == 2, seconds=60, what="two replicas")


@contextmanager
def stopped(servers: Servers, *ports: int) -> Iterator[None]:
    """Servers that hang: their connections stay open."""
    pids = [servers.servers[port].pid for port in ports]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_planned_switch_loses_nothing(servers: Servers) -> None:
    all_together(servers)
    redis, old = connect(servers.url), servers.primary()
    with writing(redis, "switched") as confirmed:
        with Redis(port=old, password=PASSWORD) as primary:
            primary.execute_command("CLIENT", "PAUSE", "30000", "WRITE")
        wait_until(partial(_switch, servers.sentinel_ports[1]), what="the sentinel agrees")
        wait_until(lambda: servers.primary() != old, what="another primary")
        more_than(confirmed)
    assert confirmed <= redis.smembers("switched")


def test_what_was_confirmed_is_kept_when_a_primary_that_hung_has_come_back(servers: Servers) -> None:
    """It still believes that it is the primary, and clients are still connected to it; but no replica is."""
    all_together(servers)
    redis, old = connect(servers.url), servers.primary()
    with writing(redis, "came-back") as confirmed:
        with stopped(servers, old):
            wait_until(lambda: servers.primary() != old, what="another primary")
            wait_until(lambda: replicas_of(servers.primary()) == 1, what="the other replica follows it")
        more_than(confirmed)
        all_together(servers)
        more_than(confirmed)
    assert servers.primary() != old
    assert confirmed <= redis.smembers("came-back")


def test_a_replica_that_hangs_delays_nothing_and_two_confirm_nothing(servers: Servers) -> None:
    all_together(servers)
    redis, primary = connect(servers.url), servers.primary()
    one, other = (port for port in servers.ports if port != primary)
    with writing(redis, "slow") as confirmed:
        with stopped(servers, one):
            more_than(confirmed)
            with stopped(servers, other), redis.pipeline(transaction=True) as pipe:
                pipe.incr("unconfirmed")
                with pytest.raises(NotReplicated):
                    execute_replicated(redis, pipe)
        more_than(confirmed)
    assert confirmed <= redis.smembers("slow")


def _switch(port: int) -> bool:
    with Redis(port=port, password=SENTINEL_PASSWORD) as sentinel:
        return bool(sentinel.execute_command("SENTINEL", "FAILOVER", NAME))


def test_without_a_replica_nothing_is_confirmed(servers: Servers) -> None:
    all_together(servers)
    redis, primary = connect(servers.url), servers.primary()
    with redis.pipeline(transaction=True) as pipe:
        pipe.incr("written")
        assert execute_replicated(redis, pipe) == [1]
    for port, server in servers.servers.items():
        if port != primary:
            server.kill()
    with redis.pipeline(transaction=True) as pipe:
        pipe.incr("written")
        with pytest.raises(NotReplicated):
            execute_replicated(redis, pipe)
    ledger, event = Ledger(redis), replace(opt_out_event(), source=Source.STAFF)
    decision = StaffDecision(by="kim", reason="phoned")
    with pytest.raises(NotReplicated):
        ledger.accept_decision(event, decision, now=event.occurred_at)
    with pytest.raises(NotReplicated):
        ledger.record_decision(event.project, event.event_id, decision)
