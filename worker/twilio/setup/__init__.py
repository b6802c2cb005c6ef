"""Twilio's side of a project, planned first and then done: what `optout setup` shows and applies.

Whatever is changed is remembered as it was before (in Redis, per account and resource: SIDs, and addresses whole,
so with a login where somebody had put one into them), so that it can be put back. Plans show addresses without
it. Advanced Opt-Out and campaign registration are the Console's alone.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from shared.config import Config, Project
from shared.domain.endpoints import INBOUND_EVENT
from shared.ledger import keys
from shared.redis_client import RedisClient
from worker.twilio.account import (
    RETRY_FRAGMENT,
    MessagingService,
    Number,
    TwilioAccountView,
    asks_for_retries,
    without_login,
)
from worker.twilio.client import found_or_none, translate_errors

# The version of Messaging.InboundMessageV1 that carries optOutType. Source: Twilio's event schemas.
INBOUND_SCHEMA_VERSION = 6


class Mode(StrEnum):
    """How incoming messages come here."""

    EVENTS = "events"  # an Event Streams sink beside whatever handles the messages now
    WEBHOOK = "webhook"  # the address that Twilio calls is ours, and hands on where it has to


@dataclass(frozen=True, slots=True)
class Step:
    """One change: what it is, in a sentence, and how it is made."""

    text: str
    apply: Callable[[], None]


@dataclass(slots=True)
class Plan:
    """What would be done. `blocked` says what a person has to decide or mend first; nothing is done then."""

    mode: Mode
    steps: list[Step] = field(default_factory=list)
    satisfied: list[str] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)
    configuration: dict[str, str] = field(default_factory=dict)  # keys to write into the project's table
    manual_steps: list[str] = field(default_factory=list)  # what only Twilio's Console can do

    def add(self, text: str, apply: Callable[[], None]) -> None:
        """Plan a change."""
        self.steps.append(Step(text, apply))


class SavedSettings:
    """What the resources of an account were before they were changed, by SID."""

    def __init__(self, redis: RedisClient, account_sid: str) -> None:
        self._redis = redis
        self._key = keys.twilio_setup(account_sid)

    def save(self, sid: str, before: dict[str, Any]) -> None:
        """Keep the first state only: a second run must not take our own settings for the original ones."""
        self._redis.hsetnx(self._key, sid, json.dumps(before))

    def all(self) -> dict[str, dict[str, Any]]:
        """Everything that is remembered, in no order."""
        return {sid: json.loads(text) for sid, text in self._redis.hgetall(self._key).items()}

    def forget(self, sid: str) -> None:
        """It has been put back."""
        self._redis.hdel(self._key, sid)


def choose_mode(project: Project, side: TwilioAccountView) -> tuple[Mode, str]:
    """The mode that disturbs nothing, and why."""
    if project.forward_url is not None:
        return Mode.WEBHOOK, "forward_url is configured"
    service_sid = project.messaging_service_sid
    service = side.service(service_sid) if service_sid else None
    if service is not None and service.inbound_url and not side.is_ours(service.inbound_url):
        return Mode.EVENTS, "the service has an address of its own, which stays as it is"
    numbers = side.service_numbers(service.sid) if service else []
    numbers += filter(None, map(side.number, project.senders))
    if any(number.application_sid or _is_foreign(number.sms_url, side) for number in numbers):
        return Mode.EVENTS, "the number has an address of its own (REDCap's, perhaps), which stays as it is"
    return Mode.WEBHOOK, "nothing else handles the messages, and webhooks are the quickest"


def _is_foreign(url: str, side: TwilioAccountView) -> bool:
    return bool(url) and not side.is_ours(url)


def plan_setup(name: str, config: Config, side: TwilioAccountView, redis: RedisClient, mode: Mode) -> Plan:
    """What has to be done for a project. Changes nothing. Raises TwilioUnavailable or TwilioRejected."""
    project = config.projects[name]
    saved = SavedSettings(redis, config.twilio[project.twilio].account_sid)
    return _Planner(name, project, side, saved, Plan(mode)).plan()


class _Planner:
    """Looks at each part, and plans what differs."""

    def __init__(
        self, name: str, project: Project, side: TwilioAccountView, saved: SavedSettings, plan: Plan
    ) -> None:
        self._name = name
        self._project = project
        self._side = side
        self._client = side.client
        self._saved = saved
        self._plan = plan

    def plan(self) -> Plan:
        numbers = self._own_numbers()
        service = self._find_service(numbers)
        if self._plan.blockers:
            return self._plan
        if service is not None:
            self._attach(service.sid, numbers)
            self._receive(service, {number.sid: number for number in [*self._held(service), *numbers]})
        elif self._project.keyword_fallback:
            # A number that is meant to stay outside any service.
            self._receive(None, {number.sid: number for number in numbers})
        else:
            self._create_service(numbers)
        return self._plan

    # --- the Messaging Service --------------------------------------------------------------------

    def _own_numbers(self) -> list[Number]:
        found = []
        for address in self._project.senders:
            number = self._side.number(address) if address.startswith("+") else None
            if number is not None:
                found.append(number)
            elif address.startswith("+"):
                self._plan.blockers.append(
                    f"the account does not have the number that ends in {address[-4:]}: mend senders"
                )
        return found

    def _find_service(self, numbers: list[Number]) -> MessagingService | None:
        wanted = self._project.messaging_service_sid
        if wanted is not None:
            service = self._side.service(wanted)
            if service is None:
                self._plan.blockers.append(
                    f"the account has no Messaging Service {wanted}: mend messaging_service_sid, or take it out "
                    "and name the number in senders; then one is created"
                )
            return service
        sids = {sid for number in numbers if (sid := self._side.service_of(number))}
        if len(sids) > 1:
            self._plan.blockers.append(
                f"the numbers are in several Messaging Services ({', '.join(sorted(sids))}): name one in "
                "messaging_service_sid"
            )
            return None
        sid = sids.pop() if sids else self._left_over()
        if not sid:
            return None
        self._plan.configuration["messaging_service_sid"] = sid
        return self._side.service(sid)

    def _left_over(self) -> str:
        """A service that an earlier run created for this project, and that has no number (yet, or any more)."""
        for sid, before in self._saved.all().items():
            service = self._side.service(sid) if before["kind"] == "created_service" else None
            if service is not None and service.name == _service_name(self._name):
                return sid
        return ""

    def _create_service(self, numbers: list[Number]) -> None:
        """A service of its own; only when it exists its SID is known, so the rest is planned within."""
        if not numbers:
            self._plan.blockers.append("senders names no number of this account to make a service for")
        elif self._plan.mode is Mode.WEBHOOK:
            self._forward([number.sms_url for number in numbers])  # blocks, where they differ
        if self._plan.blockers:
            return
        self._plan.add(
            f"create the Messaging Service “{_service_name(self._name)}”, "
            "attach the number to it, and have it receive messages as below",
            partial(self._create_and_go_on, numbers),
        )
        if self._plan.mode is Mode.EVENTS:
            self._events()
        else:
            self._plan.manual_steps += _ADVANCED_OPT_OUT
        self._plan.manual_steps += _campaign_steps(numbers)

    def _create_and_go_on(self, numbers: list[Number]) -> None:
        with translate_errors():
            made = self._client.messaging.v1.services.create(
                friendly_name=_service_name(self._name), use_inbound_webhook_on_number=True
            )
        self._saved.save(str(made.sid), {"kind": "created_service"})
        self._plan.configuration["messaging_service_sid"] = str(made.sid)
        rest = Plan(self._plan.mode, configuration=self._plan.configuration)
        follow = _Planner(self._name, self._project, self._side, self._saved, rest)
        service = self._side.service(str(made.sid))
        follow._attach(str(made.sid), numbers)
        if rest.mode is Mode.WEBHOOK:
            follow._receive(service, {number.sid: number for number in numbers})
        for step in rest.steps:
            step.apply()

    def _held(self, service: MessagingService) -> list[Number]:
        return self._side.service_numbers(service.sid)

    def _attach(self, service_sid: str, numbers: list[Number]) -> None:
        held = {number.sid for number in self._side.service_numbers(service_sid)}
        for number in numbers:
            if number.sid in held:
                self._plan.satisfied.append(f"{number.name} is in {service_sid}")
            elif other := self._side.service_of(number):
                self._plan.blockers.append(
                    f"{number.name} is in another Messaging Service, {other}: take it out there first, or name "
                    "that service in messaging_service_sid"
                )
            else:
                self._plan.add(
                    f"attach {number.name} to {service_sid} as a sender",
                    partial(self._attach_one, service_sid, number),
                )

    def _attach_one(self, service_sid: str, number: Number) -> None:
        self._saved.save(number.sid + "@", {"kind": "attached", "service": service_sid})
        with translate_errors():
            numbers = self._client.messaging.v1.services(service_sid).phone_numbers
            numbers.create(phone_number_sid=number.sid)

    # --- the way in -------------------------------------------------------------------------------

    def _receive(self, service: MessagingService | None, numbers: dict[str, Number]) -> None:
        if self._plan.mode is Mode.EVENTS:
            self._events()
            if service is not None and service.drops:
                self._plan.add(
                    f"let {service.sid} defer to its numbers: now it drops messages, and Twilio keeps no trace",
                    partial(self._change_service, service, {"use_inbound_webhook_on_number": True}),
                )
            return
        if service is not None:
            self._service_webhook(service, list(numbers.values()))
            if not self._project.keyword_fallback:
                self._plan.manual_steps += _ADVANCED_OPT_OUT
            if self._side.campaign_status(service.sid) != "VERIFIED":
                self._plan.manual_steps += _campaign_steps(list(numbers.values()))
        else:
            for number in numbers.values():
                self._number_webhook(number)

    def _service_webhook(self, service: MessagingService, numbers: list[Number]) -> None:
        before = [service.inbound_url] if not service.defers_to_number else []
        before += [number.sms_url for number in numbers]
        forward = self._forward(before)
        if self._plan.blockers:
            return
        wanted = {
            "inbound_request_url": self._side.inbound_url + RETRY_FRAGMENT,
            "inbound_method": "POST",
            "fallback_url": forward or self._side.inbound_url + RETRY_FRAGMENT,
            "fallback_method": "POST",
            "use_inbound_webhook_on_number": False,
        }
        now = _service_settings(service)
        if self._is_as_wanted(now, wanted, "inbound_request_url"):
            self._plan.satisfied.append(f"{service.sid} calls {self._side.inbound_url}")
            return
        self._plan.add(
            f"have {service.sid} call {wanted['inbound_request_url']}\n"
            f"(now: {_now(service)}), with the fallback {without_login(str(wanted['fallback_url']))}",
            partial(self._change_service, service, wanted),
        )

    def _is_as_wanted(self, now: dict[str, Any], wanted: dict[str, Any], address: str) -> bool:
        """A study may have tuned the fragment: only whether it asks for retries counts."""
        same = all(now[key] == value for key, value in wanted.items() if key != address)
        return same and self._side.is_ours(now[address]) and asks_for_retries(now[address])

    def _number_webhook(self, number: Number) -> None:
        if number.application_sid:
            self._plan.blockers.append(
                f"{number.name} has the TwiML application {number.application_sid}, which takes its messages: "
                "take it off in the Console, or use --mode events"
            )
            return
        forward = self._forward([number.sms_url])
        wanted = {
            "sms_url": self._side.inbound_url + RETRY_FRAGMENT,
            "sms_method": "POST",
            "sms_fallback_url": forward or self._side.inbound_url + RETRY_FRAGMENT,
            "sms_fallback_method": "POST",
        }
        now = _number_settings(number)
        if self._is_as_wanted(now, wanted, "sms_url"):
            self._plan.satisfied.append(f"{number.name} calls {self._side.inbound_url}")
            return
        self._plan.add(
            f"have {number.name} call {wanted['sms_url']}\n"
            f"(now: {without_login(number.sms_url) or 'nothing'}), "
            f"with the fallback {without_login(wanted['sms_fallback_url'])}",
            partial(self._change_number, number, wanted),
        )

    def _forward(self, addresses: list[str]) -> str:
        """Where replies have to be handed on to: what is configured, or what was called until now."""
        if self._project.forward_url is not None:
            return str(self._project.forward_url)
        foreign = list(dict.fromkeys(url for url in addresses if _is_foreign(url, self._side)))
        if len(foreign) > 1:
            self._plan.blockers.append(
                "the numbers have different addresses, and Twilio can hand a message on to one only: "
                + "; ".join(map(without_login, foreign))
                + ". Write the right one in forward_url, or use --mode events"
            )
        if any("@" in url for url in foreign):
            self._plan.blockers.append(
                f"{without_login(foreign[0])} is called with a login, which forward_url cannot hold: "
                "use --mode events, or write an address without one in forward_url"
            )
        elif foreign:
            self._plan.configuration["forward_url"] = foreign[0].partition("#")[0]
        return foreign[0] if foreign else ""

    def _change_service(self, service: MessagingService, wanted: dict[str, Any]) -> None:
        self._saved.save(service.sid, {"kind": "service", "before": _service_settings(service)})
        with translate_errors():
            self._client.messaging.v1.services(service.sid).update(**wanted)

    def _change_number(self, number: Number, wanted: dict[str, Any]) -> None:
        self._saved.save(number.sid, {"kind": "number", "before": _number_settings(number)})
        with translate_errors():
            self._client.incoming_phone_numbers(number.sid).update(**wanted)

    # --- Event Streams ----------------------------------------------------------------------------

    def _events(self) -> None:
        sinks = self._side.sinks()
        if any(sink.works for sink in sinks):
            self._plan.satisfied.append(
                f"an Event Streams sink brings incoming messages to {self._side.events_url}"
            )
            return
        for sink in sinks:
            if sink.status != "failed":
                self._plan.add(
                    f"subscribe the sink {sink.sid} to incoming messages", partial(self._subscribe, sink.sid)
                )
                return
        for sink in sinks:
            self._plan.add(
                f"delete the sink {sink.sid}, which has failed",
                partial(_delete_sink, self._side, sink.sid, sink.subscriptions),
            )
        self._plan.add(
            f"create an Event Streams sink to {self._side.events_url}, subscribed to incoming messages; "
            "no other address is touched",
            self._create_sink,
        )

    def _create_sink(self) -> None:
        destination = {"destination": self._side.events_url, "method": "POST", "batch_events": False}
        with translate_errors():
            sink = self._client.events.v1.sinks.create(
                description="Opt-Out Bridge", sink_configuration=destination, sink_type="webhook"
            )
        self._saved.save(str(sink.sid), {"kind": "sink"})
        self._subscribe(str(sink.sid))

    def _subscribe(self, sink_sid: str) -> None:
        with translate_errors():
            made = self._client.events.v1.subscriptions.create(
                description="Opt-Out Bridge: incoming messages",
                sink_sid=sink_sid,
                types=[{"type": INBOUND_EVENT, "schema_version": INBOUND_SCHEMA_VERSION}],
            )
        self._saved.save(str(made.sid), {"kind": "subscription", "sink": sink_sid})


def _delete_sink(side: TwilioAccountView, sink_sid: str, subscriptions: tuple[str, ...]) -> None:
    """Subscriptions first: Twilio keeps a sink that is used."""
    with translate_errors():
        for sid in subscriptions:
            side.client.events.v1.subscriptions(sid).delete()
        side.client.events.v1.sinks(sink_sid).delete()


def _service_name(project: str) -> str:
    return f"Opt-Out Bridge: {project}"


def _now(service: MessagingService) -> str:
    if service.defers_to_number:
        return "its numbers' own addresses"
    return without_login(service.inbound_url) or "nothing, messages are dropped"


def _service_settings(service: MessagingService) -> dict[str, Any]:
    return {
        "inbound_request_url": service.inbound_url,
        "inbound_method": service.inbound_method,
        "fallback_url": service.fallback_url,
        "fallback_method": service.fallback_method,
        "use_inbound_webhook_on_number": service.defers_to_number,
    }


def _number_settings(number: Number) -> dict[str, Any]:
    return {
        "sms_url": number.sms_url,
        "sms_method": number.sms_method,
        "sms_fallback_url": number.sms_fallback_url,
        "sms_fallback_method": number.sms_fallback_method,
    }


_ADVANCED_OPT_OUT = [
    "Advanced Opt-Out, without which webhooks say nothing about opt-outs: in the Twilio Console open Messaging, "
    "Services, the service, Opt-Out Management, and enable it. Look through the texts that it sends, and add "
    "REVOKE and OPTOUT to the opt-out keywords if they are missing. Only Twilio's support can turn it off again. "
    "(If it must stay off, write keyword_fallback = true in the project.)"
]


def _campaign_steps(numbers: list[Number]) -> list[str]:
    if not any(number.address.startswith("+1") for number in numbers):
        return []
    return [
        "A2P 10DLC, without which US carriers block ordinary numbers: in the Twilio Console open Messaging, "
        "Regulatory Compliance, register the brand (your institution) and a campaign for this service; "
        "approval takes days. Toll-free numbers and short codes have their own verification."
    ]


# --- putting back ---------------------------------------------------------------------------------


def plan_undo(
    name: str, config: Config, side: TwilioAccountView, redis: RedisClient, undone: list[str]
) -> Plan:
    """What has to be done to put back what was. `undone` are all projects that are given up together.

    Changes nothing: that something is gone is forgotten after consent, too.
    """
    return _Undo(name, config, side, redis, undone).plan()


class _Undo:
    """Puts back the resources of one project, except those that other projects go on using."""

    def __init__(
        self, name: str, config: Config, side: TwilioAccountView, redis: RedisClient, undone: list[str]
    ) -> None:
        self._project = config.projects[name]
        self._side = side
        self._client = side.client
        self._saved = SavedSettings(redis, config.twilio[self._project.twilio].account_sid)
        self._plan = Plan(Mode.WEBHOOK)
        self._staying = [
            other
            for key, other in config.projects.items()
            if key not in undone and other.twilio == self._project.twilio
        ]

    def plan(self) -> Plan:
        handlers: dict[str, Callable[[str, dict[str, Any]], None]] = {
            "service": self._service,
            "number": self._number,
            "attached": self._attached,
            "sink": self._sink,
            "subscription": self._subscription,
            "created_service": self._created_service,
        }
        # What was made last goes first: a sink's subscription before the sink, senders before their service.
        order = ("subscription", "sink", "attached", "number", "service", "created_service")
        remembered = self._saved.all()
        for kind in order:
            for sid, before in remembered.items():
                if before["kind"] == kind:
                    handlers[kind](sid, before)
        if not remembered:
            self._plan.satisfied.append("optout setup has changed nothing in this account that is remembered")
        return self._plan

    def _uses(self, project: Project, service_sid: str) -> bool:
        return project.messaging_service_sid == service_sid

    def _concerns(self, service_sid: str) -> bool:
        """Whether a service is this project's and nobody else's."""
        if any(self._uses(other, service_sid) for other in self._staying):
            self._plan.satisfied.append(f"{service_sid} stays: another project uses it")
            return False
        if self._uses(self._project, service_sid):
            return True
        return any(number.address in self._project.senders for number in self._numbers_of(service_sid))

    def _numbers_of(self, service_sid: str) -> list[Number]:
        return self._side.service_numbers(service_sid) if self._side.service(service_sid) else []

    def _forget(self, key: str, text: str) -> None:
        """Plan to put back nothing. What is gone is forgotten for whichever project: that of a SID is not known."""
        self._plan.add(text, partial(self._saved.forget, key))

    def _service(self, sid: str, before: dict[str, Any]) -> None:
        service, was = self._side.service(sid), before["before"]
        if service is None:
            self._forget(sid, f"forget {sid}, which no longer exists")
        elif not self._concerns(sid):
            return
        elif _is_foreign(service.inbound_url, self._side):
            self._forget(sid, f"leave {sid} as it is: somebody has changed its address since")
        else:
            where = "its numbers' own addresses" if was["use_inbound_webhook_on_number"] else ""
            where = where or without_login(was["inbound_request_url"]) or "nothing, as before"
            self._plan.add(
                f"have {sid} send messages to {where} again", partial(self._restore_service, sid, was)
            )

    def _restore_service(self, sid: str, was: dict[str, Any]) -> None:
        with translate_errors():
            self._client.messaging.v1.services(sid).update(**was)
        self._saved.forget(sid)

    def _number(self, sid: str, before: dict[str, Any]) -> None:
        number, was = self._side.number_by_sid(sid), before["before"]
        if number is None:
            self._forget(sid, f"forget the number {sid}, which the account no longer has")
        elif number.address not in self._project.senders:
            return
        elif _is_foreign(number.sms_url, self._side):
            self._forget(sid, f"leave {number.name} as it is: somebody has changed its address since")
        else:
            where = without_login(was["sms_url"]) or "nothing, as before"
            self._plan.add(
                f"have {number.name} send messages to {where} again", partial(self._restore_number, sid, was)
            )

    def _restore_number(self, sid: str, was: dict[str, Any]) -> None:
        with translate_errors():
            self._client.incoming_phone_numbers(sid).update(**was)
        self._saved.forget(sid)

    def _attached(self, key: str, before: dict[str, Any]) -> None:
        sid, service_sid = key.removesuffix("@"), before["service"]
        held = {number.sid: number for number in self._numbers_of(service_sid)}
        if sid not in held:
            self._forget(key, f"forget that the number {sid} was put into {service_sid}: it is there no more")
        elif self._concerns(service_sid):
            # Deletes it from the service's senders, not from the account.
            sender = self._client.messaging.v1.services(service_sid).phone_numbers(sid)
            self._plan.add(f"take {held[sid].name} out of {service_sid}", partial(self._delete, sender, key))

    def _subscription(self, sid: str, before: dict[str, Any]) -> None:
        if self._staying:
            return  # the sink's line says why
        if self._side.has_subscription(sid):
            self._plan.add(
                f"delete the subscription {sid} of the sink {before['sink']}",
                partial(self._delete, self._client.events.v1.subscriptions(sid), sid),
            )
        else:
            self._forget(sid, f"forget the subscription {sid}, which no longer exists")

    def _sink(self, sid: str, _before: dict[str, Any]) -> None:
        if self._staying:
            self._plan.satisfied.append(f"the sink {sid} stays: it serves the account's other projects")
        elif self._side.has_sink(sid):
            self._plan.add(
                f"delete the Event Streams sink {sid}",
                partial(self._delete, self._client.events.v1.sinks(sid), sid),
            )
        else:
            self._forget(sid, f"forget the sink {sid}, which no longer exists")

    def _delete(self, resource: Any, key: str) -> None:
        """One that somebody else has deleted meanwhile is gone all the same."""
        found_or_none(resource.delete)
        self._saved.forget(key)

    def _created_service(self, sid: str, _before: dict[str, Any]) -> None:
        """Kept: it may hold a campaign and Advanced Opt-Out by now, which deleting would lose."""
        if self._side.service(sid) is None:
            self._forget(sid, f"forget the Messaging Service {sid}, which no longer exists")
        elif self._concerns(sid):
            self._plan.manual_steps.append(
                f"The Messaging Service {sid} was created by optout setup and is left, without senders: delete it "
                "in the Console if neither its campaign nor its opt-out settings are needed any more."
            )
