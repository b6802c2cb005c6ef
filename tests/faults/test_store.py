"""Valkey dies, hangs, runs full or refuses: no 2xx for what is not kept, and everything goes on afterwards."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import pytest
import requests

from tests.faults.scene import Scene, Told
from tests.processes import wait_until

pytestmark = pytest.mark.timeout(600)  # one fault may be waited for longer than the usual three minutes


def text(scene: Scene) -> Told:
    """One participant texts STOP."""
    who = scene.enrol()
    return Told(who, scene.text(who.phone))


def accepted_again(scene: Scene, told: Told, *, seconds: float = 30) -> Told:
    """Twilio comes again until it gets a 2xx."""
    accepted: Told = wait_until(
        lambda: next((each for each in scene.resend([told]) if each.accepted), None),
        seconds=seconds,
        what="the text is accepted",
    )
    return accepted


def test_valkey_killed_three_times_while_workers_run_and_they_still_consume(scene: Scene) -> None:
    """Celery on Redis is known for workers that reconnect and never consume again (celery #8030)."""
    everything: list[Told] = []
    refused: list[Told] = []
    for _ in range(3):

        def kill_and_restart() -> None:
            scene.platform["redis"].kill()
            time.sleep(1.0)
            scene.restart("redis")

        burst = scene.while_texting(30, kill_and_restart)
        everything += burst
        refused += [each for each in burst if not each.accepted]
    # With appendfsync always, what was answered with 2xx survives the kill.
    scene.expect_all_saved(everything, repeats=12)
    again = [accepted_again(scene, each) for each in refused]
    if again:
        scene.expect_all_saved(again, repeats=len(again))
    # And the same worker process consumes, without any sweep's help.
    late = text(scene)
    wait_until(lambda: scene.value(late.who), seconds=20, what="the worker consumes")


@pytest.mark.timeout(400)
def test_half_open_connections_are_noticed(scene: Scene) -> None:
    before = text(scene)
    scene.expect_all_saved([before])
    assert scene.proxy.swallow_connections() > 0
    told = text(scene)
    assert told.texted.attempts[0].status in {200, 503}, "0: no answer within Twilio's 15 s"
    if not told.accepted:
        told = accepted_again(scene, told)
    # The worker's blocking connection is dropped after brpop_timeout + 2 * health_check_interval (kombu 5.7).
    wait_until(lambda: scene.value(told.who), seconds=240, what="the worker consumes again")
    scene.expect_all_saved([told], repeats=1)


def test_a_hanging_store_is_answered_with_503_in_time(scene: Scene) -> None:
    scene.proxy.swallow_new = True
    scene.proxy.swallow_connections()
    told = text(scene)
    # Twilio's 15 s are for all its tries together; the last one may be cut short.
    assert (told.texted.attempts[0].status, told.accepted) == (503, False)
    assert requests.get(f"{scene.platform.web_url}/healthz", timeout=5).status_code == 200
    scene.proxy.swallow_new = False
    scene.proxy.swallow_connections()
    scene.expect_all_saved([accepted_again(scene, told)], repeats=1)


class TestFull:
    """`noeviction`: Redis says no instead of throwing away."""

    @pytest.fixture(autouse=True)
    def room_again(self, scene: Scene) -> Iterator[None]:
        yield
        if scene.platform["redis"].running:
            scene.platform.redis.config_set("maxmemory", "0")
            scene.platform.redis.config_set("min-replicas-to-write", "0")

    def test_out_of_memory_is_503_and_nothing_is_torn(self, scene: Scene) -> None:
        first = text(scene)
        scene.platform.redis.config_set("maxmemory", "1000000")
        refused = [text(scene) for _ in range(3)]
        assert {each.texted.status for each in refused} == {503}
        scene.platform.redis.config_set("maxmemory", "0")
        again = [accepted_again(scene, each) for each in refused]
        scene.expect_all_saved([first, *again], repeats=1)

    def test_refused_writes_are_503_and_the_same_text_is_taken_later(self, scene: Scene) -> None:
        scene.platform.redis.config_set("min-replicas-to-write", "1")
        refused = [text(scene) for _ in range(3)]
        assert {each.texted.status for each in refused} == {503}
        scene.platform.redis.config_set("min-replicas-to-write", "0")
        scene.expect_all_saved([accepted_again(scene, each) for each in refused])

    def test_a_full_disk_stops_the_store_and_loses_nothing_that_was_answered(self, scene: Scene) -> None:
        """With appendfsync always, Valkey ends rather than answer for what is not on the disk."""
        redis = scene.platform["redis"]
        kept = scene.while_texting(10, lambda: None)
        files = (scene.platform.folder / "valkey").rglob("*.aof")
        room = max(file.stat().st_size for file in files) + 6_000
        resource.prlimit(redis.pid, resource.RLIMIT_FSIZE, (room, room))
        told: list[Told] = []
        deadline = time.monotonic() + 60
        while redis.running and time.monotonic() < deadline:
            told.append(text(scene))
        assert not redis.running
        told.append(text(scene))
        assert not told[-1].accepted
        scene.restart("redis")
        scene.expect_all_saved([*kept, *told], repeats=4)
        refused = [each for each in told if not each.accepted]
        scene.expect_all_saved([accepted_again(scene, each) for each in refused], repeats=len(refused))
