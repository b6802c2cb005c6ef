"""A Twilio account as it is now: services, numbers, sinks. Reads only; `check` and `setup` evaluate it."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from twilio.rest import Client
from twilio.rest.events.v1.sink import SinkInstance

from shared.config.schema import Project
from shared.domain.endpoints import EVENTS_PATH, INBOUND_EVENT, INBOUND_PATH
from shared.errors import TwilioRejected
from worker.twilio.client import REDACTED_DIGITS, found_or_none, translate_errors

# Without it Twilio does not retry after a 5xx or a timeout. All attempts together may take 15 s.
# Source: Twilio docs, "Webhook connection overrides".
RETRY_FRAGMENT = "#rc=5&rp=5xx,ct,rt&ct=1500&rt=3000"


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the account, with its own webhook addresses. Messages show `name`, never the whole number."""

    sid: str
    address: str
    sms_url: str
    sms_method: str
    sms_fallback_url: str
    sms_fallback_method: str
    application_sid: str

    @property
    def name(self) -> str:
        """The last four digits and the SID, for findings and plans."""
        return f"number …{self.address[-4:]} ({self.sid})"


@dataclass(frozen=True, slots=True)
class MessagingService:
    """A Messaging Service, and where it sends incoming messages."""

    sid: str
    name: str
    inbound_url: str
    inbound_method: str
    fallback_url: str
    fallback_method: str
    defers_to_number: bool

    @property
    def drops(self) -> bool:
        """Whether incoming messages are neither delivered nor logged. Source: twilio-oai, messaging_v1 Service."""
        return not self.inbound_url and not self.defers_to_number


@dataclass(frozen=True, slots=True)
class Sink:
    """An Event Streams webhook sink, and its subscriptions to incoming messages."""

    sid: str
    status: str
    subscriptions: tuple[str, ...]
    subscribed: bool

    @property
    def works(self) -> bool:
        """Whether it delivers incoming messages."""
        return self.subscribed and self.status != "failed"


def same_address(one: str, other: str) -> bool:
    """Return whether two webhook addresses are the same, apart from login, fragment and a slash at the end."""
    return _comparable(one) == _comparable(other)


def _comparable(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # not an address, so not this program's
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}{parts.path.rstrip('/')}?{parts.query}"


def without_login(url: str) -> str:
    """Return an address for display. Twilio accepts `user:password@` in it, for HTTP authentication.

    Everything before the last @ is removed: the end of a login that is not percent-encoded is unknown.
    Source: Twilio docs, "Webhooks security".
    """
    return re.sub(r"^([a-z]+://)?.*@", r"\1…@", url, flags=re.IGNORECASE | re.DOTALL)


def asks_for_retries(url: str) -> bool:
    """Return whether the address' fragment has Twilio retry a webhook that was answered with 5xx."""
    fragment = parse_qs(urlsplit(url).fragment)
    policies = fragment.get("rp", [""])[0].split(",")
    return fragment.get("rc", ["1"])[0] != "0" and not {"5xx", "all"}.isdisjoint(policies)


def _destination(configuration: object) -> str:
    """Return the address of a sink, or "". Twilio describes its configuration as an object, without its members.

    JSON text is accepted as well. Source: twilio-oai, events_v1 Sink.
    """
    if isinstance(configuration, str):
        with suppress(ValueError):
            configuration = json.loads(configuration)
    destination = configuration.get("destination") if isinstance(configuration, dict) else None
    return destination if isinstance(destination, str) else ""


def _text(found: object, name: str, default: str = "") -> str:
    return str(getattr(found, name) or default)


