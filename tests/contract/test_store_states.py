"""States of a store that comes back: web answers 503 while they last, and 200 afterwards, without a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError
from redis.retry import Retry

from shared.ledger import keys
from tests.blackhole import Blackhole
from tests.builders import inbound_form
from tests.faults.scene import ProxiedPlatform
from tests.hostile.test_floods import CONFIG
from tests.processes import REDIS_CONF, Platform, Process, free_port, valkey_binary, wait_until
from tests.simulators.twilio import AUTH_TOKEN, PUBLIC_URL, sign_form

TWILIO_WAITS_SECONDS = 15.0
# Web notices a dead connection within its timeout of 2 s, and answers within 4 s.
SOON_SECONDS = 10.0


@dataclass
class Stage:
    """Web, and a store that it reaches through a proxy."""

    platform: Platform
    proxy: Blackhole

    @property
    def redis(self) -> Any:
        return self.platform.redis

    def text(self, form: dict[str, str] | None = None) -> int:
        """A STOP as Twilio delivers it. Returns the status."""
        form = form or inbound_form()
        response = requests.post(
            f"{self.platform.web_url}/twilio/inbound", data=form, timeout=TWILIO_WAITS_SECONDS,
            headers={"X-Twilio-Signature": sign_form(f"{PUBLIC_URL}/twilio/inbound", form, AUTH_TOKEN)},
        )  # fmt: skip
        return response.status_code

    def expect_recovery(self, form: dict[str, str]) -> None:
        """Twilio comes again until the text is taken, by the same process; then every text is."""
        wait_until(lambda: self.text(form) == 200, seconds=SOON_SECONDS, what="web takes the text")
        assert [self.text() for _ in range(5)] == [200] * 5
        assert form["MessageSid"] in self.stored()

    def stored(self) -> set[str]:
        return set(self.redis.zrange(keys.events("asthma"), 0, -1))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    secrets = {"TWILIO_AUTH_TOKEN": AUTH_TOKEN, "OPTOUT_HASH_KEY": "a-key-for-tests-only"}
    proxy = Blackhole(0)
    with proxy.serve():
        folder = tmp_path_factory.mktemp("states")
        with ProxiedPlatform(folder, CONFIG, secrets, proxy=proxy) as platform:
            proxy.forward_to(platform.redis_port)
            platform.start("redis", "web")
            yield Stage(platform, proxy)


@pytest.fixture
def stage(running: Stage) -> Iterator[Stage]:
    pid = running.platform["web"].pid
    assert running.text() == 200
    yield running
    running.proxy.swallow_new = False
    running.proxy.forward_to(running.platform.redis_port)
    wait_until(lambda: running.text() == 200, what="web takes texts again")
    assert running.platform["web"].running
    assert running.platform["web"].pid == pid


def test_scripts_that_the_server_has_forgotten(stage: Stage) -> None:
    stage.redis.script_flush()
    assert [stage.text() for _ in range(3)] == [200] * 3


def test_a_server_that_is_killed_and_started_again(stage: Stage) -> None:
    form = inbound_form()
    stage.platform["redis"].kill()
    assert stage.text(form) == 503
    stage.platform.start("redis")
    stage.expect_recovery(form)


def test_a_server_that_loads_its_data(stage: Stage) -> None:
    """It takes connections, and answers all that is asked with LOADING."""
    for number in range(400):
        stage.redis.set(f"optout:ballast:{number}", "x" * 5_000)
    stage.redis.bgrewriteaof()  # as a snapshot, which is loaded key by key
    wait_until(lambda: not rewriting(stage), what="the file is rewritten")
    stage.platform["redis"].stop()
    # Each key takes 10 ms to load.
    slow = ["--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024"]
    folder = stage.platform.folder
    loading = Process(
        "redis-loading", [*stage.platform["redis"].command, *slow], env=stage.platform.env, folder=folder
    )
    loading.start()
    try:
        form = inbound_form()
        wait_until(lambda: is_loading(stage.platform.redis_port), what="the server is loading")
        began = time.monotonic()
        assert stage.text(form) == 503
        assert time.monotonic() - began < 5
        assert requests.get(f"{stage.platform.web_url}/healthz", timeout=5).ok
        wait_until(lambda: not is_loading(stage.platform.redis_port), seconds=60, what="it has loaded")
        stage.expect_recovery(form)
    finally:
        loading.stop()
        stage.platform.start("redis")
        for key in stage.redis.scan_iter(match="optout:ballast:*"):
            stage.redis.delete(key)


def rewriting(stage: Stage) -> bool:
    """Whether the append-only file is being rewritten."""
    info = stage.redis.info("persistence")
    return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])


def is_loading(port: int) -> bool:
    """Whether a server answers with LOADING; raises what else is wrong."""
    with Redis(port=port, retry=Retry(NoBackoff(), 0)) as client:
        try:
            client.ping()
        except BusyLoadingError:
            return True
        return False


def test_a_server_that_is_read_only_for_a_while(stage: Stage) -> None:
    form = inbound_form()
    stage.redis.replicaof("127.0.0.1", free_port())
    assert [stage.text(form) for _ in range(3)] == [503] * 3
    stage.redis.replicaof("NO", "ONE")
    stage.expect_recovery(form)


def test_a_primary_that_is_demoted_while_its_connections_stay_open(stage: Stage, tmp_path: Path) -> None:
    """New connections lead to the new primary, as behind a load balancer; open ones to what is now a replica."""
    port = free_port()
    command = [
        valkey_binary(), str(REDIS_CONF), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path),
    ]  # fmt: skip
    promoted = Process("redis-promoted", command, env=stage.platform.env, folder=tmp_path)
    promoted.start()
    try:
        with Redis(port=port, decode_responses=True) as new:
            wait_until(new.ping, what="the new primary answers")
            stage.proxy.forward_to(port)
            stage.redis.replicaof("127.0.0.1", port)
            form = inbound_form()
            wait_until(lambda: stage.text(form) == 200, seconds=SOON_SECONDS, what="web finds it")
            assert form["MessageSid"] in new.zrange(keys.events("asthma"), 0, -1)
    finally:
        stage.redis.replicaof("NO", "ONE")
        stage.proxy.forward_to(stage.platform.redis_port)
        promoted.stop()


@pytest.mark.parametrize("new_ones_too", [False, True])
def test_connections_that_are_half_open(stage: Stage, new_ones_too: bool) -> None:
    form = inbound_form()
    stage.proxy.swallow_new = new_ones_too
    assert stage.proxy.swallow_connections() > 0
    began = time.monotonic()
    status = stage.text(form)
    assert time.monotonic() - began < 5.5
    assert status == 503 if new_ones_too else status in {200, 503}
    assert requests.get(f"{stage.platform.web_url}/healthz", timeout=5).ok
    stage.proxy.swallow_new = False
    stage.proxy.swallow_connections()
    stage.expect_recovery(form)


def test_a_full_store(stage: Stage) -> None:
    form = inbound_form()
    stage.redis.config_set("maxmemory", "1000000")
    try:
        assert stage.text(form) == 503
    finally:
        stage.redis.config_set("maxmemory", "0")
    stage.expect_recovery(form)
