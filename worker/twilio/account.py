"""What Twilio's side looks like now: services, numbers, sinks. Reads only; `check` and `setup` judge it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from twilio.rest import Client
from twilio.rest.events.v1.sink import SinkInstance

from shared.config.schema import Project
from shared.domain.endpoints import EVENTS_PATH, INBOUND_EVENT, INBOUND_PATH
from shared.errors import TwilioRejected
from worker.twilio.client import REDACTED_DIGITS, found_or_none, translate_errors

# Without it a 5xx or a timeout is not retried at all; all attempts together get 15 s.
# Source: Twilio docs, "Webhook connection overrides".
RETRY_FRAGMENT = "#rc=5&rp=5xx,ct,rt&ct=1500&rt=3000"


@dataclass(frozen=True, slots=True)
class Number:
    """A number of the account, with its own addresses. Never shown whole: see `masked`."""

    sid: str
    address: str
    sms_url: str
    sms_method: str
    sms_fallback_url: str
    sms_fallback_method: str
    application_sid: str

    @property
    def name(self) -> str:
        """What findings and plans call it: the study's own sender, by its last four digits and SID."""
        return f"number …{self.address[-4:]} ({self.sid})"


@dataclass(frozen=True, slots=True)
class MessagingService:
    """A Messaging Service, and where it sends what comes in."""

    sid: str
    name: str
    inbound_url: str
    inbound_method: str
    fallback_url: str
    fallback_method: str
    defers_to_number: bool

    @property
    def drops(self) -> bool:
        """Whether what comes in is neither delivered nor logged. Source: twilio-oai, messaging_v1 Service."""
        return not self.inbound_url and not self.defers_to_number


@dataclass(frozen=True, slots=True)
class Sink:
    """An Event Streams webhook sink, and its subscriptions to incoming messages."""

    sid: str
    destination: str
    status: str
    subscriptions: tuple[str, ...]
    subscribed: bool

    @property
    def works(self) -> bool:
        """Whether it brings incoming messages."""
        return self.subscribed and self.status != "failed"


def same_address(one: str, other: str) -> bool:
    """Whether two webhook addresses are the same, whatever their fragment and a slash at the end."""
    return _bare(one) == _bare(other)


def _bare(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # whatever somebody wrote there, it is not ours
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}{parts.path.rstrip('/')}?{parts.query}"


def without_login(url: str) -> str:
    """An address as it may be shown. Twilio takes `user:password@` in it, for HTTP authentication.

    Whatever stands before the last @ goes: of a login that is not percent-encoded, one cannot tell where it ends.
    Source: Twilio docs, "Webhooks security".
    """
    return re.sub(r"^([a-z]+://)?.*@", r"\1…@", url, flags=re.IGNORECASE | re.DOTALL)


def asks_for_retries(url: str) -> bool:
    """Whether the address' fragment has Twilio repeat a webhook that was answered 5xx."""
    given = parse_qs(urlsplit(url).fragment)
    policies = set(given.get("rp", [""])[0].split(","))
    return given.get("rc", ["1"])[0] != "0" and bool(policies & {"5xx", "all"})


def _destination(configuration: object) -> str:
    """The address of a sink. Its configuration is an object, of which Twilio describes no more than that.

    Where it comes as that object's text, it is read all the same. Source: twilio-oai, events_v1 Sink.
    """
    if isinstance(configuration, str):
        try:
            configuration = json.loads(configuration)
        except ValueError:
            return ""
    destination = configuration.get("destination") if isinstance(configuration, dict) else None
    return destination if isinstance(destination, str) else ""