class TwilioAccountView:
    """One account. Every method may raise TwilioUnavailable or TwilioRejected."""

    def __init__(self, client: Client, public_url: str) -> None:
        self.client = client
        self.inbound_url = public_url.rstrip("/") + INBOUND_PATH
        self.events_url = public_url.rstrip("/") + EVENTS_PATH

    def is_ours(self, url: str) -> bool:
        """Return whether a webhook address is this program's inbound address."""
        return same_address(url, self.inbound_url)

    def is_foreign(self, url: str) -> bool:
        """Return whether a webhook address is set, and belongs to another program."""
        return bool(url) and not self.is_ours(url)

    def is_handled_elsewhere(self, number: Number) -> bool:
        """Return whether another program receives a number's messages."""
        return bool(number.application_sid) or self.is_foreign(number.sms_url)

    # --- services and their senders ---------------------------------------------------------------

    def service(self, sid: str | None) -> MessagingService | None:
        """Return a Messaging Service; None without a SID, or if the account has no such service."""
        found = found_or_none(self.client.messaging.v1.services(sid).fetch) if sid else None
        if found is None:
            return None
        return MessagingService(
            sid=_text(found, "sid"),
            name=_text(found, "friendly_name"),
            inbound_url=_text(found, "inbound_request_url"),
            inbound_method=_text(found, "inbound_method", "POST"),
            fallback_url=_text(found, "fallback_url"),
            fallback_method=_text(found, "fallback_method", "POST"),
            defers_to_number=bool(found.use_inbound_webhook_on_number),
        )

    def service_numbers(self, service_sid: str) -> list[Number]:
        """Return the phone numbers of a service."""
        with translate_errors():
            service = self.client.messaging.v1.services(service_sid)
            sids = [str(number.sid) for number in service.phone_numbers.list(page_size=1000)]
            return [self._number(self.client.incoming_phone_numbers(sid).fetch()) for sid in sids]

    def service_is_used(self, service_sid: str, project: Project) -> bool:
        """Return whether a project uses a service, by its SID or by one of its numbers."""
        if project.messaging_service_sid == service_sid:
            return True
        return any(number.address in project.senders for number in self.service_numbers(service_sid))

    def other_senders(self, service_sid: str) -> int:
        """Return how many short codes and channel senders (RCS, WhatsApp) a service has."""
        service = self.client.messaging.v1.services(service_sid)
        with translate_errors():
            short_codes = len(service.short_codes.list(page_size=1000))
        with suppress(TwilioRejected), translate_errors():  # not every account may list channel senders
            return short_codes + len(service.channel_senders.list(page_size=1000))
        return short_codes

    def campaign_status(self, service_sid: str) -> str | None:
        """Return the status of a service's A2P 10DLC campaign, such as VERIFIED; "" without a campaign.

        None if Twilio does not show it: nothing else depends on it.
        """
        campaigns = self.client.messaging.v1.services(service_sid).us_app_to_person
        with suppress(TwilioRejected), translate_errors():
            statuses = [_text(campaign, "campaign_status") for campaign in campaigns.list(page_size=50)]
            return "VERIFIED" if "VERIFIED" in statuses else next(iter(statuses), "")
        return None

    def service_of(self, number: Number) -> str:
        """Return the SID of the Messaging Service that a number is in, or "". Reads every service of the account."""
        services = self.client.messaging.v1.services
        with translate_errors():
            for service in services.list(page_size=1000):
                senders = services(service.sid).phone_numbers.list(page_size=1000)
                if any(sender.sid == number.sid for sender in senders):
                    return str(service.sid)
        return ""

    # --- numbers ----------------------------------------------------------------------------------

    def number(self, address: str) -> Number | None:
        """Return the account's number with this E.164, or None."""
        with translate_errors():
            found = self.client.incoming_phone_numbers.list(phone_number=address, page_size=20)
        # The filter also finds numbers that only contain it.
        return next((self._number(each) for each in found if each.phone_number == address), None)

    @staticmethod
    def _number(found: object) -> Number:
        return Number(
            sid=_text(found, "sid"),
            address=_text(found, "phone_number"),
            sms_url=_text(found, "sms_url"),
            sms_method=_text(found, "sms_method", "POST"),
            sms_fallback_url=_text(found, "sms_fallback_url"),
            sms_fallback_method=_text(found, "sms_fallback_method", "POST"),
            application_sid=_text(found, "sms_application_sid"),
        )

    # --- Event Streams ----------------------------------------------------------------------------

    def sinks(self) -> list[Sink]:
        """Return the webhook sinks that deliver to this program's events address."""
        with translate_errors():
            return [
                self._sink(sink)
                for sink in self.client.events.v1.sinks.list(page_size=100)
                if sink.sink_type == "webhook"
                and same_address(_destination(sink.sink_configuration), self.events_url)
            ]

    def _sink(self, sink: SinkInstance) -> Sink:
        subscriptions = self.client.events.v1.subscriptions.list(sink_sid=str(sink.sid), page_size=100)
        sids = tuple(str(subscription.sid) for subscription in subscriptions)
        subscribed = any(map(self._includes_inbound, sids))
        return Sink(str(sink.sid), str(sink.status), sids, subscribed)

    def _includes_inbound(self, subscription_sid: str) -> bool:
        subscription = self.client.events.v1.subscriptions(subscription_sid)
        types = subscription.subscribed_events.list(page_size=1000)
        return any(each.type == INBOUND_EVENT for each in types)

    # --- message log ------------------------------------------------------------------------------

    def latest_inbound(self, address: str) -> Iterator[tuple[bool, bool]]:
        """Return for the latest messages to a sender whether the number, and whether the body, is redacted."""
        with translate_errors():
            found = self.client.messages.list(to=address, limit=20, page_size=20)
        for message in found:
            if message.direction == "inbound":
                has_no_content = not message.body and str(message.num_media or "0") == "0"
                yield _text(message, "from_").endswith(REDACTED_DIGITS), has_no_content
