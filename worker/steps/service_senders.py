"""Learn which numbers belong to a project's Messaging Service, for Event Streams messages without its SID."""

from contextlib import suppress

from shared.errors import ConfigError, Failure
from shared.ledger.platform.service_senders import ServiceSenders
from worker.services import Services
from worker.twilio.client import working_client
from worker.twilio.service_senders import learn_service_senders


def learn_senders(project: str, services: Services, *, service_sid: str | None = None) -> None:
    """Save the present senders of a service, by default the configured one; later, if Twilio is unavailable."""
    config = services.config.projects[project]
    with suppress(Failure, ConfigError):
        client = working_client(services.config.twilio[config.twilio])
        store = ServiceSenders(services.redis, services.hasher)
        learn_service_senders(client, service_sid or config.messaging_service_sid, store)
