"""Processes die by SIGKILL in the midst of bursts: what was accepted arrives, and is told once."""

from __future__ import annotations

import time

import pytest

from shared.ledger import keys
from shared.messaging.tasks import QUEUES
from tests.faults.scene import Scene, is_alive, kill
from tests.processes import BIN, Process, wait_until

pytestmark = pytest.mark.timeout(600)  # one fault may be waited for longer than the usual three minutes


def test_killed_worker_children_lose_nothing(scene: Scene) -> None:
    killed: list[int] = []

    def kill_children() -> None:
        for _ in range(4):
            for pid in scene.platform["worker"].children():
                kill(pid)
                killed.append(pid)
            time.sleep(1.0)

    scene.redcap.latency_seconds = 0.1  # so that there is work to be killed in
    try:
        told = scene.while_texting(60, kill_children)
    finally:
        scene.redcap.latency_seconds = 0.0
    assert all(each.accepted for each in told)
    assert len(set(killed)) > 4, "no new children came in the place of those killed"
    # A child may die between the mail server's yes and its note: each death allows one repeat.
    scene.expect_all_saved(told, repeats=len(set(killed)))


def test_a_killed_worker_loses_nothing(scene: Scene) -> None:
    def kill_and_restart() -> None:
        scene.platform["worker"].kill()
        time.sleep(0.5)
        scene.restart("worker")

    told = scene.while_texting(60, kill_and_restart)
    assert all(each.accepted for each in told)
    scene.expect_all_saved(told, repeats=4)


def test_a_killed_main_process_leaves_no_children_that_work_on_unseen(scene: Scene) -> None:
    worker = scene.platform["worker"]
    children = worker.children()
    kill(worker.pid)
    wait_until(lambda: not any(map(is_alive, children)), seconds=20, what="the children end")
    worker.kill()  # only takes note of its end
    scene.restart("worker")
    scene.expect_all_saved(scene.while_texting(5, lambda: None))


def test_a_killed_web_process_loses_nothing_that_it_answered(scene: Scene) -> None:
    def kill_and_restart() -> None:
        scene.platform["web"].kill()
        time.sleep(0.3)
        scene.restart("web")

    told = scene.while_texting(60, kill_and_restart)
    refused = [each for each in told if not each.accepted]
    assert refused, "the burst was over before the kill"
    scene.expect_all_saved(told)
    again = scene.resend(refused)
    assert all(each.accepted for each in again)
    scene.expect_all_saved(again)


def test_without_worker_changes_are_kept_and_done_later(scene: Scene) -> None:
    scene.platform["worker"].kill()
    told = scene.while_texting(10, lambda: None)
    assert all(each.accepted for each in told)
    assert not any(scene.value(each.who) for each in told)
    scene.restart("worker")
    scene.expect_all_saved(told)


def test_a_killed_beat_and_then_two_beats_find_a_lost_message_within_minutes(scene: Scene) -> None:
    """The real pauses: nothing is hurried here, so that the sweep itself is seen to work."""
    platform = scene.platform
    platform["worker"].stop()
    platform["beat"].kill()
    [told] = scene.while_texting(1, lambda: None)
    platform.redis.delete(*QUEUES.values())
    platform.redis.delete(keys.queued("lookup:asthma"), keys.arrived("asthma"))
    second = Process(
        "second-beat", [str(BIN / "python"), "-m", "worker", "beat"],
        env=platform.env, folder=platform.folder,
    )  # fmt: skip
    second.start()
    try:
        scene.restart("beat")
        scene.restart("worker")
        wait_until(lambda: scene.value(told.who), seconds=150, what="the sweep finds it")
        scene.expect_all_saved([told])
    finally:
        second.stop()
