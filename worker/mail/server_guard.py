"""Keeps a mail server that does not answer from occupying all worker processes.

At most half of a worker's processes talk to one mail server at a time. If the server has not answered for too long,
all workers pause; then one process at a time tries again.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
from redis.exceptions import RedisError

from shared.errors import MailDeferred, MailRejected
from shared.ledger import keys
from shared.redis_client import RedisClient
from shared.retry_policy import (
    MAIL_SERVER_FORGET_HANGS_SECONDS,
    MAIL_SERVER_PAUSES_SECONDS,
    MAIL_SERVER_PROBE_SECONDS,
    MAIL_SERVER_SLOW_SECONDS,
    MAIL_SERVER_WAIT_SECONDS,
)

# A process waits for another one's mail, but not if all take longer than usual.
POLL_SECONDS, USUAL_SECONDS = 0.05, 2.0

_UNANSWERED = {"smtp_unreachable", "oauth2_unreachable"}

log = structlog.get_logger(__name__)


class ServerGuard:
    """Permission to talk to one mail server."""

    limit = 2  # processes of this worker at a time; set when the worker starts

    def __init__(self, redis: RedisClient, server: str) -> None:
        self._redis, self._server = redis, server
        self._pause, self._probe = keys.mail_pause(server), keys.mail_probe(server)

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Connect inside this block. Raises MailDeferred if the server is paused or enough processes talk to it."""
        with process_slot(self._server, self.limit), self._probing():
            began = time.monotonic()
            try:
                yield
            except MailDeferred as error:
                if error.code in _UNANSWERED and time.monotonic() - began >= MAIL_SERVER_SLOW_SECONDS:
                    self._begin_pause()
                raise

    @contextmanager
    def _probing(self) -> Iterator[None]:
        """Let one process alone try whether the server answers again."""
        if not self._has_hung():
            yield
            return
        if not self._redis.set(self._probe, "1", nx=True, ex=MAIL_SERVER_PROBE_SECONDS):
            raise MailDeferred("smtp_paused", "another process tries whether the server answers")
        try:
            yield
        except (MailDeferred, MailRejected) as error:
            self._end_probe(answered=error.code not in _UNANSWERED)
            raise
        self._end_probe(answered=True)

    def _has_hung(self) -> bool:
        """Whether the server hung lately. Raises MailDeferred during a pause."""
        until = self._redis.hget(self._pause, "until")
        if (pause := _remaining(until)) > 0:
            raise MailDeferred("smtp_paused", f"no mail for {pause:.0f} s, as the server did not answer")
        return until is not None

    def _begin_pause(self) -> None:
        with suppress(RedisError):
            if _remaining(self._redis.hget(self._pause, "until")) > 0:
                return  # another process that waited at the same time
            with self._redis.pipeline(transaction=True) as pipe:
                pipe.hincrby(self._pause, "hangs", 1)
                pipe.expire(self._pause, MAIL_SERVER_FORGET_HANGS_SECONDS)
                hangs = int(pipe.execute()[0])
            seconds = MAIL_SERVER_PAUSES_SECONDS[min(hangs, len(MAIL_SERVER_PAUSES_SECONDS)) - 1]
            self._redis.hset(self._pause, "until", time.time() + seconds)
            log.warning("mail_server_hangs", server=self._server, pause_seconds=seconds)

    def _end_probe(self, *, answered: bool) -> None:
        """An error here must not send an accepted mail again."""
        with suppress(RedisError):
            self._redis.delete(self._probe, *([self._pause] if answered else []))


def _remaining(until: str | None) -> float:
    """Seconds of a pause. One longer than the longest means that the clock was set back, and does not count."""
    pause = float(until or 0) - time.time()
    return pause if pause <= MAIL_SERVER_PAUSES_SECONDS[-1] else 0.0


@contextmanager
def process_slot(server: str, limit: int) -> Iterator[None]:
    """Hold one of the places of this machine's or container's processes. Raises MailDeferred if all are taken.

    A file lock ends with its process, however that ends.
    """
    name = "".join(letter if letter.isalnum() else "-" for letter in server)
    paths = [
        Path(tempfile.gettempdir()) / f"optout-mail-{os.getuid()}-{name}-{number}" for number in range(limit)
    ]
    deadline = time.monotonic() + MAIL_SERVER_WAIT_SECONDS
    while (taken := _lock_first(paths)) is None:
        if time.monotonic() > deadline or all(map(_takes_long, paths)):
            raise MailDeferred("smtp_busy", f"{limit} processes talk to the mail server already")
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        os.close(taken)


def _lock_first(paths: list[Path]) -> int | None:
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:  # no place for temporary files: mails are more important than the limit
            return os.open(os.devnull, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            os.utime(descriptor)  # since when it is held
            return descriptor
    return None


def _takes_long(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > USUAL_SECONDS
