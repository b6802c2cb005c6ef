"""Causes in words, without what exceptions repeat of addresses."""

from __future__ import annotations

import errno
import smtplib
import ssl
from http.client import RemoteDisconnected

import pytest
import requests
from amqp.exceptions import AccessRefused
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeout
from redis.retry import Retry
from urllib3.exceptions import ProxyError

from shared.causes import cause_in_words, host_and_port
from shared.redis_client import NotReplicated
from tests.processes import free_port

LOGIN = "user:geheim"


def failure(url: str, timeout: float = 2) -> requests.RequestException:
    with pytest.raises(requests.RequestException) as caught:
        requests.get(url, timeout=timeout)
    return caught.value


def test_what_requests_wraps_is_said() -> None:
    refused = failure(f"http://{LOGIN}@127.0.0.1:{free_port()}/")
    assert cause_in_words(refused) == "refused: nothing listens there"
    unknown = failure(f"http://{LOGIN}@no-such-host.invalid/")
    assert cause_in_words(unknown) == "name not found"


def test_a_timeout_says_how_long() -> None:
    error = requests.ReadTimeout("geheim")
    assert cause_in_words(error, timeout_seconds=5) == "timed out after 5 s"
    assert cause_in_words(TimeoutError()) == "timed out"


def test_a_certificate_says_why() -> None:
    error = ssl.SSLCertVerificationError(1, "geheim")
    error.verify_message = "self-signed certificate"
    wrapped = requests.exceptions.SSLError(error)
    assert cause_in_words(wrapped) == "certificate not trusted: self-signed certificate"


def test_redis_too() -> None:
    with pytest.raises(RedisError) as caught:
        Redis(port=free_port(), retry=Retry(NoBackoff(), 0)).ping()
    assert cause_in_words(caught.value) == "refused: nothing listens there"


def wrapped(inner: BaseException) -> OperationalError:
    """As kombu raises what a transport raised."""
    outer = OperationalError("geheim")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (AuthenticationError("geheim"), "login rejected"),
        (wrapped(AccessRefused("geheim")), "login rejected"),
        (BusyLoadingError("geheim"), "Redis is loading its data"),
        (ReadOnlyError("geheim"), "this Redis is a replica"),
        (NotReplicated(), "no replica confirmed the change in time"),
        (RedisTimeout("geheim"), "timed out"),
        (RedisConnectionError("Connection closed by server."), "connection cut"),
        (wrapped(OSError(errno.EHOSTUNREACH, "geheim")), "no route to this address"),
        (requests.ConnectionError(RemoteDisconnected("geheim")), "connection cut"),
        (requests.exceptions.SSLError(ssl.SSLEOFError("geheim")), "TLS connection cut"),
        (requests.exceptions.SSLError(ssl.SSLError("geheim")), "no TLS, or another version of it"),
        (
            requests.exceptions.ProxyError(ProxyError("geheim", ConnectionRefusedError())),
            "proxy: refused: nothing listens there",
        ),
        (
            requests.exceptions.ProxyError(ProxyError("geheim", OSError("Tunnel connection failed: 407"))),
            "proxy: it refuses the connection",
        ),
        (SoftTimeLimitExceeded("geheim"), "it took longer than its time limit"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_cause_has_its_words(error: BaseException, words: str) -> None:
    assert cause_in_words(error) == words


def test_a_timeout_behind_a_lost_connection_is_the_timeout() -> None:
    error = smtplib.SMTPServerDisconnected("geheim")
    error.__context__ = TimeoutError("geheim")
    assert cause_in_words(error, timeout_seconds=5) == "timed out after 5 s"


def test_what_is_not_known_is_its_type() -> None:
    assert cause_in_words(ValueError("geheim")) == "ValueError"


def test_an_endless_chain_ends() -> None:
    one, other = ValueError(), ValueError()
    one.__cause__, other.__cause__ = other, one
    assert cause_in_words(one) == "ValueError"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://{LOGIN}@h:6379/0", "h:6379"),
        (f"amqp://{LOGIN}@mq.example.edu//", "mq.example.edu"),
        (f"amqp://{LOGIN}@one:5672//;amqp://{LOGIN}@two:5672//", "one:5672, two:5672"),
        ("redis://[::1]:6379/0", "[::1]:6379"),
        (f"redis+sentinel://{LOGIN}@h1:26379,h2:26379/main/0", "h1:26379,h2:26379"),
    ],
)
def test_addresses_are_shown_without_their_login(url: str, shown: str) -> None:
    assert host_and_port(url) == shown
