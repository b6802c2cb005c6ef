"""Twilio's message log as opt-out events, by sender, newest first, one page at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
from twilio.rest import Client

from shared.config import Project
from shared.config.keywords import keywords_of
from shared.config.schema import TwilioAccount
from shared.domain.addresses import PhoneHasher, channel_and_address
from shared.domain.events import Change, OptOutEvent, Source, milliseconds
from shared.domain.keywords import Keywords
from shared.domain.phone import sender_number
from shared.domain.scopes import scope_of
from worker.twilio.client import REDACTED_DIGITS, message_time, retry, translate_errors, working_client
from worker.twilio.service_senders import service_senders

PAGE_SIZE = 1000  # Twilio's largest
UNSUBSCRIBED = 21610  # "attempt to send to unsubscribed recipient"

log = structlog.get_logger(__name__)


# A text that reached a carrier. Source: Twilio docs, Messages resource, `status`.
_DELIVERED = {"sent", "delivered", "read"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SentText:
    """A text of the study to somebody, as Twilio's log shows it."""

    phone_hash: str
    scope: str  # of the sender
    sent_ms: int
    rejected: bool  # because the recipient had opted out
    delivered: bool


@dataclass(slots=True, kw_only=True)
class LogCounts:
    """What was read, and what could not be used."""

    messages: int = 0
    pages: int = 0
    inbound_texts: int = 0  # without media: these have a body, unless it is redacted
    redacted_numbers: int = 0
    redacted_bodies: int = 0
    incomplete: int = 0  # without any date, or without a SID: skipped