class TwilioAccountView:
    """One account. Every method may raise TwilioUnavailable or TwilioRejected."""

    def __init__(self, client: Client, public_url: str) -> None:
        self.client = client
        self.inbound_url = public_url.rstrip("/") + INBOUND_PATH
        self.events_url = public_url.rstrip("/") + EVENTS_PATH

    def is_ours(self, url: str) -> bool:
        """Whether a webhook address is our inbound one."""
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
            sid=str(found.sid),
            name=str(found.friendly_name or ""),
            inbound_url=str(found.inbound_request_url or ""),
            inbound_method=str(found.inbound_method or "POST"),
            fallback_url=str(found.fallback_url or ""),
            fallback_method=str(found.fallback_method or "POST"),
            defers_to_number=bool(found.use_inbound_webhook_on_number),
        )

    def service_numbers(self, service_sid: str) -> list[Number]:
        """The phone numbers of a service."""
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
        """How many short codes and channel senders (RCS, WhatsApp) a service has."""
        service = self.client.messaging.v1.services(service_sid)
        with translate_errors():
            short_codes = len(service.short_codes.list(page_size=1000))
        try:
            with translate_errors():
                return short_codes + len(service.channel_senders.list(page_size=1000))
        except TwilioRejected:  # not every account may list them
            return short_codes

    def campaign_status(self, service_sid: str) -> str | None:
        """The status of a service's A2P 10DLC campaign, such as VERIFIED; empty where there is none.

        None where Twilio refuses to tell: nothing else depends on it.
        """
        campaigns = self.client.messaging.v1.services(service_sid).us_app_to_person
        try:
            with translate_errors():
                found = campaigns.list(page_size=50)
        except TwilioRejected:
            return None
        statuses = [str(campaign.campaign_status or "") for campaign in found]
        return "VERIFIED" if "VERIFIED" in statuses else next(iter(statuses), "")

    def service_of(self, number: Number) -> str:
        """The SID of the Messaging Service that a number is in, or empty. Asks every service of the account."""
        with translate_errors():
            for service in self.client.messaging.v1.services.list(page_size=1000):
                numbers = self.client.messaging.v1.services(service.sid).phone_numbers
                if any(held.sid == number.sid for held in numbers.list(page_size=1000)):
                    return str(service.sid)
        return ""

    # --- numbers ----------------------------------------------------------------------------------

    def number(self, address: str) -> Number | None:
        """The account's number with this E.164, or None."""
        with translate_errors():
            found = self.client.incoming_phone_numbers.list(phone_number=address, page_size=20)
        # The filter also finds numbers that only contain it.
        return next((self._number(each) for each in found if each.phone_number == address), None)

    def number_by_sid(self, sid: str) -> Number | None:
        """A number of the account, or None where it has been released."""
        found = found_or_none(self.client.incoming_phone_numbers(sid).fetch)
        return None if found is None else self._number(found)

    @staticmethod
    def _number(found: object) -> Number:
        def text(name: str) -> str:
            return str(getattr(found, name) or "")

        return Number(
            sid=text("sid"),
            address=text("phone_number"),
            sms_url=text("sms_url"),
            sms_method=text("sms_method") or "POST",
            sms_fallback_url=text("sms_fallback_url"),
            sms_fallback_method=text("sms_fallback_method") or "POST",
            application_sid=text("sms_application_sid"),
        )

    # --- Event Streams ----------------------------------------------------------------------------

    def sinks(self) -> list[Sink]:
        """The webhook sinks that deliver to our events address."""
        with translate_errors():
            found = self.client.events.v1.sinks.list(page_size=100)
        ours = [(sink, destination) for sink in found if (destination := self._our_destination(sink))]
        with translate_errors():
            return [self._sink(str(sink.sid), str(sink.status), destination) for sink, destination in ours]

    def _our_destination(self, sink: SinkInstance) -> str:
        """Where a webhook sink delivers, if that is our events address; else empty."""
        destination = _destination(sink.sink_configuration) if sink.sink_type == "webhook" else ""
        return destination if same_address(destination, self.events_url) else ""

    def _sink(self, sid: str, status: str, destination: str) -> Sink:
        subscriptions = self.client.events.v1.subscriptions.list(sink_sid=sid, page_size=100)
        sids = tuple(str(subscription.sid) for subscription in subscriptions)
        return Sink(sid, destination, status, sids, any(map(self._brings_inbound, sids)))

    def _brings_inbound(self, subscription_sid: str) -> bool:
        subscription = self.client.events.v1.subscriptions(subscription_sid)
        types = subscription.subscribed_events.list(page_size=1000)
        return any(each.type == INBOUND_EVENT for each in types)

    # --- what the log shows -----------------------------------------------------------------------

    def latest_inbound(self, address: str) -> Iterator[tuple[bool, bool]]:
        """Of the latest messages to a sender: whether the number, and whether the body, is redacted."""
        with translate_errors():
            found = self.client.messages.list(to=address, limit=20, page_size=20)
        for message in found:
            if message.direction == "inbound":
                bare = not message.body and str(message.num_media or "0") == "0"
                yield str(message.from_ or "").endswith(REDACTED_DIGITS), bare
