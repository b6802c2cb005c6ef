"""Pauses between logins after the mail server refused one, over all workers, so that no account is locked."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shared.errors import MailDeferred
from shared.ledger import keys
from shared.redis_client import RedisClient
from shared.retry_policy import (
    MAIL_LOGIN_FORGET_REFUSALS_SECONDS,
    MAIL_LOGIN_PAUSES_SECONDS,
    MAIL_LOGIN_TRUST_SECONDS,
    MAIL_LOGIN_WAIT_SECONDS,
)

POLL_SECONDS = 0.1

# Errors before a login was sent to the server.
_NOT_TRIED = {"smtp_not_supported", "smtp_not_ascii", "oauth2_unreachable"}

_ACCEPTED, _UNDER_WAY = "accepted", "a login is under way"


class LoginPacing:
    """Permission to log in to one mail server: a string in Redis that says how the last login ended."""

    def __init__(
        self, redis: RedisClient, server: str, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._redis = redis
        self._state, self._refusals = keys.mail_login(server), keys.mail_login_refusals(server)
        self._sleep = sleep

    @contextmanager
    def login(self) -> Iterator[None]:
        """Log in inside this block. Raises MailDeferred if a login was refused recently.

        If the connection breaks, whether the server counted the login is unknown: the others wait for a minute.
        """
        self._begin()
        try:
            yield
        except MailDeferred as error:
            if error.code in _NOT_TRIED:
                self._redis.delete(self._state)
            elif error.code != "smtp_unreachable":
                self._note_refusal(str(error))
            raise
        self._note_acceptance()

    def _begin(self) -> None:
        state = self._wait()
        if state in {_ACCEPTED, None}:
            return
        seconds = max(1, int(self._redis.ttl(self._state)))
        raise MailDeferred("smtp_login_paused", f"no login for {seconds} s; last one: {state}")

    def _wait(self) -> str | None:
        """How the last login ended; None if this process may be the only one to log in now."""
        for _ in range(round(MAIL_LOGIN_WAIT_SECONDS / POLL_SECONDS)):
            if self._redis.set(self._state, _UNDER_WAY, nx=True, ex=MAIL_LOGIN_PAUSES_SECONDS[0]):
                return None
            state: str | None = self._redis.get(self._state)
            if state is not None and state != _UNDER_WAY:
                return state
            self._sleep(POLL_SECONDS)
        return _UNDER_WAY

    def _note_refusal(self, reason: str) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.incr(self._refusals)
            pipe.expire(self._refusals, MAIL_LOGIN_FORGET_REFUSALS_SECONDS)
            refusals = int(pipe.execute()[0])
        pause = MAIL_LOGIN_PAUSES_SECONDS[min(refusals, len(MAIL_LOGIN_PAUSES_SECONDS)) - 1]
        self._redis.set(self._state, reason, ex=pause)

    def _note_acceptance(self) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(self._state, _ACCEPTED, ex=MAIL_LOGIN_TRUST_SECONDS)
            pipe.delete(self._refusals)
            pipe.execute()
