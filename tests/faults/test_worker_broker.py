"""A channel that was taken apart does not end the worker; and one that is stuck all the same is ended."""

from __future__ import annotations

import os
import pickle
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery.concurrency import asynpool
from kombu.transport import redis

from worker.runtime.celery_patches import ReconnectSafeQoS, ReconnectSafeResultHandler, apply_celery_patches
from worker.runtime.watchdog import Watchdog


def qos(client: object) -> Any:
    """As kombu holds it, with one unacknowledged message."""
    made: Any = object.__new__(ReconnectSafeQoS)
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


class Pipe:
    """A child's answers, as the worker's main process reads them in its event loop."""

    def __init__(self, handler: type[asynpool.ResultHandler]) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self.answers: list[Any] = []
        self.handler = cast("Any", object.__new__(handler))
        self.handler.fileno_to_outq = {self._read: "a process"}
        self.handler.on_state_change = self.answers.append
        self.handler._started = {}
        self.new_event_loop()

    def new_event_loop(self) -> None:
        """As after a lost connection."""
        self.readers: dict[int, Any] = {}
        hub = SimpleNamespace(
            add_reader=lambda fd, callback, *args: self.readers.update({fd: (callback, args)}),
            remove_reader=lambda fd: self.readers.pop(fd, None),
        )
        self.handler.register_with_event_loop(hub)
        self.readers[self._read] = (self.handler.handle_event, (self._read,))

    def another_process(self) -> None:
        """Takes over the descriptor of one that has died."""
        self.handler.fileno_to_outq[self._read] = "another process"

    def comes(self, data: bytes) -> None:
        """Something arrives, and the loop calls who waits for it."""
        os.write(self._write, data)
        callback, args = self.readers[self._read]
        if args:
            callback(*args)
        else:
            with suppress(StopIteration):
                next(callback)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe(ReconnectSafeResultHandler)
    yield pipe
    pipe.close()


def answer(text: str) -> bytes:
    body = pickle.dumps(text)
    return struct.pack(">i", len(body)) + body


@pytest.mark.parametrize("come", [2, 4, 30])
def test_an_answer_that_came_in_part_is_read_on_after_a_lost_connection(pipe: Pipe, come: int) -> None:
    whole = answer("a long answer " * 10)
    pipe.comes(whole[:come])
    pipe.new_event_loop()
    pipe.comes(whole[come:])
    pipe.comes(answer("the next one"))
    assert pipe.answers == ["a long answer " * 10, "the next one"]


def test_an_answer_may_come_in_many_parts_without_any_loss(pipe: Pipe) -> None:
    for byte in answer("first") + answer("second"):
        pipe.comes(bytes([byte]))
    assert pipe.answers == ["first", "second"]


def test_what_came_of_a_process_that_died_is_not_taken_for_its_successor_s(pipe: Pipe) -> None:
    pipe.comes(answer("never whole")[:10])
    pipe.another_process()
    pipe.new_event_loop()
    pipe.comes(answer("another"))
    assert pipe.answers == ["another"]


def test_celery_itself_stumbles_there() -> None:
    """Once it does not any more, ours can go."""
    pipe = Pipe(asynpool.ResultHandler)
    whole = answer("a long answer " * 10)
    pipe.comes(whole[:30])
    pipe.new_event_loop()
    with suppress(Exception):
        pipe.comes(whole[30:])
    assert pipe.answers == []
    pipe.close()


def test_the_worker_uses_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis.Channel, "QoS", redis.QoS)
    monkeypatch.setattr(redis.Channel, "_get_client", None)
    monkeypatch.setattr(asynpool.AsynPool, "ResultHandler", asynpool.ResultHandler)
    apply_celery_patches()
    assert (redis.Channel.QoS, asynpool.AsynPool.ResultHandler) == (
        ReconnectSafeQoS,
        ReconnectSafeResultHandler,
    )


def test_a_worker_without_heartbeat_is_ended() -> None:
    ended = threading.Event()
    dog = Watchdog(timeout_seconds=0.05, end=ended.set)
    dog.heartbeat()
    assert ended.wait(10)


def test_a_worker_with_heartbeats_or_one_that_is_shutting_down_is_left_alone() -> None:
    ended = threading.Event()
    beating = Watchdog(timeout_seconds=5.0, end=ended.set)
    stopping = Watchdog(timeout_seconds=0.05, end=ended.set)
    stopping.stop()
    stopping.heartbeat()
    for _ in range(20):
        beating.heartbeat()
        time.sleep(0.01)
    beating.stop()
    assert not ended.is_set()
