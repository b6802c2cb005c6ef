"""A TCP proxy that can make connections half-open: they stay up, and nothing comes through any more.

So it is after a failover, or where a firewall has forgotten a connection: no end is told.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self


class Blackhole:
    """Forwards `port` to a loopback port, as long as it is let."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._swallowed: list[socket.socket] = []  # kept open, and ignored
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.swallow_new = False
        self.accepted = 0  # connections so far
        self.port = 0

    def forward_to(self, target_port: int) -> None:
        """Where new connections lead from now on."""
        self._target = target_port

    @contextmanager
    def serve(self) -> Iterator[Self]:
        """Forward until the block ends."""
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            self.port = listener.getsockname()[1]
            self._selector.register(listener, selectors.EVENT_READ)
            thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self._stopping.set()
                thread.join()
                for one in [*self._peers, *self._swallowed]:
                    one.close()
                self._selector.close()

    def swallow_connections(self) -> int:
        """Make all present connections half-open. Answers how many."""
        with self._lock:
            swallowed = list(self._peers)
            for one in swallowed:
                self._selector.unregister(one)
            self._swallowed += swallowed
            self._peers.clear()
        return len(swallowed) // 2

    def _run(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(0.05):
                with self._lock:
                    if key.fileobj is listener:
                        self._accept(listener)
                    elif key.fileobj in self._peers:
                        self._forward(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        near, _ = listener.accept()
        self.accepted += 1
        if self.swallow_new:
            self._swallowed.append(near)
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._target), 1)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(65_536)
            if data:
                self._peers[source].sendall(data)
                return
        except OSError:
            pass
        for one in (self._peers.pop(source), source):
            self._peers.pop(one, None)
            with suppress(KeyError, ValueError):
                self._selector.unregister(one)
            one.close()
