"""The senders of a Messaging Service: for the message log and web (shared/ledger/platform/service_senders.py)."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import structlog
from twilio.rest import Client

from shared.errors import TwilioRejected
from shared.ledger.platform.service_senders import ServiceSenders
from worker.twilio.client import retry

PAGE_SIZE = 1000  # Twilio's largest

log = structlog.get_logger(__name__)


def learn_service_senders(client: Client, service_sid: str | None, store: ServiceSenders) -> None:
    """Save the senders that a service has now. Raises TwilioUnavailable or TwilioRejected."""
    if service_sid:
        store.save(service_sid, list(service_senders(client, service_sid)))


def service_senders(client: Client, service_sid: str) -> Iterator[str]:
    """Return numbers, short codes and channel addresses. Raises TwilioUnavailable or TwilioRejected."""
    service = client.messaging.v1.services(service_sid)
    yield from _list_all(service.phone_numbers, "phone_number")
    yield from _list_all(service.short_codes, "short_code")
    try:
        yield from _list_all(service.channel_senders, "sender")
    except TwilioRejected as error:  # not every account may list them
        log.warning("channel_senders_not_listed", service=service_sid, error=str(error))


def _list_all(listing: Any, name: str) -> Iterator[str]:
    """Return one attribute of all resources in a list, where it is set."""
    resources = retry(partial(listing.list, page_size=PAGE_SIZE))
    return filter(None, (getattr(resource, name) for resource in resources))
