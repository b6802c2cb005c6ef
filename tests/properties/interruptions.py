"""Something happens between any two effects of a step: its process is killed, or another process acts.

Every Redis command, published message, call of REDCap and mail is one effect. A killed process does nothing
more, not even what its `finally` blocks ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from email.message import EmailMessage
from typing import Any

import requests
from fakeredis import FakeRedis, FakeServer
from redis.client import Pipeline

from shared.errors import MailDeferred
from shared.messaging.tasks import TaskName
from tests.fakes import FakeMailer, InProcess, RecordingPublisher
from tests.simulators.redcap import RedcapSimulator
from worker.mail.verdicts import Recipients


class Killed(BaseException):
    """The process ends here, as by SIGKILL. No `except Exception` catches it."""


class Interruption:
    """Counts effects down; at zero the process is killed, or `act` happens in another process."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._act: Callable[[], None] | None = None
        self._dead = False
        self.struck = 0

    def arm(self, after: int, act: Callable[[], None] | None = None) -> None:
        """Strike after so many effects; without `act` the process is killed."""
        self._left, self._act = after, act

    def disarm(self) -> None:
        """A new process: nothing is armed."""
        self._left, self._act, self._dead = None, None, False

    def effect(self) -> None:
        """An effect is about to happen. Raises Killed where the process does not live to see it."""
        if self._dead:
            raise Killed
        if self._left is None:
            return
        if self._left > 0:
            self._left -= 1
            return
        self._left = None
        self.struck += 1
        if self._act is None:
            self._dead = True
            raise Killed
        self._act()


class InterruptedPipeline(Pipeline):
    """A transaction happens as a whole or not; of other pipelines a part may have reached the server."""

    interruption: Interruption

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        stack = self.command_stack
        if not stack or self.is_transaction or self.explicit_transaction:
            self.interruption.effect()
            return super().execute(raise_on_error)
        for position in range(len(stack)):
            try:
                self.interruption.effect()
            except Killed:
                self.command_stack = stack[:position]
                if position:
                    super().execute(raise_on_error)
                raise
        return super().execute(raise_on_error)

    @property
    def is_transaction(self) -> bool:
        return bool(self.transaction)


class InterruptedRedis(FakeRedis):
    """A client whose commands are effects."""

    interruption: Interruption

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.interruption.effect()
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        pipe = InterruptedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.interruption = self.interruption
        return pipe


def interrupted_redis(server: FakeServer, interruption: Interruption) -> Any:
    """A client of the server whose every command is an effect."""
    client = InterruptedRedis(server=server, decode_responses=True)
    client.interruption = interruption
    return client


class InterruptedPublisher(RecordingPublisher):
    """Each message is an effect."""

    def __init__(self, interruption: Interruption) -> None:
        super().__init__()
        self._interruption = interruption

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None:
        self._interruption.effect()
        super().__call__(task, *args, delay_seconds=delay_seconds)


class InterruptedMailer(FakeMailer):
    """Before the server's yes, and between it and our knowing of it, something may happen.

    `trouble` holds what goes wrong next: "refused_for_now", or "lost_answer" (taken, but we never hear so).
    `unheard` are mails that may come once more: their sender cannot know that they were taken.
    """

    def __init__(self, interruption: Interruption) -> None:
        super().__init__()
        self._interruption = interruption
        self.trouble: list[str] = []
        self.unheard: list[EmailMessage] = []

    def send(self, message: EmailMessage, *, to: Sequence[str] = ()) -> Recipients:
        taken = len(self.sent)
        self._interruption.effect()
        trouble = self.trouble.pop() if self.trouble else ""
        if trouble == "refused_for_now":
            raise MailDeferred("smtp_deferred", "code 451")
        self.sent.append(message)
        self._interruption.effect()
        if trouble == "lost_answer":
            self.unheard.append(message)
            raise MailDeferred("smtp_unreachable", "SMTPServerDisconnected")
        if [str(other["Message-ID"]) for other in self.sent[taken:]].count(str(message["Message-ID"])) > 1:
            # We stood still in the midst of sending for so long that another process took over.
            self.unheard.append(message)
        return Recipients()


class InterruptedRedcap(InProcess):
    """Before a request, and between REDCap's commit and our reading its answer, something may happen."""

    def __init__(
        self,
        simulator: RedcapSimulator,
        interruption: Interruption,
        around: Callable[[requests.PreparedRequest, Callable[[], requests.Response]], requests.Response],
    ) -> None:
        super().__init__(simulator)
        self._interruption = interruption
        self._around = around

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        self._interruption.effect()
        plain = super().send
        response = self._around(request, lambda: plain(request))
        self._interruption.effect()
        return response
