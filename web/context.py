"""The services of an application, and how a view reaches them."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from flask import Flask, current_app, g

from shared.config import Config
from shared.domain.addresses import PhoneHasher
from shared.ledger import Ledger
from shared.ledger.platform.learned_words import LearnedWords
from shared.messaging.tasks import Publisher
from web.monitoring.request_counter import RequestCounter
from web.twilio.routing import Router
from web.twilio.signature import SignatureVerifier

_EXTENSION = "optout"
# In the WSGI environment of a request that an event loop handles.
IN_EVENT_LOOP = "optout.in_event_loop"


@dataclass(frozen=True, slots=True)
class Services:
    """What the views use; built anew after a change of the configuration."""

    config: Config
    hasher: PhoneHasher
    ledger: Ledger
    publish: Publisher
    verifier: SignatureVerifier
    router: Router
    request_counter: RequestCounter
    learned_words: LearnedWords


def init_app(app: Flask, services: Services | Callable[[], Services]) -> None:
    """Attach services to an application, or what provides those of each request."""
    app.extensions[_EXTENSION] = services


def services() -> Services:
    """The services of the current request: the same from its begin to its end, whatever is loaded in between."""
    of_request = g._get_current_object()  # each use of the proxy looks it up again
    if "services" not in of_request:
        attached = current_app.extensions[_EXTENSION]
        of_request.services = attached() if callable(attached) else attached
    found: Services = of_request.services
    return found


class NeedsThread(BaseException):
    """A request would block the event loop, and is run again in a thread.

    Not an Exception, as Flask would answer those with status 500.
    """


def leave_event_loop() -> None:
    """Called before a view waits, or computes for long. Raises NeedsThread in the thread of an event loop."""
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise NeedsThread
