"""Stores what requests change. Requests that arrive at about the same time wait for the disk together."""

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import structlog
from flask import g, request

from shared.messaging.record_events import Submission, publish_lookups, record
from web.context import IN_EVENT_LOOP, Services

# Requests per transaction: Redis does nothing else for a few milliseconds.
LARGEST_BATCH = 64

Submitted = tuple[Services, Submission]
_Waiting = tuple[Services, Submission, asyncio.Future[bool]]

log = structlog.get_logger(__name__)


def submit(own: Services, submission: Submission) -> bool:
    """Store what a request changes. Returns False if that failed.

    In an event loop, `web.request_buffering` answers the request after the submission is on disk. Other servers wait
    here.
    """
    if IN_EVENT_LOOP in request.environ:
        g.submitted = own, submission
        return True
    [stored], asked = record(own, [submission])
    publish_lookups(own.publish, asked)
    return stored


class Writer:
    """Gathers submissions in the event loop; a thread writes them, one batch of all that has gathered at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._gathered: deque[_Waiting] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._publishing = ThreadPoolExecutor(1, thread_name_prefix="publisher")

    async def stored(self, own: Services, submission: Submission) -> bool:
        """Whether a submission is on disk. False after a few seconds, whatever the store does."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(self._seconds, _give_up, outcome)
        self._gathered.append((own, submission, outcome))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        try:
            return await outcome
        finally:
            timer.cancel()

    async def _write(self) -> None:
        run = asyncio.get_running_loop().run_in_executor
        while self._gathered:
            if not (batch := self._next_batch()):
                continue
            own = batch[-1][0]
            stored, asked = await run(self._thread, record, own, [submission for _, submission, _ in batch])
            for (*_, outcome), is_stored in zip(batch, stored, strict=True):
                if not outcome.done():
                    outcome.set_result(is_stored)
            if asked:
                self._publishing.submit(publish_lookups, own.publish, asked)

    def _next_batch(self) -> list[_Waiting]:
        """What waited longest, without what has been given up."""
        number = min(LARGEST_BATCH, len(self._gathered))
        taken = [self._gathered.popleft() for _ in range(number)]
        return [each for each in taken if not each[-1].done()]


def _give_up(outcome: asyncio.Future[bool]) -> None:
    if not outcome.done():
        log.error("not_stored", error="timed out")
        outcome.set_result(False)
