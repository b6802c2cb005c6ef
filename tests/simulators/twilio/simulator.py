"""The simulator: participants and studies text, webhooks and Event Streams are called, the REST API is served."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Literal
from urllib.parse import urljoin

from tests.simulators.twilio.accounts import SENDER, SERVICE_SID, Account
from tests.simulators.twilio.delivery import Exchange, Hook, Network, Texted, Twiml, read_twiml
from tests.simulators.twilio.events import event_stream_body
from tests.simulators.twilio.faults import Fault, FaultKind, LoggedRequest
from tests.simulators.twilio.holdings import EVENTS_PATH, PUBLIC_URL, Holdings
from tests.simulators.twilio.messages import Message, inbound_parameters, utc_now
from tests.simulators.twilio.opt_outs import UNSUBSCRIBED, BlockList, MessageRefused, keyword_of
from tests.simulators.twilio.rest_consents import REQUESTS_PER_MINUTE, Consent
from tests.simulators.twilio.server import RunningServer, running_server
from tests.simulators.twilio.signing import SignedRequest, json_request, signed_url

Via = Literal["webhook", "events", "both"]


class TwilioSimulator(Holdings):
    """Twilio, as far as opt-outs are concerned.

    Without `accounts` it holds one account with one Messaging Service and one number.
    """

    def __init__(
        self,
        accounts: Iterable[Account] | None = None,
        *,
        public_url: str = PUBLIC_URL,
        deliver_to: str | None = None,
    ) -> None:
        super().__init__(public_url)
        self.blocks = BlockList()
        self.faults: list[Fault] = []
        self.consents: list[Consent] = []  # all that the Consent Management API received
        self.consent_errors: dict[
            str, list[str]
        ] = {}  # by number: errors that its consents are answered with
        self.consent_requests_per_minute = REQUESTS_PER_MINUTE
        self.problem_details = False  # whether errors come in the form of RFC 9457
        self.request_log: list[LoggedRequest] = []
        self.network = Network()
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        if deliver_to:
            self.deliver_to(deliver_to)
        for account in [Account()] if accounts is None else accounts:
            self.add_account(account)
        if accounts is None:
            self.add_service(sid=SERVICE_SID, senders=[SENDER])

    def deliver_to(self, real_url: str, *, public_url: str | None = None) -> None:
        """From now on requests to `public_url` (default: the program's own) are sent to `real_url`."""
        self.network.routes[(public_url or self.public_url).rstrip("/")] = real_url

    # -- participants text

    def text(
        self,
        *,
        from_: str,
        body: str = "STOP",
        to: str | None = None,
        service: str | None = None,
        advanced_opt_out: bool | None = None,
        deliver: bool = True,
        via: Via = "webhook",
        at: datetime | None = None,
        follow_redirect: bool = True,
        extra: Mapping[str, str] | None = None,
        num_media: int = 0,
    ) -> Texted:
        """A participant texts a sender, or a service's first sender; the message is logged and delivered.

        advanced_opt_out None: as the service is set; True or False: as if it were so for this message, which
        decides whether OptOutType / data.optOutType comes along. deliver=False: the webhook is "missed".
        """
        message, aoo = self.inbound(
            from_=from_, body=body, to=to, service=service, at=at, num_media=num_media
        )
        if advanced_opt_out is not None and message.messaging_service_sid:
            aoo = advanced_opt_out
        keyword = self._keyword(message)
        message.opt_out_type = keyword if aoo else None
        self.blocks.apply(message, keyword, advanced_opt_out=aoo)
        hook = self.hook_for(message)
        if hook is None:  # Drop: neither delivered nor logged (twilio-oai messaging_v1, InboundRequestUrl)
            return Texted(message, logged=False)
        # Of an inbound message, DateSent is when the webhook was called (twilio-oai api_v2010): null without one.
        message.sent = bool(hook.url)
        self.logs[message.account_sid].add([message])
        if not deliver:
            return Texted(message)
        events = self.send_events(message) if via != "webhook" else ()
        if via == "events":
            return Texted(message, events=events)
        texted = self.call_webhook(message, hook, follow_redirect=follow_redirect, extra=extra)
        return replace(texted, events=events)

    def inbound(
        self,
        *,
        from_: str,
        body: str = "STOP",
        to: str | None = None,
        service: str | None = None,
        at: datetime | None = None,
        num_media: int = 0,
    ) -> tuple[Message, bool]:
        """An inbound message, not logged and not sent, and whether its service has Advanced Opt-Out."""
        sender = self.sender_at(to) if to else self.first_sender(service, like=from_)
        owner = self.services.get(sender.service_sid or "")
        message = Message(
            from_,
            sender.address,
            body,
            at or utc_now(),
            account_sid=sender.account_sid,
            messaging_service_sid=sender.service_sid,
            num_media=num_media,
        )
        redacted = self.accounts[sender.account_sid].redact_numbers
        return message, bool(owner and owner.advanced_opt_out and not redacted)

    def _keyword(self, message: Message) -> str | None:
        # Twilio errors 23002 and 23004: number redaction excludes Twilio's handling of STOP.
        if self.accounts[message.account_sid].redact_numbers:
            return None
        return keyword_of(message.body, self.services.get(message.messaging_service_sid or ""))

    # -- the study texts

    def send_outbound(
        self,
        *,
        to: str,
        body: str = "Your visit is tomorrow.",
        service: str | None = None,
        from_: str | None = None,
        at: datetime | None = None,
    ) -> Message:
        """The study texts a participant, from a sender or through a service; returns the logged message.

        Blocked: MessageRefused at once with from_ alone; through a service it fails later, so that
        the log shows it as failed with error_code 21610 (Twilio error 21610).
        """
        sender = self.sender_at(from_) if from_ else self.first_sender(service, like=to)
        scope = service or sender.service_sid or sender.address
        message = Message(
            sender.address,
            to,
            body,
            at or utc_now(),
            account_sid=sender.account_sid,
            messaging_service_sid=sender.service_sid,
            direction="outbound-api",
            status="delivered",
        )
        if self.is_blocked(scope, to):
            if service is None:
                raise MessageRefused(UNSUBSCRIBED, "Attempt to send to unsubscribed recipient")
            message.status, message.error_code, message.sent = "failed", UNSUBSCRIBED, False
        self.logs[message.account_sid].add([message])
        return message

    def erase(self, sid: str) -> None:
        """Delete a message from the log, as REDCap does with those that it has handled."""
        for log in self.logs.values():
            if log.find(sid):
                log.remove(sid)

    def block(self, scope: str, participant: str) -> None:
        """Opt a participant out of a service (MG…) or sender, with no message at all (e.g. Consent API)."""
        self.blocks.add(scope, participant)

    def unblock(self, scope: str, participant: str) -> None:
        self.blocks.discard(scope, participant)

    def is_blocked(self, scope: str, participant: str) -> bool:
        return self.blocks.holds(scope, participant)

    # -- delivery

    def call_webhook(
        self,
        message: Message,
        hook: Hook | None = None,
        *,
        follow_redirect: bool = True,
        extra: Mapping[str, str] | None = None,
    ) -> Texted:
        """Deliver (again) a message to its webhook, with retries, fallback URL and <Redirect>."""
        target = hook or self.hook_for(message)
        if target is None or not target.url:
            return Texted(message)
        params, token = inbound_parameters(message, extra), self.accounts[message.account_sid].auth_token
        attempts, error = self.network.attempt(target.url, params, token, method=target.method)
        twiml = Twiml(error=error) if error else read_twiml(attempts[-1])
        if twiml.error and target.fallback_url:
            lost = {"ErrorCode": str(twiml.error), "ErrorUrl": signed_url(target.url)}
            more, error = self.network.attempt(
                target.fallback_url, params | lost, token, method=target.fallback_method
            )
            attempts += more
            twiml = Twiml(error=error) if error else read_twiml(attempts[-1])
        texted = Texted(message, attempts=tuple(attempts), twiml=twiml)
        if not twiml.redirect or not follow_redirect:
            return texted
        # Twilio docs: TwiML <Redirect>. Which parameters come again is not documented: here all do.
        url = urljoin(attempts[-1].request.url, twiml.redirect)
        onward = self.call_webhook(
            message, Hook(url, twiml.redirect_method), follow_redirect=False, extra=extra
        )
        return replace(texted, forwarded=onward)

    def send_events(self, *messages: Message) -> tuple[Exchange, ...]:
        """Deliver messages as one Event Streams batch to every subscribed webhook sink of their account.

        Without any such sink the batch goes to the program's own events URL. The answer is due in 5 s. Twilio
        repeats a failed delivery for up to 4 hours (Twilio docs: Event Streams); here a test calls this again.
        """
        account = self.accounts[messages[0].account_sid]
        urls = self.event_urls(account.sid) or [self.public_url + EVENTS_PATH]
        body = event_stream_body(*messages)
        return tuple(self.network.send(json_request(url, body, account.auth_token), read_s=5) for url in urls)

    def send(self, signed: SignedRequest) -> Exchange:
        """Send any request once: a replay (`texted.request`), or a forgery made with dataclasses.replace."""
        return self.network.send(signed)

    # -- faults and what was asked

    def fail(
        self,
        kind: FaultKind | str,
        *,
        resource: str = "",
        method: str = "",
        page: int | None = None,
        times: int | None = 1,
        seconds: float = 30.0,
    ) -> Fault:
        """Make REST requests fail: kind 429, 503, 500, 404, hang, reset or truncated; times=None: until mend()."""
        fault = Fault(FaultKind(str(kind)), resource, method, page, times, seconds)
        self.faults.append(fault)
        return fault

    def mend(self) -> None:
        """Take back all faults."""
        self.faults.clear()

    def take_fault(self, seen: LoggedRequest) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.meets(seen):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def request_counts(self) -> Counter[str]:
        """REST requests per resource: "Messages", "Services", "Services/PhoneNumbers", "Sinks" …"""
        return Counter(entry.resource for entry in list(self.request_log))

    def requests_to(self, resource: str) -> list[LoggedRequest]:
        return [entry for entry in list(self.request_log) if entry.resource == resource]

    # -- serving

    @contextlib.contextmanager
    def serve(self, port: int = 0, host: str = "127.0.0.1") -> Iterator[RunningServer]:
        """Serve the REST and control APIs until the block ends; port 0 takes any free one."""
        with running_server(self, host, port) as server:
            yield server
