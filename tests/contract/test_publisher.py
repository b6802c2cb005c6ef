"""RedisPublisher against Celery's own publisher, on a real server: the same messages in the same queues."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from shared.ledger import Ledger
from shared.messaging.celery_config import QUEUES, TaskName, make_celery
from shared.messaging.publisher import CeleryPublisher, RedisPublisher, make_publisher
from shared.messaging.record_events import accept
from shared.redis_client import connect
from tests.builders import opt_out_event
from tests.processes import free_port

# What differs from message to message.
ALWAYS_NEW = {"id", "root_id", "correlation_id", "delivery_tag", "reply_to", "origin"}


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Any]:
    client = connect(valkey_url)
    client.flushall()
    yield client
    client.close()


def taken(redis: Any, task: TaskName) -> dict[str, Any]:
    """The oldest message of a queue, with its body unpacked."""
    message: dict[str, Any] = json.loads(redis.rpop(QUEUES[task]))
    message["body"] = json.loads(base64.b64decode(message["body"]))
    return message


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what is new in each."""
    for part in ("headers", "properties"):
        missing = ALWAYS_NEW - {"id", "root_id", "origin"} if part == "properties" else {"id", "root_id"}
        assert missing <= set(message[part]), part
        message[part] = {name: value for name, value in message[part].items() if name not in ALWAYS_NEW}
    return message


@pytest.mark.parametrize("task", TaskName)
def test_a_message_is_what_celery_would_have_sent(redis: Any, valkey_url: str, task: TaskName) -> None:
    args = ("asthma", "SM" + "0" * 32)[: 0 if task is TaskName.SWEEP else 2]
    with make_celery(valkey_url) as app:
        CeleryPublisher(app)(task, *args)
        RedisPublisher(redis)(task, *args)
        assert comparable(taken(redis, task)) == comparable(taken(redis, task))


def test_a_delay_is_an_eta_as_celery_writes_it(redis: Any, valkey_url: str) -> None:
    with make_celery(valkey_url) as app:
        CeleryPublisher(app)(TaskName.SWEEP, delay_seconds=30)
        RedisPublisher(redis)(TaskName.SWEEP, delay_seconds=30)
        theirs, ours = (
            datetime.fromisoformat(taken(redis, TaskName.SWEEP)["headers"]["eta"]) for _ in range(2)
        )
    assert abs(ours - theirs) < timedelta(seconds=5)
    assert ours.tzinfo == UTC


def test_many_messages_keep_their_order(redis: Any) -> None:
    RedisPublisher(redis).many(TaskName.EMAIL, [("asthma", "SM1"), ("asthma", "SM2")])
    assert [taken(redis, TaskName.EMAIL)["body"][0] for _ in range(2)] == [
        ["asthma", "SM1"],
        ["asthma", "SM2"],
    ]


def test_no_messages_are_no_request(redis: Any) -> None:
    RedisPublisher(redis).many(TaskName.EMAIL, [])
    assert not redis.exists(QUEUES[TaskName.EMAIL])


def test_a_server_that_is_away_is_an_operational_error(redis: Any) -> None:
    away = connect(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(OperationalError):
        RedisPublisher(away)(TaskName.SWEEP)


def test_an_event_and_its_message_are_stored_in_one_step(redis: Any) -> None:
    """A new event publishes once; a repeated and an overtaken one do not."""
    event = opt_out_event()
    older = opt_out_event(when=event.occurred_at - timedelta(hours=1))
    for each in (event, event, older):
        accept([each], ledger=Ledger(redis), publish=RedisPublisher(redis))
    assert redis.llen(QUEUES[TaskName.LOOKUP]) == 1
    assert taken(redis, TaskName.LOOKUP)["body"][0] == ["asthma", event.event_id]


def test_the_ledgers_own_redis_gets_the_quick_publisher(monkeypatch: pytest.MonkeyPatch, redis: Any) -> None:
    assert isinstance(make_publisher(redis), RedisPublisher)
    monkeypatch.setenv("OPTOUT_BROKER_URL", "amqp://broker.example.edu//")
    assert isinstance(make_publisher(redis), CeleryPublisher)
