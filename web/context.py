"""The services of an application, and how a view reaches them."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from flask import Flask, current_app

from shared.config import Config
from shared.ledger import Ledger
from shared.ledger.learned_words import LearnedWords
from shared.messaging.publisher import Publisher
from web.monitoring.request_counter import RequestCounter
from web.twilio.routing import Router
from web.twilio.signature import SignatureVerifier

_EXTENSION = "optout"
# In the WSGI environment of a request that an event loop handles.
IN_EVENT_LOOP = "optout.in_event_loop"


@dataclass(frozen=True, slots=True)
class Services:
    """What the views use; built once per process."""

    config: Config
    ledger: Ledger
    publish: Publisher
    verifier: SignatureVerifier
    router: Router
    request_counter: RequestCounter
    learned_words: LearnedWords


def init_app(app: Flask, services: Services) -> None:
    """Attach the services to an application."""
    app.extensions[_EXTENSION] = services


def services() -> Services:
    """The services of the application that handles the current request."""
    attached: Services = current_app.extensions[_EXTENSION]
    return attached


class NeedsThread(BaseException):
    """A request would block the event loop, and is run again in a thread.

    Not an Exception, as Flask would answer those with status 500.
    """


def leave_event_loop() -> None:
    """Called before a view waits, or computes for long. Raises NeedsThread in the thread of an event loop."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise NeedsThread
