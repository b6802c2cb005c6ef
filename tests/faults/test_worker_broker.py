"""A channel that was taken apart does not end the worker; and one that is stuck all the same is ended."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.transport import redis

from worker.broker import PatientQoS
from worker.watchdog import Watchdog


def qos(client: object) -> Any:
    """As kombu holds it, with one unacknowledged message."""
    made: Any = object.__new__(PatientQoS)
    made.channel = SimpleNamespace(connection=SimpleNamespace(client=client))
    made._delivered = {"tag": "message"}
    return made


@pytest.mark.parametrize("connection", [None, SimpleNamespace(client=None)])
def test_nothing_is_done_over_a_connection_that_was_taken_apart(connection: object) -> None:
    made = qos("gone")
    made.channel.connection = connection
    assert made.restore_unacked() == []
    made.ack("tag")
    made.reject("tag", requeue=True)
    assert made._delivered == {"tag": "message"}


def test_over_a_living_one_messages_are_given_back_and_acknowledged(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    for name in ("restore_unacked", "ack", "reject"):
        monkeypatch.setattr(
            redis.QoS, name, lambda self, *args, _name=name, **more: asked.append((_name, *args))
        )
    made = qos("alive")
    made.restore_unacked("a client")
    made.ack("tag")
    made.reject("tag")
    assert asked == [("restore_unacked", "a client"), ("ack", "tag"), ("reject", "tag")]


def test_the_worker_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.broker import outlive_lost_connections

    monkeypatch.setattr(redis.Channel, "QoS", redis.QoS)
    outlive_lost_connections()
    assert redis.Channel.QoS is PatientQoS


def test_a_worker_without_heartbeat_is_ended() -> None:
    ended = threading.Event()
    dog = Watchdog(patience_seconds=0.05, end=ended.set)
    dog.heartbeat()
    assert ended.wait(10)


def test_a_worker_with_heartbeats_or_one_that_is_shutting_down_is_left_alone() -> None:
    ended = threading.Event()
    beating = Watchdog(patience_seconds=5.0, end=ended.set)
    stopping = Watchdog(patience_seconds=0.05, end=ended.set)
    stopping.stop()
    stopping.heartbeat()
    for _ in range(20):
        beating.heartbeat()
        time.sleep(0.01)
    beating.stop()
    assert not ended.is_set()
