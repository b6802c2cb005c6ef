"""Which projects a message concerns, and what it changes for each. The routes are built once at start."""

from collections.abc import Iterator
from datetime import datetime

from shared.config import Config
from shared.config.keywords import keywords_of
from shared.domain.addresses import PhoneHasher, channel_and_address
from shared.domain.events import Change, OptOutEvent
from shared.domain.phone import sender_number
from shared.domain.scopes import scope_of
from shared.ledger.platform.service_senders import ServiceSenders
from web.twilio.parsing import InboundMessage
from web.twilio.twiml import EMPTY_RESPONSE, redirect


class Router:
    """The routes of all projects: by account, and Messaging Service or number."""

    def __init__(self, config: Config, hasher: PhoneHasher, senders: ServiceSenders | None = None) -> None:
        self._hasher = hasher
        self._senders = senders
        self._projects = config.projects
        self._keywords = {name: keywords_of(project) for name, project in config.projects.items()}
        self._routes: dict[tuple[str, str], list[str]] = {}
        for name, project in config.projects.items():
            account_sid = config.twilio[project.twilio].account_sid
            for address in filter(None, (project.messaging_service_sid, *project.senders)):
                self._routes.setdefault((account_sid, address), []).append(name)

    def projects(self, message: InboundMessage) -> list[str]:
        """The projects that a message was sent to.

        An opt-out applies to the whole Messaging Service: to every project on it, and to a project that lists
        only the number. Source: Twilio help article 223134027.
        """
        channel, bare = channel_and_address(message.recipient)
        found = [
            *self._at(message, message.messaging_service_sid),
            *(name for sid in self._services(message) for name in self._at(message, sid)),
            *self._at(message, message.recipient),
            # A number that is configured without a prefix also receives on the project's other channels.
            *(name for name in self._at(message, bare) if channel in self._projects[name].channels),
        ]
        return list(dict.fromkeys(found))

    def _services(self, message: InboundMessage) -> list[str]:
        """The account's services that have the recipient, if the message names none (Event Streams may omit it).

        Raises redis.RedisError.
        """
        if message.messaging_service_sid or self._senders is None:
            return []
        services = [
            sid for account, sid in self._routes if account == message.account_sid and sid[:2] == "MG"
        ]
        return self._senders.services_of(message.recipient, services) if services else []

    def _at(self, message: InboundMessage, address: str) -> list[str]:
        return self._routes.get((message.account_sid, address), [])

    def events(self, message: InboundMessage, projects: list[str], now: datetime) -> Iterator[OptOutEvent]:
        """The changes that a message makes, one per project; none for HELP and all other texts."""
        channel, address = channel_and_address(message.sender)
        number = sender_number(address)
        services = {message.messaging_service_sid, *self._services(message)}
        for name in projects:
            project = self._projects[name]
            change = self._keywords[name].change(
                message.body, opt_out_type=message.opt_out_type, recipient=message.recipient
            )
            if change is None or channel not in project.channels:
                continue
            yield OptOutEvent(
                project=name,
                event_id=message.message_sid,
                change=change,
                occurred_at=message.occurred_at or now,
                source=message.source,
                phone_hash=self._hasher(number) if number else "",
                scope=scope_of(project.messaging_service_sid, services, message.recipient, self._hasher),
                blocked=message.opt_out_type == Change.STOP,
            )

    def answer(self, projects: list[str]) -> str:
        """The TwiML for Twilio: empty, or a redirect to the address where REDCap handles the message."""
        urls = filter(None, (self._projects[name].forward_url for name in projects))
        return next((redirect(url) for url in urls), EMPTY_RESPONSE)