@dataclass(slots=True)
class MessageLog:
    """The log of one project's senders. Methods may raise TwilioUnavailable, TwilioRejected or ConfigError."""

    project: str
    config: Project
    client: Client
    hasher: PhoneHasher
    keywords: Keywords
    counts: LogCounts = field(default_factory=LogCounts)
    # SIDs of incoming messages that webhooks or Event Streams have shown; those that the log has are removed.
    not_in_log: set[str] = field(default_factory=set)
    in_service: list[str] = field(default_factory=list)  # the senders of the Messaging Service, once read

    # --- senders ----------------------------------------------------------------------------------

    def senders(self) -> list[str]:
        """Return every address that the project's participants write to, on the configured channels."""
        configured = [address for sender in self.config.senders for address in self._addresses(sender)]
        service = self.config.messaging_service_sid
        self.in_service = list(service_senders(self.client, service)) if service else []
        senders = dict.fromkeys([*configured, *self.in_service])
        channels = {"sms", *self.config.channels}
        return [sender for sender in senders if channel_and_address(sender)[0] in channels]

    def _addresses(self, sender: str) -> list[str]:
        """Return a number, and its WhatsApp address if the channel is configured: `whatsapp:` before the number.

        Source: Twilio docs, Messages resource, `to`.
        """
        has_both = sender.startswith("+") and "whatsapp" in self.config.channels
        return [sender, f"whatsapp:{sender}"] if has_both else [sender]

    # --- pages ------------------------------------------------------------------------------------

    def pages(self, sender: str, since: datetime) -> Iterator[list[OptOutEvent]]:
        """Return the changes that came to one sender, page by page, newest first."""
        for page in self._pages_since(since, to=sender):
            yield list(filter(None, map(self._opt_out, page)))

    def sent_pages(self, sender: str, since: datetime) -> Iterator[tuple[list[OptOutEvent], list[SentText]]]:
        """Return the study's texts page by page: as opt-outs, those that Twilio blocked for that reason; and all."""
        for page in self._pages_since(since, from_=sender):
            yield list(filter(None, map(self._blocked, page))), list(filter(None, map(self._sent, page)))

    def _pages_since(self, since: datetime, **filters: Any) -> Iterator[list[Any]]:
        """Return the messages of a list since that time, inclusive; stop at a page that is entirely older.

        Twilio's own filter and order are by DateSent, which is null if no webhook was called and nothing was sent.
        The filter omits such messages, and their place in the order is not documented. If they come before all
        others, an old page of them says nothing about the others: then the filter is used as well.
        Source: twilio-oai, api_v2010 ListMessage; Twilio docs, Messages resource.
        """
        since, some_sent = since.astimezone(UTC).replace(microsecond=0), False
        for page in self.raw_pages(**filters):
            some_sent = some_sent or any(message.date_sent for message in page)
            yield self._usable_since(page, since)
            if _is_older(page, since):
                rest = () if some_sent else self.raw_pages(date_sent_after=since, **filters)
                yield from (self._usable_since(sent, since) for sent in rest)
                return

    def _usable_since(self, page: list[Any], since: datetime) -> list[Any]:
        """Return the messages of a page since that time. One without a date or a SID is counted and skipped."""
        complete = list(filter(_is_complete, page))
        recent = [message for message in complete if message_time(message) >= since]
        incomplete = len(page) - len(complete)
        self.counts.messages += len(recent) + incomplete
        self.counts.incomplete += incomplete
        if incomplete:
            log.warning("messages_incomplete", project=self.project, number=incomplete)
        return recent

    def raw_pages(self, **filters: Any) -> Iterator[list[Any]]:
        """Return Twilio's pages of messages for these filters."""
        page = retry(partial(self.client.messages.page, page_size=PAGE_SIZE, **filters))
        while page is not None:
            with translate_errors():
                messages = list(page)
            self.counts.pages += 1
            yield messages
            url = page.next_page_url
            page = retry(partial(self.client.messages.get_page, url)) if url else None

    # --- messages ---------------------------------------------------------------------------------

    def _opt_out(self, message: Any) -> OptOutEvent | None:
        if message.direction != "inbound":
            return None
        self._count_text(message)
        self.not_in_log.discard(message.sid)
        change = self.keywords.change(message.body or "", recipient=message.to or "")
        if change is None:
            return None
        return self._event(message, message.from_, message.to, change, Source.MESSAGE_LOG)

    def _count_text(self, message: Any) -> None:
        if str(message.num_media or "0") == "0":
            self.counts.inbound_texts += 1
            self.counts.redacted_bodies += not message.body

    def _blocked(self, message: Any) -> OptOutEvent | None:
        if not _is_blocked(message):
            return None
        return self._event(message, message.to, message.from_, Change.STOP, Source.BLOCKED_MESSAGE)

    def _sent(self, message: Any) -> SentText | None:
        number = sender_number(channel_and_address(message.to or "")[1])
        if number is None or not str(message.direction).startswith("outbound"):
            return None
        return SentText(
            phone_hash=self.hasher(number),
            scope=self.scope(message.from_ or ""),
            sent_ms=milliseconds(message_time(message) or message.date_created),
            rejected=_is_blocked(message),
            delivered=str(message.status) in _DELIVERED,
        )

    def scope(self, sender: str) -> str:
        """Return the scope of an opt-out that was sent to a sender of the study."""
        service = self.config.messaging_service_sid
        services = [service] if service and sender in self.in_service else []
        return scope_of(service, services, sender, self.hasher)

    def _event(
        self, message: Any, participant: str | None, sender: str | None, change: Change, source: Source
    ) -> OptOutEvent | None:
        channel, address = channel_and_address(participant or "")
        if channel not in self.config.channels:
            return None
        if REDACTED_DIGITS in address:
            self.counts.redacted_numbers += 1  # reported: the number cannot be recovered
            return None
        number = sender_number(address)
        return OptOutEvent(
            project=self.project,
            event_id=message.sid,
            change=change,
            occurred_at=message_time(message),
            source=source,
            phone_hash=self.hasher(number) if number else "",
            scope=self.scope(sender or ""),
            blocked=source is Source.BLOCKED_MESSAGE,
        )


def open_message_log(
    project: str,
    config: Project,
    account: TwilioAccount,
    hasher: PhoneHasher,
    keywords: Keywords | None = None,
) -> MessageLog:
    """Return the log, read with the first of the account's tokens that Twilio accepts; by the project's keywords.

    Raises as `working_client` does.
    """
    return MessageLog(
        project, config, retry(partial(working_client, account)), hasher, keywords or keywords_of(config)
    )


def _is_blocked(message: Any) -> bool:
    return str(message.error_code) == str(UNSUBSCRIBED)


def _is_complete(message: Any) -> bool:
    return bool(message.sid and message_time(message))


def _is_older(page: list[Any], since: datetime) -> bool:
    """Return whether a page is entirely older than that time. A page without any date is not."""
    times = list(filter(None, map(message_time, page)))
    return bool(times) and max(times) < since
