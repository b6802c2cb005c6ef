"""Why a connection failed, in words. The text of exceptions is not used: it may repeat addresses with logins."""

import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from shared.config.sentinel import is_sentinel_url

_MOST_DEEP = 12


def cause_in_words(error: BaseException, *, timeout_seconds: float | None = None) -> str:
    """The cause of a failed connection: the first known one behind an exception, or the exception's type."""
    for each in _behind(error):
        if words := _words(each, timeout_seconds):
            return words
    return type(error).__name__


def _words(error: BaseException, timeout_seconds: float | None) -> str:
    match error:
        case socket.gaierror():
            return "name not found"
        case ConnectionRefusedError():
            return "refused: nothing listens there"
        case ssl.SSLCertVerificationError():
            return f"certificate not trusted: {error.verify_message}"
        case ssl.SSLError():
            return "no TLS, or another version of it"
        case ConnectionResetError() | BrokenPipeError():
            return "connection cut"
        case TimeoutError():
            return f"timed out after {timeout_seconds:g} s" if timeout_seconds else "timed out"
    if type(error).__name__ == "MasterNotFoundError":
        return "no sentinel names the primary"
    if type(error).__name__ in {
        "ReadTimeout",
        "ConnectTimeout",
        "ReadTimeoutError",
        "ConnectTimeoutError",
        "Timeout",
    }:
        return f"timed out after {timeout_seconds:g} s" if timeout_seconds else "timed out"
    return ""


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that led to it, as requests, urllib3, redis-py and kombu keep them."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < _MOST_DEEP:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = [*current.args, getattr(current, "reason", None), current.__cause__, current.__context__]
        waiting += [each for each in inner if isinstance(each, BaseException)]


def host_and_port(url: str) -> str:
    """An address without its login, for people."""
    parts = urlsplit(url)
    if is_sentinel_url(url):  # a list, for which `port` raises ValueError
        return parts.netloc.rpartition("@")[2]
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
