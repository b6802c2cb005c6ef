"""Closing a channel whose connection is gone does not end the worker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from kombu.transport import redis

from worker.broker import PatientQoS


def qos(client: object) -> Any:
    """As kombu holds it, with one unacknowledged message."""
    made: Any = object.__new__(PatientQoS)
    made.channel = SimpleNamespace(connection=SimpleNamespace(client=client))
    made._delivered = {"tag": "message"}
    return made


def test_nothing_is_given_back_over_a_connection_that_was_taken_apart() -> None:
    assert qos(None).restore_unacked() == []


def test_unacknowledged_messages_are_given_back_over_a_living_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(redis.QoS, "restore_unacked", lambda self, client=None: asked.append(client))
    qos("alive").restore_unacked("a client")
    assert asked == ["a client"]


def test_the_worker_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.broker import outlive_lost_connections

    monkeypatch.setattr(redis.Channel, "QoS", redis.QoS)
    outlive_lost_connections()
    assert redis.Channel.QoS is PatientQoS
