"""Twilio's message log, as opt-out events: read by sender, newest first, a page at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog
import tenacity
from twilio.rest import Client

from shared.config import Project
from shared.config.schema import TwilioAccount
from shared.domain.events import Change, OptOutEvent, Source
from shared.domain.keywords import Keywords
from shared.domain.phone import PhoneHasher, channel_and_address, sender_number
from shared.errors import TwilioRejected, TwilioUnavailable
from worker.twilio.client import REDACTED_DIGITS, translate_errors, working_client

PAGE_SIZE = 1000  # Twilio's largest
UNSUBSCRIBED = 21610  # "attempt to send to unsubscribed recipient"

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class LogCounts:
    """What was read, and what could not be."""

    messages: int = 0
    pages: int = 0
    inbound_texts: int = 0  # without media, which needs no body
    redacted_numbers: int = 0
    redacted_bodies: int = 0
    incomplete: int = 0  # without any date, or without a SID: passed over


@dataclass(slots=True)
class MessageLog:
    """The log of one project's senders. Methods may raise TwilioUnavailable, TwilioRejected or ConfigError."""

    project: str
    config: Project
    client: Client
    hasher: PhoneHasher
    counts: LogCounts = field(default_factory=LogCounts)
    _keywords: Keywords = field(init=False)

    def __post_init__(self) -> None:
        self._keywords = self.config.keywords

    def senders(self) -> list[str]:
        """Every address that the project's participants write to, on the channels that count."""
        found = dict.fromkeys(
            address for sender in self.config.senders for address in self._addresses(sender)
        )
        if self.config.messaging_service_sid:
            found |= dict.fromkeys(self._service_senders(self.config.messaging_service_sid))
        return [
            sender for sender in found if channel_and_address(sender)[0] in {"sms", *self.config.channels}
        ]

    def _addresses(self, sender: str) -> list[str]:
        """A number, and where WhatsApp counts its address there: Twilio writes `whatsapp:` before the number.

        Source: Twilio docs, Messages resource, `to`.
        """
        both = sender.startswith("+") and "whatsapp" in self.config.channels
        return [sender, f"whatsapp:{sender}"] if both else [sender]

    def _service_senders(self, service_sid: str) -> Iterator[str]:
        service = self.client.messaging.v1.services(service_sid)
        yield from (number.phone_number for number in _all(service.phone_numbers.list) if number.phone_number)
        yield from (code.short_code for code in _all(service.short_codes.list) if code.short_code)
        if {"rcs", "whatsapp"} & set(self.config.channels):
            try:
                channels = _all(service.channel_senders.list)
                yield from (channel.sender for channel in channels if channel.sender)
            except TwilioRejected as error:
                log.warning("channel_senders_not_listed", project=self.project, error=str(error))

    def pages(self, sender: str, since: datetime) -> Iterator[list[OptOutEvent]]:
        """The changes that came to one sender, page by page, newest first."""
        for page in self._pages_since(since, to=sender):
            yield [event for message in page if (event := self._opt_out(message)) is not None]

    def blocked_pages(self, sender: str, since: datetime) -> Iterator[list[OptOutEvent]]:
        """Texts of ours that Twilio refused because their recipient had opted out, page by page."""
        for page in self._pages_since(since, from_=sender):
            yield [event for message in page if (event := self._blocked(message)) is not None]

    def _pages_since(self, since: datetime, **filters: Any) -> Iterator[list[Any]]:
        """The messages of a list from then on, inclusive: read until a whole page is older.

        Twilio's own filter and order are by DateSent, and that is null where no webhook was called and where
        nothing was sent. The filter would leave such messages out; where they stand in the order, nobody says.
        If they stand before all others, an older page of them tells nothing about those: the filter then does.
        Source: twilio-oai, api_v2010 ListMessage; Twilio docs, Messages resource.
        """
        since, some_sent = since.astimezone(UTC).replace(microsecond=0), False
        for page in self._raw_pages(**filters):
            some_sent = some_sent or any(message.date_sent for message in page)
            yield self._from_then_on(page, since)
            if _is_older(page, since):
                rest = () if some_sent else self._raw_pages(date_sent_after=since, **filters)
                yield from (self._from_then_on(sent, since) for sent in rest)
                return

    def _from_then_on(self, page: list[Any], since: datetime) -> list[Any]:
        """Of a page, what is to be read. What lacks a date or a SID is no event: it is counted, and passed over."""
        complete = [message for message in page if message.sid and _time(message)]
        wanted = [message for message in complete if _time(message) >= since]
        incomplete = len(page) - len(complete)
        self.counts.messages += len(wanted) + incomplete
        self.counts.incomplete += incomplete
        if incomplete:
            log.warning("messages_incomplete", project=self.project, number=incomplete)
        return wanted

    def _raw_pages(self, **filters: Any) -> Iterator[list[Any]]:
        page = _patiently(partial(self.client.messages.page, page_size=PAGE_SIZE, **filters))
        while True:
            with translate_errors():
                messages = list(page)
            self.counts.pages += 1
            yield messages
            url = page.next_page_url
            if not url:
                return
            page = _patiently(partial(self.client.messages.get_page, url))

    def _opt_out(self, message: Any) -> OptOutEvent | None:
        if message.direction != "inbound":
            return None
        if str(message.num_media or "0") == "0":
            self.counts.inbound_texts += 1
            self.counts.redacted_bodies += not message.body
        channel, address = channel_and_address(message.from_ or "")
        change = self._keywords.change(message.body or "")
        if change is None or channel not in self.config.channels:
            return None
        if REDACTED_DIGITS in address:
            self.counts.redacted_numbers += 1  # reported, not guessed
            return None
        return self._event(message, address, change, Source.MESSAGE_LOG)

    def _blocked(self, message: Any) -> OptOutEvent | None:
        if str(message.error_code) != str(UNSUBSCRIBED):
            return None
        channel, address = channel_and_address(message.to or "")
        if channel not in self.config.channels:
            return None
        if REDACTED_DIGITS in address:
            self.counts.redacted_numbers += 1
            return None
        return self._event(message, address, Change.STOP, Source.BLOCKED_MESSAGE)

    def _event(self, message: Any, address: str, change: Change, source: Source) -> OptOutEvent:
        number = sender_number(address)
        return OptOutEvent(
            project=self.project,
            event_id=message.sid,
            change=change,
            occurred_at=_time(message),
            source=source,
            phone_hash=self.hasher(number) if number else "",
        )


def open_message_log(
    project: str, config: Project, account: TwilioAccount, hasher: PhoneHasher
) -> MessageLog:
    """The log, with the first of the account's tokens that Twilio takes: one of two is old during a rotation.

    Raises as `working_client` does.
    """
    return MessageLog(project, config, _patiently(partial(working_client, account)), hasher)


def _time(message: Any) -> Any:
    """For an inbound message, when Twilio called the webhook, which is what we compare with; or None."""
    return message.date_sent or message.date_created


def _is_older(page: list[Any], since: datetime) -> bool:
    """Whether a page lies wholly before that time. One without any date does not."""
    times = [when for message in page if (when := _time(message))]
    return bool(times) and max(times) < since


def _all(listing: Callable[..., list[Any]]) -> list[Any]:
    return list(_patiently(partial(listing, page_size=PAGE_SIZE)))


def _patiently(request: Callable[[], Any]) -> Any:
    """A few tries: 429 means that nothing was done and asks to come again. Source: Twilio error 20429."""

    def attempt() -> Any:
        with translate_errors():
            return request()

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TwilioUnavailable),
        wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=20),
        stop=tenacity.stop_after_attempt(5),
        reraise=True,
    )(attempt)
