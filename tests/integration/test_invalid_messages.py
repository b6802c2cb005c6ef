"""Queue entries that are not task messages are set aside, and the worker goes on consuming."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from shared.ledger import keys
from shared.messaging.celery_config import make_celery
from shared.messaging.publisher import CeleryPublisher
from shared.messaging.tasks import QUEUES, TaskName
from tests.integration.world import World
from tests.processes import wait_until

MARKER = "qzxjv"  # in every invalid entry; no log line may repeat it
QUEUE = QUEUES[TaskName.LOOKUP]


def published() -> str:
    """A valid message, as kombu stores it."""
    with make_celery("memory://") as app:
        CeleryPublisher(app)(TaskName.LOOKUP, "asthma", MARKER)
        with app.connection() as connection:
            channel: Any = connection.default_channel
            return json.dumps(channel._get(QUEUE))


def changed(**changes: Any) -> str:
    """A valid message with other properties; None removes one."""
    envelope: dict[str, Any] = json.loads(published())
    for name, value in changes.items():
        inside = envelope if name in ("body", "properties", "headers") else envelope["headers"]
        name = name.replace("_", "-") if name.startswith("content") else name
        inside = envelope if name.startswith("content") else inside
        inside[name] = value
        if value is None:
            del inside[name]
    envelope["note"] = MARKER
    return json.dumps(envelope)


def body(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ENTRIES: dict[str, bytes | str] = {
    "text": MARKER,
    "not_utf_8": MARKER.encode() + b"\xff\xfe",
    "empty": "",
    "truncated": changed()[:-20],
    "json_number": "12",
    "json_list": json.dumps([MARKER]),
    "json_object": json.dumps({"note": MARKER}),
    "deeply_nested": "[" * 100_000 + MARKER,
    "no_properties": changed(properties=None),
    "no_headers": changed(headers=None),
    "headers_null": changed().replace('"headers": {', '"headers": null, "old": {'),
    "no_delivery_tag": changed(properties={"body_encoding": "base64", "delivery_info": {}}),
    "no_task": changed(task=None),
    "unknown_task": changed(task=f"{MARKER}.task"),
    "no_id": changed(id=None),
    "task_is_a_list": changed(task=[MARKER]),
    "unreadable_eta": changed(eta=MARKER),
    "unreadable_time_limit": changed(timelimit=MARKER),
    "no_body": changed(body=None),
    "body_not_base64": changed(body=f"!{MARKER}"),
    "body_not_json": changed(body=body(MARKER)),
    "body_of_another_shape": changed(body=body(json.dumps({"args": [MARKER]}))),
    "pickle": changed(content_type="application/x-python-serialize", body=body(MARKER)),
    "unknown_encoding": changed(content_encoding=MARKER),
}


@pytest.fixture(scope="module", autouse=True)
def _leave_nothing_binary(world: World) -> Iterator[None]:
    """Other tests of this platform read all keys as text."""
    yield
    world.platform.redis.delete(keys.INVALID_MESSAGES)


def counted(world: World) -> float:
    text = requests.get(f"{world.platform.web_url}/metrics", timeout=5).text
    lines = [line for line in text.splitlines() if line.startswith("optout_invalid_messages_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize("kind", ENTRIES)
def test_an_invalid_entry_is_set_aside_and_the_next_opt_out_is_written(world: World, kind: str) -> None:
    redis, entry, before = world.platform.redis, ENTRIES[kind], counted(world)
    for queue in (QUEUE, f"{QUEUE}\x06\x163"):  # kombu's name of a queue with a priority
        redis.lpush(queue, entry)
    participant = world.enrol()
    texted = world.text(participant.phone)
    assert world.ended(texted).state == "updated"
    wait_until(lambda: counted(world) == before + 2, what="both are counted")
    with redis.from_url(world.platform.redis_url) as raw:
        kept = raw.lrange(keys.INVALID_MESSAGES, 0, 1)
        assert 0 < raw.ttl(keys.INVALID_MESSAGES) <= 30 * 86_400
        assert raw.zcard("unacked_index") == 0 or MARKER.encode() not in b"".join(raw.hvals("unacked"))
    assert kept == [entry.encode() if isinstance(entry, str) else entry] * 2
    assert world.platform["worker"].text().count('"event": "invalid_message"') >= 2
    assert MARKER not in world.platform.logs()
