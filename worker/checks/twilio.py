"""Twilio's side: the account, and for each project the way of its incoming messages."""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from shared.config import Config, Project
from shared.config.schema import TwilioAccount
from shared.domain.addresses import PhoneHasher
from shared.domain.endpoints import TEST_SID_PREFIX
from shared.domain.events import Source
from shared.errors import ConfigError, TwilioRejected, TwilioUnavailable
from shared.ledger import Ledger, StoredEvent
from shared.ledger.platform.service_senders import ServiceSenders
from shared.redis_client import RedisClient
from worker.checks.findings import Finding, FindingId, Passed
from worker.twilio.account import (
    MessagingService,
    Number,
    TwilioAccountView,
    asks_for_retries,
    same_address,
    without_login,
)
from worker.twilio.client import REDACTED_DIGITS, rest_client, translate_errors, working_client
from worker.twilio.service_senders import learn_service_senders
from worker.twilio.setup.resources import Webhook, saved_resources
from worker.twilio.setup.saved_settings import SavedSettings


def check_account(name: str, account: TwilioAccount) -> Iterator[Finding | Passed]:
    """Which tokens open the account, and whether one of them is the primary token, which signs webhooks."""
    subject, tokens = f"twilio.{name}", _tokens(account)
    opened: dict[int, Any] = {}
    for place in tokens:
        found = _open_account(subject, account, place)
        if isinstance(found, Finding):
            yield found
            return
        if found is not None:
            opened[place] = found
    yield from _judge_tokens(subject, account, tokens, opened)


def _open_account(subject: str, account: TwilioAccount, place: int) -> Any:
    """The account's own record as Twilio shows it; None if the token is rejected, a Finding if Twilio cannot tell."""
    try:
        with translate_errors():
            return rest_client(account, token=place).api.v2010.accounts(account.account_sid).fetch()
    except TwilioUnavailable as error:
        return Finding(id="twilio-unreachable", subject=subject, observed=str(error))
    except TwilioRejected as error:
        if error.code == "twilio_token_rejected":
            return None
        return Finding(id="twilio-refused", subject=subject, observed=error.detail)


def _judge_tokens(
    subject: str, account: TwilioAccount, tokens: dict[int, str], opened: dict[int, Any]
) -> Iterator[Finding | Passed]:
    rejected = [place for place in tokens if place not in opened]
    if not opened:
        if tokens:
            yield Finding(id="twilio-token-refused", subject=subject, observed=f"{_which(rejected)} refused")
        return
    places = list(opened)
    yield Passed(subject, f"{_which(places)} the account {account.account_sid}".replace(" is ", " opens "))
    if rejected:
        yield Finding(id="twilio-token-stale", subject=subject, observed=f"{_which(rejected)} refused")
    yield from _judge_account(subject, tokens, places, opened[places[-1]])


def _judge_account(
    subject: str, tokens: dict[int, str], places: list[int], found: Any
) -> Iterator[Finding | Passed]:
    """The account's record names its primary token, which signs; it stays in memory here."""
    primary, status = str(found.auth_token or ""), str(found.status)
    if primary and primary not in tokens.values():
        observed = f"{_which(places)} a secondary token"
        yield Finding(id="twilio-token-not-signing", subject=subject, observed=observed)
    if status not in {"active", "None"}:
        yield Finding(id="twilio-account-inactive", subject=subject, observed=f"its status is {status}")


def _tokens(account: TwilioAccount) -> dict[int, str]:
    """The tokens that are at their places; missing ones are reported as secret-missing."""
    found = {}
    for place, secret in enumerate(account.auth_token):
        try:
            found[place] = secret.resolve()
        except ConfigError:
            continue
    return found


def _which(places: list[int]) -> str:
    listed = " and ".join(f"auth_token number {place + 1}" for place in places)
    return f"{listed} {'is' if len(places) == 1 else 'are'}"


