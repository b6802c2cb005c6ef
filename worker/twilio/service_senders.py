"""Lists the senders of a Messaging Service for web (shared/ledger/service_senders.py)."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from twilio.rest import Client

from shared.errors import TwilioRejected
from shared.ledger.service_senders import ServiceSenders
from worker.twilio.client import translate_errors

PAGE_SIZE = 1000  # Twilio's largest


def learn_service_senders(client: Client, service_sid: str | None, store: ServiceSenders) -> None:
    """Save the senders that a service has now. Raises TwilioUnavailable or TwilioRejected."""
    if service_sid:
        store.save(service_sid, list(_senders(client, service_sid)))


def _senders(client: Client, service_sid: str) -> Iterator[str]:
    service = client.messaging.v1.services(service_sid)
    with translate_errors():
        yield from _listed(service.phone_numbers, "phone_number")
        yield from _listed(service.short_codes, "short_code")
    with suppress(TwilioRejected), translate_errors():  # not every account may list channel senders
        yield from _listed(service.channel_senders, "sender")


def _listed(listing: Any, name: str) -> Iterator[str]:
    return filter(None, map(partial(_text, name), listing.list(page_size=PAGE_SIZE)))


def _text(name: str, found: object) -> str:
    return str(getattr(found, name) or "")
