"""RabbitMQ over TLS: its certificate and host name are verified as every other peer's.

py-amqp verifies no host name by default, trusts either the public authorities or a file, and rejects the options that
kombu reads from an address. Source: amqp 5.3, transport.py, `_wrap_socket_sni`; kombu 5.7, utils/url.py.
"""

import socket
import ssl
from typing import Any

from amqp.transport import SSLTransport as AmqpTls
from kombu.transport import pyamqp

from shared.config.certificates import client_context


class _VerifiedTls(AmqpTls):
    def _wrap_socket(self, sock: socket.socket, **_: Any) -> ssl.SSLSocket:
        return client_context().wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)


class _Connection(pyamqp.Connection):
    def Transport(self, host: str, connect_timeout: float | None, *_: Any, **options: Any) -> _VerifiedTls:  # noqa: N802
        return _VerifiedTls(host, connect_timeout=connect_timeout, **options)


class Transport(pyamqp.SSLTransport):
    """kombu's transport for addresses that begin with amqps://."""

    Connection = _Connection
