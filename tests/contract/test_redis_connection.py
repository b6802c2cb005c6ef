"""Connections that go dead, and a server that goes silent: commands get through, or fail in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeout

from shared.redis_client import connect
from shared.retry_policy import SOCKET_TIMEOUT_SECONDS
from tests.blackhole import Blackhole


@pytest.fixture
def proxy(valkey_port: int) -> Iterator[Blackhole]:
    proxy = Blackhole(valkey_port)
    with proxy.serve():
        yield proxy


@pytest.fixture
def client(proxy: Blackhole) -> Iterator[Any]:
    client: Any = connect(f"redis://127.0.0.1:{proxy.port}/0")
    client.flushall()
    yield client
    client.close()


def test_a_command_over_a_half_open_connection_gets_through_on_a_new_one(
    proxy: Blackhole, client: Any
) -> None:
    assert proxy.swallow_connections() == 1
    assert client.incr("counter") == 1


def test_a_transaction_over_a_half_open_connection_gets_through_on_a_new_one(
    proxy: Blackhole, client: Any
) -> None:
    proxy.swallow_connections()
    with client.pipeline(transaction=True) as pipe:
        pipe.incr("counter")
        pipe.incr("counter")
        assert pipe.execute() == [1, 2]


def test_a_connection_that_went_half_open_in_a_pause_is_found_by_the_health_check(
    proxy: Blackhole, client: Any
) -> None:
    [connection] = client.connection_pool._available_connections
    connection.next_health_check = 0.0
    proxy.swallow_connections()
    assert client.incr("counter") == 1


@pytest.mark.parametrize("idle", [False, True])
def test_a_silent_server_is_tried_once_more_and_no_oftener(proxy: Blackhole, client: Any, idle: bool) -> None:
    """Event Streams wait five seconds for their answer; redis-py's tries within tries take more than eight."""
    [connection] = client.connection_pool._available_connections
    connection.next_health_check = 0.0 if idle else time.monotonic() + 60
    proxy.swallow_new = True
    proxy.swallow_connections()
    with pytest.raises(RedisTimeout):
        client.incr("counter")
    assert proxy.accepted == 1 + 1, "each further connection costs a timeout"


def test_a_new_connection_to_a_silent_server_is_tried_twice(proxy: Blackhole) -> None:
    proxy.swallow_new = True
    with connect(f"redis://127.0.0.1:{proxy.port}/0") as fresh, pytest.raises(RedisTimeout):
        fresh.ping()
    assert proxy.accepted == 1 + 1


def test_the_timeouts_of_two_tries_leave_time_for_an_answer() -> None:
    """Event Streams give up after 5 s. Source: Twilio docs, "Event Streams webhook quickstart"."""
    assert 2 * SOCKET_TIMEOUT_SECONDS < 5.0