def check_inbound(name: str, config: Config, redis: RedisClient) -> Iterator[Finding | Passed]:
    """How this project's incoming messages come here, if they do."""
    project = config.projects[name]
    try:
        side = TwilioAccountView(working_client(config.twilio[project.twilio]), config.public_url)
        yield from _Way(name, project, side, redis).all()
        senders = ServiceSenders(redis, PhoneHasher(config.hash_key.resolve()))
        learn_service_senders(side.client, project.messaging_service_sid, senders)
    except TwilioUnavailable as error:
        yield Finding(id="twilio-unreachable", subject=name, observed=str(error))
    except TwilioRejected as error:
        # The account's own check reports these.
        if error.code not in {"twilio_token_rejected", "twilio_not_permitted"}:
            yield Finding(id="twilio-refused", subject=name, observed=error.detail)
    except ConfigError:
        return  # reported as secret-missing


def _is_test(entry: StoredEvent) -> bool:
    return entry.event_id.startswith(TEST_SID_PREFIX)


class _Way:
    """The way from a participant's text to the web process."""

    def __init__(self, name: str, project: Project, side: TwilioAccountView, redis: RedisClient) -> None:
        self._name = name
        self._project = project
        self._side = side
        self._redis = redis
        self._streams = False

    def _finding(self, id_: FindingId, observed: str) -> Finding:
        return Finding(id=id_, subject=self._name, observed=observed)

    def all(self) -> Iterator[Finding | Passed]:
        yield from self._sinks()
        numbers: list[Number] = []
        if self._project.messaging_service_sid:
            service = self._side.service(self._project.messaging_service_sid)
            if service is None:
                seen = f"the account has no {self._project.messaging_service_sid}"
                yield self._finding("service-missing", seen)
            else:
                numbers = self._side.service_numbers(service.sid)
                yield from self._service(service, numbers)
        yield from self._own_numbers({number.address for number in numbers})
        yield from self._redaction(numbers)
        yield from self._forwarding(numbers)

    # --- forwarding -------------------------------------------------------------------------------

    def _forwarding(self, numbers: list[Number]) -> Iterator[Finding]:
        """Whether messages are forwarded to where they went before optout setup."""
        configured = str(self._project.forward_url or "")
        for whose, former in self._former_addresses(numbers):
            if not same_address(former, configured):
                now = f"forward_url is {configured}" if configured else "forward_url is missing"
                seen = f"before optout setup, {whose} called {without_login(former)}; {now}"
                yield self._finding("forwarding-differs", seen)

    def _former_addresses(self, numbers: list[Number]) -> Iterator[tuple[str, str]]:
        saved = saved_resources(self._side, SavedSettings(self._redis, str(self._side.client.account_sid)))
        for webhook in saved:
            if not (isinstance(webhook, Webhook) and webhook.brings_texts_of(self._project)):
                continue
            if former := webhook.former_url:
                yield webhook.describe(), former
            elif self._project.forward_url is not None:  # without it: replies-not-forwarded
                yield from (
                    (each.name, each.sms_url) for each in numbers if self._side.is_foreign(each.sms_url)
                )

    # --- Event Streams ----------------------------------------------------------------------------

    def _sinks(self) -> Iterator[Finding | Passed]:
        sinks = self._side.sinks()
        self._streams = any(sink.works for sink in sinks)
        if self._streams:
            yield Passed(self._name, "an Event Streams sink brings incoming messages")
            return
        for sink in sinks:
            if sink.status == "failed":
                yield self._finding("sink-failed", f"sink {sink.sid} has failed")
            elif not sink.subscribed:
                yield self._finding("sink-not-subscribed", f"sink {sink.sid} has no such subscription")

    # --- the Messaging Service --------------------------------------------------------------------

    def _service(self, service: MessagingService, numbers: list[Number]) -> Iterator[Finding | Passed]:
        others = self._side.other_senders(service.sid)
        yield Passed(self._name, f"senders of Messaging Service {service.sid}: {len(numbers) + others}")
        if not numbers and not others:
            yield self._finding("service-without-senders", f"{service.sid} has none")
        if service.drops:
            yield self._finding("service-drops-messages", f"{service.sid} has no address and does not defer")
        elif service.defers_to_number:
            for number in numbers:
                yield from self._number(number)
        else:
            yield from self._service_address(service, numbers)
        if any(number.address.startswith("+1") for number in numbers):
            yield from self._campaign(service)

    def _service_address(
        self, service: MessagingService, numbers: list[Number]
    ) -> Iterator[Finding | Passed]:
        if not self._side.is_ours(service.inbound_url):
            if not self._streams:
                yield self._finding("inbound-elsewhere", f"{service.sid} sends them to another address")
            return
        yield Passed(self._name, f"{service.sid} calls {self._side.inbound_url}")
        yield from self._address(
            service.sid, service.inbound_url, service.inbound_method, service.fallback_url
        )
        yield from self._advanced_opt_out()
        losing = [
            number.name for number in numbers if number.sms_url and not self._side.is_ours(number.sms_url)
        ]
        if losing and self._project.forward_url is None:
            yield self._finding(
                "replies-not-forwarded", f"{', '.join(losing)} has an address that is not called"
            )

    def _address(self, whose: str, url: str, method: str, fallback: str) -> Iterator[Finding]:
        if method != "POST":
            yield self._finding("inbound-by-get", f"{whose} uses {method}")
        if not asks_for_retries(url):
            yield self._finding("webhook-without-retry", f"{whose}: its address has no such fragment")
        if not fallback:
            yield self._finding("webhook-without-fallback", f"{whose} has none")

    def _advanced_opt_out(self) -> Iterator[Finding]:
        """Passed from the first real STOP: without it, no webhook event of Twilio's could be in the ledger.

        Those of `optout test-message` say nothing of it: they bring the OptOutType with them. The figures count
        them, too, so the events themselves are read.
        """
        if self._project.keyword_fallback or self._streams:
            return
        entries = Ledger(self._redis).entries(self._name)
        if not any(entry.source is Source.WEBHOOK and not _is_test(entry) for entry in entries):
            seen = "the ledger holds no STOP or START of Twilio's that came by webhook"
            yield self._finding("advanced-opt-out-unseen", seen)

    def _campaign(self, service: MessagingService) -> Iterator[Finding | Passed]:
        status = self._side.campaign_status(service.sid)
        if status == "VERIFIED":
            yield Passed(self._name, "its A2P 10DLC campaign is verified")
        elif status is None:
            yield Passed(self._name, "Twilio does not tell whether it has an A2P 10DLC campaign")
        else:
            yield self._finding("campaign-unverified", f"{service.sid}: {status or 'no campaign'}")

    # --- numbers outside the service --------------------------------------------------------------

    def _own_numbers(self, in_service: set[str]) -> Iterator[Finding | Passed]:
        for address in self._project.senders:
            if address in in_service or not address.startswith("+"):
                continue  # short codes and channel senders have no record of their own here
            number = self._side.number(address)
            if number is None:
                yield self._finding("number-unknown", f"the number that ends in {address[-4:]}")
                continue
            service_sid = self._side.service_of(number)
            if service_sid:
                yield self._finding("number-in-service", f"{number.name} is in {service_sid}")
            else:
                yield from self._number(number)

    def _number(self, number: Number) -> Iterator[Finding | Passed]:
        if self._streams:
            return
        if number.application_sid:
            yield self._finding("number-has-application", f"{number.name} has {number.application_sid}")
        elif not self._side.is_ours(number.sms_url):
            where = "another address" if number.sms_url else "no address"
            yield self._finding("inbound-elsewhere", f"{number.name} sends them to {where}")
        else:
            yield Passed(self._name, f"{number.name} calls {self._side.inbound_url}")
            yield from self._address(number.name, number.sms_url, number.sms_method, number.sms_fallback_url)

    # --- redaction --------------------------------------------------------------------------------

    def _redaction(self, numbers: list[Number]) -> Iterator[Finding]:
        """No API shows the setting; the latest messages do."""
        senders = dict.fromkeys([*(number.address for number in numbers), *self._project.senders])
        latest = list(chain.from_iterable(map(self._side.latest_inbound, islice(senders, 5))))
        if any(number for number, _ in latest):
            yield self._finding("numbers-redacted", f"the latest incoming messages show …{REDACTED_DIGITS}")
        elif latest and all(body for _, body in latest):
            yield self._finding("bodies-redacted", f"the latest {len(latest)} incoming messages have no body")
