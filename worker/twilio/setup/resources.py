"""One class for each kind of resource that `optout setup` changes or creates, and can restore."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from shared.config.schema import Project
from shared.domain.endpoints import INBOUND_EVENT
from worker.twilio.account import RETRY_FRAGMENT, TwilioAccountView, asks_for_retries, without_login
from worker.twilio.client import found_or_none, translate_errors
from worker.twilio.setup.saved_settings import SavedSettings

# The version of Messaging.InboundMessageV1 that carries optOutType. Source: Twilio's event schemas.
INBOUND_SCHEMA_VERSION = 6

Settings = dict[str, Any]


@dataclass
class Resource(ABC):
    """A resource of a Twilio account. `saved` is what was stored about it before it was changed or created."""

    account: TwilioAccountView
    store: SavedSettings
    sid: str
    saved: Settings = field(default_factory=dict)

    kind: ClassVar[str]
    title: ClassVar[str]  # a format for its name in plans
    restored_by_hand: ClassVar[bool] = False

    @property
    @abstractmethod
    def remote(self) -> Any:
        """The resource of twilio-python, for requests."""

    @cached_property
    def current(self) -> Any:
        """Twilio's description of it, or None if the account does not have it."""
        return found_or_none(self.remote.fetch)

    def describe(self) -> str:
        """Return its name in plans."""
        return self.title.format(self)

    def used_by(self, project: Project) -> bool:  # noqa: ARG002
        """Return whether a project of the account uses it."""
        return True

    def changed_since(self) -> bool:
        """Return whether a person has changed it after setup."""
        return False

    def describe_restore(self) -> str:
        """Return what `restore` does, or what a person has to do."""
        return f"remove {self.describe()}"

    def restore(self) -> None:
        """Undo what setup did: delete it. One that no longer exists is not an error."""
        found_or_none(self.remote.delete)
        self.forget()

    @property
    def key(self) -> str:
        """Its name in the saved settings."""
        return self.sid

    def save(self, **settings: Any) -> None:
        """Store what is needed to restore it, before it is changed."""
        self.store.save(self.key, {"kind": self.kind, **settings})

    def forget(self) -> None:
        """Delete what is stored about it."""
        self.store.delete(self.key)


class Webhook(Resource):
    """The addresses to which a service or number sends incoming messages."""

    # Twilio's names of the address, its method, the fallback and its method.
    names: ClassVar[tuple[str, str, str, str]]
    # Other settings that this program needs.
    others: ClassVar[Settings] = {}

    @property
    def settings(self) -> Settings:
        """Twilio's present settings."""
        unset = self._by_name("", "POST", "", "POST")
        return {name: getattr(self.current, name) or default for name, default in unset.items()}

    def _by_name(self, *values: str) -> Settings:
        return dict(zip(self.names, values, strict=True)) | self.others

    @property
    def url(self) -> str:
        """The address that Twilio calls now."""
        return str(self.settings[self.names[0]])

    def brings_texts_of(self, project: Project) -> bool:
        """Return whether it exists, a project uses it, and it calls this program."""
        return self.current is not None and self.used_by(project) and self.account.is_ours(self.url)

    @property
    def own_url(self) -> str:
        """The address that Twilio calls, or "" if this resource leaves that to others."""
        return self._own_url(self.settings)

    def _own_url(self, settings: Settings) -> str:
        return str(settings.get(self.names[0]) or "")

    @property
    def former_url(self) -> str:
        """The address that was called before this program's: as saved, else the fallback that setup made of it."""
        if not self.account.is_ours(self.url):
            return self.own_url
        saved = self.store.all().get(self.key, {})
        return self._own_url(saved["before"]) if "before" in saved else self._foreign_fallback

    @property
    def _foreign_fallback(self) -> str:
        fallback = str(self.settings[self.names[2]])
        return fallback if self.account.is_ours(self.url) and self.account.is_foreign(fallback) else ""

    def desired(self, forward: str) -> Settings:
        """Return the settings for this program, with the address that it forwards to as fallback.

        Without one, a fallback of another program stays.
        """
        own = self.account.inbound_url + RETRY_FRAGMENT
        return self._by_name(own, "POST", forward or self._foreign_fallback or own, "POST")

    def is_as(self, desired: Settings) -> bool:
        """Return whether nothing needs to change. A study may tune the fragment, if it still asks for retries."""
        differing = {name for name, value in self.settings.items() if value != desired[name]}
        is_ours = self.account.is_ours(self.url) and asks_for_retries(self.url)
        return is_ours and differing <= {self.names[0]}

    def describe_apply(self, desired: Settings) -> str:
        """Return what `apply` does."""
        url, _, fallback, _ = (desired[name] for name in self.names)
        now = self.destination(self.settings)
        return f"have {self.describe()} call {url}\n(now: {now}), with the fallback {without_login(fallback)}"

    def apply(self, desired: Settings) -> None:
        """Save the present settings, and change them."""
        self.save(before=self.settings)
        self._update(desired)

    def _update(self, settings: Settings) -> None:
        with translate_errors():
            self.remote.update(**settings)

    def destination(self, settings: Settings) -> str:
        """Return where messages go with these settings."""
        return without_login(settings[self.names[0]]) or "nothing"

    def changed_since(self) -> bool:
        return self.account.is_foreign(self.url)

    def describe_restore(self) -> str:
        return f"have {self.describe()} send messages to {self.destination(self.saved['before'])} again"

    def restore(self) -> None:
        self._update(self.saved["before"])
        self.forget()


