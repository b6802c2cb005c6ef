"""What is published, on a real server: by Celery, and for new events only."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from shared.ledger import Ledger, keys
from shared.messaging.celery_config import make_celery
from shared.messaging.publisher import CeleryPublisher, make_publisher
from shared.messaging.record_events import publish_many_or_leave
from shared.messaging.tasks import QUEUES, TaskName
from shared.redis_client import connect
from tests.blackhole import Blackhole
from tests.builders import opt_out_event
from tests.fakes import accept
from tests.processes import free_port


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Any]:
    client: Any = connect(valkey_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def app(valkey_url: str) -> Iterator[Celery]:
    with make_celery(valkey_url) as made:
        yield made


def taken(redis: Any, task: TaskName) -> dict[str, Any]:
    """The oldest message of a queue, with its body unpacked."""
    message: dict[str, Any] = json.loads(redis.rpop(QUEUES[task]))
    message["body"] = json.loads(base64.b64decode(message["body"]))
    return message


@pytest.mark.parametrize("task", TaskName)
def test_a_message_names_its_task_and_arguments(redis: Any, app: Celery, task: TaskName) -> None:
    args = ["asthma", "SM" + "0" * 32][: 0 if task is TaskName.SWEEP else 2]
    CeleryPublisher(app)(task, *args)
    message = taken(redis, task)
    assert (message["headers"]["task"], message["body"][0]) == (task, args)


def test_a_delay_is_an_eta(redis: Any, app: Celery) -> None:
    CeleryPublisher(app)(TaskName.SWEEP, delay_seconds=30)
    eta = datetime.fromisoformat(taken(redis, TaskName.SWEEP)["headers"]["eta"])
    assert abs(eta - datetime.now(UTC) - timedelta(seconds=30)) < timedelta(seconds=5)
    assert eta.tzinfo == UTC


def test_many_messages_keep_their_order(redis: Any, app: Celery) -> None:
    publish_many_or_leave(CeleryPublisher(app), TaskName.EMAIL, [("asthma", "SM1"), ("asthma", "SM2")])
    assert [taken(redis, TaskName.EMAIL)["body"][0] for _ in range(2)] == [
        ["asthma", "SM1"],
        ["asthma", "SM2"],
    ]


def test_no_messages_are_no_request(redis: Any, app: Celery) -> None:
    publish_many_or_leave(CeleryPublisher(app), TaskName.EMAIL, [])
    assert not redis.exists(QUEUES[TaskName.EMAIL])


def test_a_server_that_is_away_is_an_operational_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTOUT_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(OperationalError):
        make_publisher()(TaskName.SWEEP)


def test_half_open_connections_delay_a_message_by_seconds(
    redis: Any, valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Blackhole(urlsplit(valkey_url).port or 0)
    with proxy.serve():
        monkeypatch.setenv("OPTOUT_REDIS_URL", f"redis://127.0.0.1:{proxy.port}/0")
        publish = make_publisher()
        publish(TaskName.SWEEP)
        assert proxy.swallow_connections() > 0
        began = time.monotonic()
        publish(TaskName.SWEEP)
        assert time.monotonic() - began < 6
    assert redis.llen(QUEUES[TaskName.SWEEP]) == 2


def test_a_server_that_hangs_is_given_up_within_seconds(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Blackhole(urlsplit(valkey_url).port or 0)
    with proxy.serve():
        monkeypatch.setenv("OPTOUT_REDIS_URL", f"redis://127.0.0.1:{proxy.port}/0")
        publish = make_publisher()
        publish(TaskName.SWEEP)
        proxy.swallow_new = True
        proxy.swallow_connections()
        began = time.monotonic()
        with pytest.raises(OperationalError):
            publish(TaskName.SWEEP)
        assert time.monotonic() - began < 15
        proxy.swallow_new = False
        proxy.swallow_connections()
        publish(TaskName.SWEEP)


def test_a_new_event_publishes_once_and_a_repeated_and_an_overtaken_one_do_not(
    redis: Any, app: Celery
) -> None:
    event = opt_out_event()
    older = opt_out_event(when=event.occurred_at - timedelta(hours=1))
    for each in (event, event, older):
        accept([each], ledger=Ledger(redis), publish=CeleryPublisher(app))
    assert redis.llen(QUEUES[TaskName.LOOKUP]) == 1
    assert taken(redis, TaskName.LOOKUP)["body"][0] == ["asthma", event.event_id]


def test_a_lookup_that_could_not_be_published_is_due_within_seconds(redis: Any) -> None:
    """Sweep finds it then; all others that have arrived are looked up with it."""
    with make_celery(f"redis://127.0.0.1:{free_port()}/0") as away:
        event, another = opt_out_event(), opt_out_event("+16505550177")
        accept([event, another], ledger=Ledger(redis), publish=CeleryPublisher(away))
    due = dict(redis.zrange(keys.DUE, 0, -1, withscores=True))
    now = datetime.now(UTC).timestamp() * 1000
    assert due[f"lookup|asthma|{event.event_id}"] <= now + 5_000 < due[f"lookup|asthma|{another.event_id}"]
    assert redis.lrange(keys.arrived("asthma"), 0, -1) == [event.event_id, another.event_id]


def test_an_answer_that_was_lost_with_its_connection_asks_for_the_lookup_again(redis: Any) -> None:
    """The same call comes twice, as after a lost connection; a message that Twilio repeats is another call."""
    calls: list[Any] = []

    class Twice(Ledger):
        def _accept_one(self, *args: Any, **more: Any) -> None:
            super()._accept_one(*args, **more)
            calls[:] = args[2].command_stack

    event, published = opt_out_event(), []
    ledger = Twice(redis)
    assert [str(each) for each in ledger.accept([event], now=datetime.now(UTC), lookups=True)] == ["ask"]
    assert redis.execute_command(*calls[0][0]) == "ask"
    accept([event], ledger=ledger, publish=lambda task, *_, **__: published.append(task))
    assert published == []
    assert redis.llen(keys.arrived("asthma")) == 1
