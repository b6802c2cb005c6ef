"""Why a connection failed, in words. The text of exceptions is not used: it may repeat addresses with logins."""

import errno
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from shared.config.sentinel import is_sentinel_url
from shared.config.urls import SEPARATOR

CUT = "connection cut"
_MOST_DEEP = 12
_NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL}
_TIMEOUTS = {
    "TimeoutError",
    "ReadTimeout",
    "ConnectTimeout",
    "ReadTimeoutError",
    "ConnectTimeoutError",
    "Timeout",
}
# Errors of the operating system and of TLS, which others only wrap. The first that fits counts.
_BY_TYPE: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (socket.gaierror, "name not found"),
    (ConnectionRefusedError, "refused: nothing listens there"),
    (ssl.SSLCertVerificationError, "certificate not trusted: {0.verify_message}"),
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), "TLS connection cut"),
    (ssl.SSLError, "no TLS, or another version of it"),
    ((ConnectionResetError, BrokenPipeError, ConnectionAbortedError, EOFError), CUT),
)
# Exceptions of requests, urllib3, http.client, smtplib, redis-py, kombu and py-amqp, by name: most processes need
# few of these libraries.
_BY_NAME = {
    "MasterNotFoundError": "no sentinel names the primary",
    "NotReplicated": "no replica confirmed the change in time",
    "AuthenticationError": "login rejected",
    "AccessRefused": "login rejected",
    "BusyLoadingError": "Redis is loading its data",
    "ReadOnlyError": "this Redis is a replica",
    "InvalidResponse": "the server does not speak this protocol",
    "LocationParseError": "invalid address",
    "InvalidURL": "invalid address",
    "InvalidProxyURL": "invalid address of a proxy",
    "SoftTimeLimitExceeded": "it took longer than its time limit",
    "TooManyRedirects": "too many redirects",
}
# These often wrap what led to them, such as a timeout; by themselves, the other side has closed the connection.
_DISCONNECTED = {
    "SMTPServerDisconnected",
    "RemoteDisconnected",
    "IncompleteRead",
    "ProtocolError",
    "UnexpectedFrame",
}
# redis-py's parsers raise a plain ConnectionError with this text where the server has closed the connection.
_CLOSED = ("Connection closed by server.",)


def cause_in_words(error: BaseException, *, timeout_seconds: float | None = None) -> str:
    """The cause of a failed connection: the most specific one behind an exception, or the exception's type."""
    found = list(_behind(error))
    names = {_name(each) for each in found}
    words = next(filter(None, (_words(each, timeout_seconds) for each in found)), "")
    words = words or (CUT if names & _DISCONNECTED else "")
    if "ProxyError" in names:
        return f"proxy: {words or 'it refuses the connection'}"
    return words or _name(error)


def _name(error: BaseException) -> str:
    return type(error).__name__


def _words(error: BaseException, timeout_seconds: float | None) -> str:
    for kinds, words in _BY_TYPE:
        if isinstance(error, kinds):
            return words.format(error)
    if getattr(error, "errno", None) in _NO_ROUTE:
        return "no route to this address"
    if _name(error) in _TIMEOUTS or isinstance(error, TimeoutError):
        return f"timed out after {timeout_seconds:g} s" if timeout_seconds else "timed out"
    return CUT if error.args == _CLOSED else _BY_NAME.get(_name(error), "")


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
    """An address without its login, for people; of several, all."""
    return ", ".join(map(_host_and_port, SEPARATOR.split(url)))


def _host_and_port(url: str) -> str:
    parts = urlsplit(url)
    if is_sentinel_url(url):  # a list, for which `port` raises ValueError
        return parts.netloc.rpartition("@")[2]
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else str(parts.hostname)
    return f"{host}:{parts.port}" if parts.port else host