class ServiceWebhook(Webhook):
    """A Messaging Service's webhook."""

    kind = "service"
    title = "{0.sid}"
    names = ("inbound_request_url", "inbound_method", "fallback_url", "fallback_method")
    others: ClassVar[Settings] = {"use_inbound_webhook_on_number": False}

    @property
    def remote(self) -> Any:
        return self.account.client.messaging.v1.services(self.sid)

    def _own_url(self, settings: Settings) -> str:
        """Its numbers' addresses are called if it defers to them."""
        return "" if settings["use_inbound_webhook_on_number"] else super()._own_url(settings)

    def defer_to_numbers(self) -> None:
        """Have the service's numbers decide where messages go."""
        self.apply({"use_inbound_webhook_on_number": True})

    def destination(self, settings: Settings) -> str:
        deferred = settings["use_inbound_webhook_on_number"]
        return "its numbers' own addresses" if deferred else super().destination(settings)

    def used_by(self, project: Project) -> bool:
        return self.account.service_is_used(self.sid, project)


class NumberWebhook(Webhook):
    """The webhook of a number that is not in a service."""

    kind = "number"
    names = ("sms_url", "sms_method", "sms_fallback_url", "sms_fallback_method")

    def describe(self) -> str:
        return (
            f"number …{self.current.phone_number[-4:]} ({self.sid})" if self.current else f"number {self.sid}"
        )

    @property
    def remote(self) -> Any:
        return self.account.client.incoming_phone_numbers(self.sid)

    def used_by(self, project: Project) -> bool:
        return self.current.phone_number in project.senders


class ServiceSender(Resource):
    """A number that setup attached to a Messaging Service. Deleting the sender keeps the number in the account."""

    kind = "attached"
    title = "the sender {0.sid} of {0.saved[service]}"

    @property
    def key(self) -> str:
        return f"{self.sid}@"

    @property
    def _senders(self) -> Any:
        return self.account.client.messaging.v1.services(self.saved["service"]).phone_numbers

    @property
    def remote(self) -> Any:
        return self._senders(self.sid)

    def apply(self) -> None:
        """Attach the number."""
        self.save(service=self.saved["service"])
        with translate_errors():
            self._senders.create(phone_number_sid=self.sid)

    def used_by(self, project: Project) -> bool:
        return self.account.service_is_used(self.saved["service"], project)


class EventSink(Resource):
    """An Event Streams sink that setup created."""

    kind = "sink"
    title = "the Event Streams sink {0.sid}"

    @property
    def remote(self) -> Any:
        return self.account.client.events.v1.sinks(self.sid)

    def delete_with(self, subscriptions: tuple[str, ...]) -> None:
        """Delete a sink. Its subscriptions go first: Twilio does not delete a sink that is used."""
        with translate_errors():
            for sid in subscriptions:
                self.account.client.events.v1.subscriptions(sid).delete()
            self.remote.delete()


class Subscription(Resource):
    """The subscription of a sink to incoming messages."""

    kind = "subscription"
    title = "the subscription {0.sid} of the sink {0.saved[sink]}"

    @property
    def remote(self) -> Any:
        return self.account.client.events.v1.subscriptions(self.sid)


class CreatedService(Resource):
    """A Messaging Service. It is kept: it may have a campaign and Advanced Opt-Out, which deleting would lose."""

    kind = "created_service"
    title = "the Messaging Service {0.sid}"
    restored_by_hand = True

    @property
    def remote(self) -> Any:
        return self.account.client.messaging.v1.services(self.sid)

    def describe_restore(self) -> str:
        return (
            f"{self.describe()} was created by optout setup and is kept, without senders: delete it in the Console "
            "if neither its campaign nor its opt-out settings are needed"
        )

    def used_by(self, project: Project) -> bool:
        return self.account.service_is_used(self.sid, project)


# What was created last is restored first: a subscription before its sink, senders before their service.
RESTORE_ORDER = (Subscription, EventSink, ServiceSender, NumberWebhook, ServiceWebhook, CreatedService)


def saved_resources(account: TwilioAccountView, store: SavedSettings) -> list[Resource]:
    """Return every resource that setup changed or created, in the order in which they have to be restored."""
    saved = store.all()
    return [
        kind(account, store, key.removesuffix("@"), settings)
        for kind in RESTORE_ORDER
        for key, settings in saved.items()
        if settings["kind"] == kind.kind
    ]


def create_service(account: TwilioAccountView, store: SavedSettings, name: str) -> str:
    """Create a Messaging Service that defers to its numbers. Returns its SID."""
    with translate_errors():
        made = account.client.messaging.v1.services.create(
            friendly_name=name, use_inbound_webhook_on_number=True
        )
    CreatedService(account, store, str(made.sid)).save()
    return str(made.sid)


def create_sink(account: TwilioAccountView, store: SavedSettings) -> None:
    """Create an Event Streams sink, subscribed to incoming messages."""
    destination = {"destination": account.events_url, "method": "POST", "batch_events": False}
    with translate_errors():
        made = account.client.events.v1.sinks.create(
            description="Opt-Out Bridge", sink_configuration=destination, sink_type="webhook"
        )
    EventSink(account, store, str(made.sid)).save()
    subscribe(account, store, str(made.sid))


def subscribe(account: TwilioAccountView, store: SavedSettings, sink_sid: str) -> None:
    """Subscribe a sink to incoming messages."""
    with translate_errors():
        made = account.client.events.v1.subscriptions.create(
            description="Opt-Out Bridge: incoming messages",
            sink_sid=sink_sid,
            types=[{"type": INBOUND_EVENT, "schema_version": INBOUND_SCHEMA_VERSION}],
        )
    Subscription(account, store, str(made.sid)).save(sink=sink_sid)
