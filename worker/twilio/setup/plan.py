"""What `optout setup` would do at Twilio for a project: planned first, shown, and applied after consent.

Whatever is changed is saved as it was before, so that --undo can restore it. Plans show addresses without logins.
Advanced Opt-Out and campaign registration are possible in Twilio's Console only.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

from shared.config.schema import Config, Project
from shared.redis_client import RedisClient
from worker.twilio.account import MessagingService, Number, TwilioAccountView, without_login
from worker.twilio.setup.resources import (
    CreatedService,
    EventSink,
    NumberWebhook,
    Resource,
    ServiceSender,
    ServiceWebhook,
    Webhook,
    create_service,
    create_sink,
    saved_resources,
    subscribe,
)
from worker.twilio.setup.saved_settings import SavedSettings

ADVANCED_OPT_OUT = (
    "Advanced Opt-Out, without which webhooks do not say how Twilio handled a text: in the Twilio Console open "
    "Messaging, Services, the service, Opt-Out Management, and enable it. Check the texts that it sends, and add "
    "REVOKE and OPTOUT to the opt-out keywords if they are missing. Only Twilio's support can turn it off again. (If "
    "it must stay off, write keyword_fallback = true in the project.)"
)
CAMPAIGN = (
    "A2P 10DLC, without which US carriers block ordinary numbers: in the Twilio Console open Messaging, Regulatory "
    "Compliance, register the brand (your institution) and a campaign for this service; approval takes days. "
    "Toll-free numbers and short codes have their own verification."
)


CONSENT_API = (
    "The Consent Management API, which block_at_twilio needs: ask Twilio's support to enable it for this account, "
    "and to confirm that your Business Associate Addendum covers it. Else leave block_at_twilio out. "
    "optout check says whether it is enabled; optout test-message --block tries it with your own number."
)


class Mode(StrEnum):
    """How incoming messages reach this program."""

    EVENTS = "events"  # an Event Streams sink, besides the present handler of the messages
    WEBHOOK = "webhook"  # Twilio calls this program, which forwards if necessary


@dataclass(frozen=True, slots=True)
class Step:
    """One change: a sentence about it, and the function that makes it."""

    text: str
    apply: Callable[[], None]


@dataclass(slots=True)
class Plan:
    """What would be done. Nothing is done as long as there are blockers, which a person has to resolve."""

    mode: Mode
    steps: list[Step] = field(default_factory=list)
    satisfied: list[str] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)
    configuration: dict[str, str] = field(default_factory=dict)  # keys to write into the project's table
    manual_steps: list[str] = field(default_factory=list)  # possible in Twilio's Console only

    def block(self, text: str) -> None:
        """Record what a person has to resolve first."""
        self.blockers.append(text)

    def add(self, text: str, apply: Callable[[], None]) -> None:
        """Plan a change."""
        self.steps.append(Step(text, apply))


def choose_mode(project: Project, account: TwilioAccountView) -> tuple[Mode, str]:
    """Return the mode that changes nothing for others, and why."""
    if project.forward_url is not None:
        return Mode.WEBHOOK, "forward_url is configured"
    numbers: list[Number] = []
    if service := account.service(project.messaging_service_sid):
        if account.is_foreign(service.inbound_url):
            return Mode.EVENTS, "the service has an address of its own, which stays as it is"
        if account.is_ours(service.inbound_url) and not service.defers_to_number:
            return Mode.WEBHOOK, "the service calls this program already"
        numbers = account.service_numbers(service.sid)
    numbers += filter(None, map(account.number, project.senders))
    if any(map(account.is_handled_elsewhere, numbers)):
        return Mode.EVENTS, "the number has an address of its own (REDCap's, perhaps), which stays as it is"
    return Mode.WEBHOOK, "nothing else handles the messages, and webhooks are the quickest"


def plan_setup(name: str, config: Config, account: TwilioAccountView, redis: RedisClient, mode: Mode) -> Plan:
    """Plan what has to be done for a project. Changes nothing. Raises TwilioUnavailable or TwilioRejected."""
    project = config.projects[name]
    store = SavedSettings(redis, config.twilio[project.twilio].account_sid)
    return SetupPlanner(f"Opt-Out Bridge: {name}", project, account, store, Plan(mode)).run()


def plan_undo(
    name: str, config: Config, account: TwilioAccountView, redis: RedisClient, undone: list[str]
) -> Plan:
    """Plan how to restore what setup changed. `undone` are all projects for which this happens together.

    Changes nothing: settings of resources that no longer exist are deleted after consent, too.
    """
    project, plan = config.projects[name], Plan(Mode.WEBHOOK)
    others = [config.projects[other] for other in config.projects.keys() - set(undone)]
    staying = [other for other in others if other.twilio == project.twilio]
    resources = saved_resources(account, SavedSettings(redis, config.twilio[project.twilio].account_sid))
    for resource in resources:
        _plan_restore(resource, project, staying, plan)
    if not resources:
        plan.satisfied.append("optout setup has no saved changes in this account")
    return plan


def _plan_restore(resource: Resource, project: Project, staying: list[Project], plan: Plan) -> None:
    if resource.current is None:
        plan.add(f"forget {resource.describe()}, which no longer exists", resource.forget)
    elif any(map(resource.used_by, staying)):
        plan.satisfied.append(f"{resource.describe()} stays: another project uses it")
    elif not resource.used_by(project):
        return
    elif resource.changed_since():
        plan.add(f"leave {resource.describe()} as it is: its address has been changed since", resource.forget)
    elif resource.restored_by_hand:
        plan.manual_steps.append(resource.describe_restore())
    else:
        plan.add(resource.describe_restore(), resource.restore)


@dataclass(frozen=True)
class SetupPlanner:
    """Compares each resource of a project with what it should be, and plans the differences."""

    service_name: str
    project: Project
    account: TwilioAccountView
    store: SavedSettings
    plan: Plan

    def run(self) -> Plan:
        """Plan everything."""
        numbers = self._own_numbers()
        service = self._find_service(numbers)
        if self.plan.blockers:
            return self.plan
        if service is not None:
            self._use_service(service, numbers)
        elif self.project.keyword_fallback:
            self._use_numbers(numbers)
        else:
            self._plan_new_service(numbers)
        if self.project.block_at_twilio:
            self.plan.manual_steps.append(CONSENT_API)
        return self.plan

    # --- numbers and services ---------------------------------------------------------------------

    def _own_numbers(self) -> list[Number]:
        numbers = []
        for address in [sender for sender in self.project.senders if sender.startswith("+")]:
            if number := self.account.number(address):
                numbers.append(number)
            else:
                self.plan.block(f"the account lacks the number …{address[-4:]}: correct senders")
        return numbers

    def _find_service(self, numbers: list[Number]) -> MessagingService | None:
        if self.project.messaging_service_sid is not None:
            return self._configured_service(self.project.messaging_service_sid)
        sids = sorted(set(filter(None, map(self.account.service_of, numbers)))) or self._created_services()
        if len(sids) > 1:
            self.plan.block(
                f"the numbers are in several services: set messaging_service_sid to {' or '.join(sids)}"
            )
        if len(sids) != 1:
            return None
        self.plan.configuration["messaging_service_sid"] = sids[0]
        return self.account.service(sids[0])

    def _configured_service(self, sid: str) -> MessagingService | None:
        service = self.account.service(sid)
        if service is None:
            self.plan.block(
                f"the account lacks the service {sid}: correct messaging_service_sid, or use senders"
            )
        return service

    def _created_services(self) -> list[str]:
        """Return the SID of the service that an earlier run created for this project, if it still exists."""
        saved = saved_resources(self.account, self.store)
        created = [resource.sid for resource in saved if isinstance(resource, CreatedService)]
        services = filter(None, map(self.account.service, created))
        return [service.sid for service in services if service.name == self.service_name][:1]

    def _plan_new_service(self, numbers: list[Number]) -> None:
        """Plan a new service. Its SID is known only when it exists, so the rest is planned then."""
        if not numbers:
            self.plan.block("senders names no number of this account to create a service for")
        elif self.plan.mode is Mode.WEBHOOK:
            self._forward([number.sms_url for number in numbers])  # adds a blocker if they differ
        if self.plan.blockers:
            return
        self.plan.add(
            f"create the Messaging Service “{self.service_name}”, "
            "attach the number to it, and have it receive messages as below",
            partial(self._create_service, numbers),
        )
        if self.plan.mode is Mode.EVENTS:
            self._use_events()
        else:
            self.plan.manual_steps.append(ADVANCED_OPT_OUT)
        self._add_campaign_step(numbers)

    def _create_service(self, numbers: list[Number]) -> None:
        sid = create_service(self.account, self.store, self.service_name)
        self.plan.configuration["messaging_service_sid"] = sid
        planner = replace(self, plan=Plan(self.plan.mode, configuration=self.plan.configuration))
        planner._attach(sid, [], numbers)
        if self.plan.mode is Mode.WEBHOOK:
            planner._use_service_webhook(sid, numbers)
        for step in planner.plan.steps:
            step.apply()

    def _attach(self, service_sid: str, attached: list[Number], numbers: list[Number]) -> None:
        for number in numbers:
            if number in attached:
                self.plan.satisfied.append(f"{number.name} is in {service_sid}")
            elif other := self.account.service_of(number):
                self.plan.block(
                    f"{number.name} is in another Messaging Service: remove it from {other}, or use that"
                )
            else:
                sender = ServiceSender(self.account, self.store, number.sid, {"service": service_sid})
                self.plan.add(f"attach {number.name} to {service_sid} as a sender", sender.apply)

    # --- how messages reach this program ------------------------------------------------------------

    def _use_service(self, service: MessagingService, numbers: list[Number]) -> None:
        attached = self.account.service_numbers(service.sid)
        self._attach(service.sid, attached, numbers)
        if self.plan.mode is Mode.WEBHOOK:
            self._use_service_webhook(service.sid, list(dict.fromkeys([*attached, *numbers])))
            return
        self._use_events()
        if service.drops:
            self.plan.add(
                f"let {service.sid} defer to its numbers: now it drops messages, and Twilio does not log them",
                ServiceWebhook(self.account, self.store, service.sid).defer_to_numbers,
            )

    def _use_service_webhook(self, sid: str, numbers: list[Number]) -> None:
        webhook = ServiceWebhook(self.account, self.store, sid)
        forward = self._forward([webhook.former_url, *(number.sms_url for number in numbers)])
        if not self.plan.blockers:
            self._point_here(webhook, forward)
        if not self.project.keyword_fallback:
            self.plan.manual_steps.append(ADVANCED_OPT_OUT)
        if self.account.campaign_status(sid) != "VERIFIED":
            self._add_campaign_step(numbers)

    def _use_numbers(self, numbers: list[Number]) -> None:
        """Use numbers that are meant to stay outside a service."""
        if self.plan.mode is Mode.EVENTS:
            self._use_events()
            return
        for number in numbers:
            if number.application_sid:
                application = f"the TwiML application {number.application_sid}, which receives its messages"
                self.plan.block(f"{number.name} has {application}: remove it, or use --mode events")
            else:
                webhook = NumberWebhook(self.account, self.store, number.sid)
                self._point_here(webhook, self._forward([webhook.former_url]))

    def _point_here(self, webhook: Webhook, forward: str) -> None:
        desired = webhook.desired(forward)
        if webhook.is_as(desired):
            self.plan.satisfied.append(f"{webhook.describe()} calls {self.account.inbound_url}")
        else:
            self.plan.add(webhook.describe_apply(desired), partial(webhook.apply, desired))

    def _forward(self, addresses: list[str]) -> str:
        """Return where replies have to be forwarded to: the configured address, or the one called until now."""
        if self.project.forward_url is not None:
            return str(self.project.forward_url)
        foreign = list(dict.fromkeys(filter(self.account.is_foreign, addresses)))
        self.plan.blockers += _forward_blockers(foreign)
        if foreign and not self.plan.blockers:
            self.plan.configuration["forward_url"] = foreign[0].partition("#")[0]
        return foreign[0] if foreign else ""

    def _use_events(self) -> None:
        sinks = self.account.sinks()
        usable = [sink.sid for sink in sinks if sink.status != "failed"]
        if any(sink.works for sink in sinks):
            self.plan.satisfied.append(f"an Event Streams sink delivers to {self.account.events_url}")
        elif usable:
            subscription = partial(subscribe, self.account, self.store, usable[0])
            self.plan.add(f"subscribe the sink {usable[0]} to incoming messages", subscription)
        else:
            self._replace_sinks({sink.sid: sink.subscriptions for sink in sinks})

    def _replace_sinks(self, failed: dict[str, tuple[str, ...]]) -> None:
        for sid, subscriptions in failed.items():
            deletion = partial(EventSink(self.account, self.store, sid).delete_with, subscriptions)
            self.plan.add(f"delete the sink {sid}, which has failed", deletion)
        self.plan.add(
            f"create an Event Streams sink to {self.account.events_url}, subscribed to incoming messages; "
            "no other address is changed",
            partial(create_sink, self.account, self.store),
        )

    def _add_campaign_step(self, numbers: list[Number]) -> None:
        if any(number.address.startswith("+1") for number in numbers):
            self.plan.manual_steps.append(CAMPAIGN)


def _forward_blockers(foreign: list[str]) -> Iterator[str]:
    shown = list(map(without_login, foreign))
    if len(foreign) > 1:
        yield f"Twilio can forward to one only of {'; '.join(shown)}: write it in forward_url, or use --mode events"
    if any("@" in url for url in foreign):
        yield f"{shown[0]} is called with a login, which forward_url cannot hold: use --mode events"
