"""All that the accounts hold together: tests set the scene here, and delivery looks up where to go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tests.simulators.twilio.accounts import Account, JsonObject, Sender, SenderKind, Service, new_campaign
from tests.simulators.twilio.delivery import Hook
from tests.simulators.twilio.events import INBOUND_EVENT, Sink, Subscription
from tests.simulators.twilio.messages import Message, MessageLog

PUBLIC_URL = "https://optout.example.edu"
INBOUND_PATH = "/twilio/inbound"
EVENTS_PATH = "/twilio/events"

# Twilio docs: Webhook connection overrides. Without this fragment a 5xx is not retried at all.
RETRY_FRAGMENT = "#rc=5&rp=5xx,ct,rt"


class Holdings:
    """Accounts with their services, senders, sinks, subscriptions and message logs."""

    def __init__(self, public_url: str) -> None:
        self.public_url = public_url.rstrip("/")
        self.accounts: dict[str, Account] = {}
        self.services: dict[str, Service] = {}
        self.senders: dict[str, Sender] = {}  # by SID
        self.sinks: dict[str, Sink] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.logs: dict[str, MessageLog] = {}

    def add_account(self, account: Account) -> Account:
        self.accounts[account.sid] = account
        self.logs[account.sid] = MessageLog()
        return account

    def add_service(
        self,
        *,
        sid: str = "",
        account_sid: str | None = None,
        senders: Iterable[str] = (),
        inbound_request_url: str | None = "",
        use_inbound_webhook_on_number: bool = False,
        **settings: Any,
    ) -> Service:
        """Create a Messaging Service with these senders.

        inbound_request_url "" stands for the program's own webhook with retries; None makes the service
        drop what comes in.
        """
        url = (
            self.public_url + INBOUND_PATH + RETRY_FRAGMENT
            if inbound_request_url == ""
            else inbound_request_url
        )
        service = Service(
            sid=sid,
            account_sid=account_sid or self.first_account.sid,
            inbound_request_url=url,
            use_inbound_webhook_on_number=use_inbound_webhook_on_number,
            **settings,
        )
        self.services[service.sid] = service
        for address in senders:
            self.add_sender(address, service=service)
        return service

    def add_sender(
        self, address: str, *, service: Service | None = None, account_sid: str | None = None, **hooks: Any
    ) -> Sender:
        """A number (+…), short code (digits), channel address (whatsapp:+…, rcs:…) or alphanumeric name.

        `hooks` are a number's own fields: sms_url, sms_method, sms_fallback_url, sms_application_sid …
        """
        owner = service.account_sid if service else account_sid or self.first_account.sid
        sender = Sender(address, account_sid=owner, service_sid=service.sid if service else None, **hooks)
        self.senders[sender.sid] = sender
        return sender

    def add_campaign(self, service_sid: str, *, status: str = "VERIFIED", **more: Any) -> JsonObject:
        """An A2P 10DLC campaign (Usa2p) of a service; its status is free text (twilio-oai messaging_v1)."""
        service = self.services[service_sid]
        campaign = new_campaign(service, status) | more
        service.campaigns.append(campaign)
        service.us_app_to_person_registered = True
        return campaign

    def add_sink(
        self, url: str | None = None, *, account_sid: str | None = None, status: str = "active"
    ) -> Sink:
        """A webhook sink subscribed to inbound messages; by default the program's own."""
        owner = account_sid or self.first_account.sid
        destination = {
            "destination": url or self.public_url + EVENTS_PATH,
            "method": "POST",
            "batch_events": False,
        }
        sink = Sink(owner, "Opt-outs", destination, "webhook", status=status)
        self.sinks[sink.sid] = sink
        subscription = Subscription(owner, "Inbound messages", sink.sid, {INBOUND_EVENT: 6})
        self.subscriptions[subscription.sid] = subscription
        return sink

    @property
    def first_account(self) -> Account:
        return next(iter(self.accounts.values()))

    def sender_at(self, address: str) -> Sender:
        for sender in self.senders.values():
            if sender.address == address:
                return sender
        raise LookupError(f"no account has the sender {address}: add_sender or add_service first")

    def senders_of(self, service_sid: str) -> list[Sender]:
        return [sender for sender in self.senders.values() if sender.service_sid == service_sid]

    def numbers_of(self, account_sid: str) -> list[Sender]:
        kind = SenderKind.PHONE_NUMBER
        return [s for s in self.senders.values() if s.account_sid == account_sid and s.kind is kind]

    def first_sender(self, service_sid: str | None, *, like: str = "") -> Sender:
        """The service's first sender of the same channel as the participant's address."""
        sid = service_sid or next(iter(self.services))
        channel = like.partition(":")[0] if ":" in like else ""
        for sender in self.senders_of(sid):
            own = sender.address.partition(":")[0] if ":" in sender.address else ""
            if own == channel and sender.kind is not SenderKind.ALPHA:
                return sender
        raise LookupError(f"service {sid} has no {channel or 'SMS'} sender")

    def add_messages(self, messages: Iterable[Message]) -> int:
        """Put messages into the log without delivering anything; returns how many."""
        by_account: dict[str, list[Message]] = {}
        for message in messages:
            by_account.setdefault(message.account_sid, []).append(message)
        for sid, rows in by_account.items():
            self.logs[sid].add(rows)
        return sum(map(len, by_account.values()))

    def messages(self, account_sid: str | None = None) -> list[Message]:
        """The account's message log, newest first."""
        return self.logs[account_sid or self.first_account.sid].newest_first()

    def hook_for(self, message: Message) -> Hook | None:
        """Where Twilio sends an inbound message.

        None: it is dropped. A Hook without url: it is logged, and nobody is told.
        """
        sender = self.sender_at(message.to)
        service = self.services.get(sender.service_sid or "")
        if service and not service.use_inbound_webhook_on_number:
            if not service.inbound_request_url:
                return None
            fallback = service.fallback_url or ""
            return Hook(
                service.inbound_request_url, service.inbound_method, fallback, service.fallback_method
            )
        if sender.sms_application_sid:  # then all sms_*_url are ignored (twilio-oai api_v2010)
            return Hook("")
        return Hook(sender.sms_url, sender.sms_method, sender.sms_fallback_url, sender.sms_fallback_method)

    def event_urls(self, account_sid: str) -> list[str]:
        wanted = {s.sink_sid for s in self.subscriptions.values() if INBOUND_EVENT in s.types}
        sinks = [s for s in self.sinks.values() if s.sid in wanted and s.account_sid == account_sid]
        return [
            str(s.configuration["destination"]) for s in sinks if s.kind == "webhook" and s.status != "failed"
        ]
