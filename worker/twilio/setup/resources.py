"""One class for each kind of resource that `optout setup` changes or creates, and can restore."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from shared.config.schema import Project
from shared.domain.endpoints import INBOUND_EVENT
from worker.twilio.account import (
    RETRY_FRAGMENT,
    MessagingService,
    Number,
    TwilioAccountView,
    asks_for_retries,
    without_login,
)
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
    restored_by_hand: ClassVar[bool] = False

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

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the account still has it."""

    @abstractmethod
    def describe(self) -> str:
        """Return its name in plans."""

    def describe_restore(self) -> str:
        """Return what `restore` does, or what a person has to do."""
        return f"remove {self.describe()}"

    @abstractmethod
    def restore(self) -> None:
        """Undo what setup did."""

    def used_by(self, project: Project) -> bool:  # noqa: ARG002
        """Return whether a project of the account uses it."""
        return True

    def changed_since(self) -> bool:
        """Return whether a person has changed it after setup."""
        return False


class Webhook(Resource):
    """The addresses to which a service or number sends incoming messages."""

    # Twilio's names of the address, its method, the fallback and its method.
    names: ClassVar[tuple[str, str, str, str]]

    @abstractmethod
    def current(self) -> Settings:
        """Return Twilio's settings, by Twilio's names."""

    @abstractmethod
    def update(self, settings: Settings) -> None:
        """Change Twilio's settings."""

    @property
    def url(self) -> str:
        """The address that Twilio calls now."""
        return str(self.current()[self.names[0]])

    def desired(self, forward: str) -> Settings:
        """Return the settings for this program, with the address that it forwards to as fallback."""
        url, method, fallback, fallback_method = self.names
        own = self.account.inbound_url + RETRY_FRAGMENT
        return {url: own, method: "POST", fallback: forward or own, fallback_method: "POST"}

    def is_as(self, desired: Settings) -> bool:
        """Return whether nothing needs to change. A study may tune the fragment, if it still asks for retries."""
        current, url = self.current(), self.names[0]
        others_match = all(current[name] == value for name, value in desired.items() if name != url)
        return others_match and self.account.is_ours(self.url) and asks_for_retries(self.url)

    def describe_apply(self, desired: Settings) -> str:
        """Return what `apply` does."""
        url, _, fallback, _ = self.names
        return (
            f"have {self.describe()} call {desired[url]}\n"
            f"(now: {self.destination(self.current())}), with the fallback {without_login(desired[fallback])}"
        )

    def apply(self, desired: Settings) -> None:
        """Save the current settings, and change them."""
        self.save(before=self.current())
        self.update(desired)

    def destination(self, settings: Settings) -> str:
        """Return where messages go with these settings."""
        return without_login(settings[self.names[0]]) or "nothing"

    def changed_since(self) -> bool:
        return self.account.is_foreign(self.url)

    def describe_restore(self) -> str:
        return f"have {self.describe()} send messages to {self.destination(self.saved['before'])} again"

    def restore(self) -> None:
        self.update(self.saved["before"])
        self.forget()


class ServiceWebhook(Webhook):
    """A Messaging Service's webhook."""

    kind = "service"
    names = ("inbound_request_url", "inbound_method", "fallback_url", "fallback_method")

    @cached_property
    def service(self) -> MessagingService | None:
        """The service as it is now."""
        return self.account.service(self.sid)

    def exists(self) -> bool:
        return self.service is not None

    def describe(self) -> str:
        return self.sid

    def current(self) -> Settings:
        assert self.service is not None
        return {
            "inbound_request_url": self.service.inbound_url,
            "inbound_method": self.service.inbound_method,
            "fallback_url": self.service.fallback_url,
            "fallback_method": self.service.fallback_method,
            "use_inbound_webhook_on_number": self.service.defers_to_number,
        }

    def desired(self, forward: str) -> Settings:
        return super().desired(forward) | {"use_inbound_webhook_on_number": False}

    def defer_to_numbers(self) -> None:
        """Have the service's numbers decide where messages go."""
        self.apply({"use_inbound_webhook_on_number": True})

    def destination(self, settings: Settings) -> str:
        deferred = settings["use_inbound_webhook_on_number"]
        return "its numbers' own addresses" if deferred else super().destination(settings)

    def update(self, settings: Settings) -> None:
        with translate_errors():
            self.account.client.messaging.v1.services(self.sid).update(**settings)

    def used_by(self, project: Project) -> bool:
        return self.account.service_is_used(self.sid, project)


class NumberWebhook(Webhook):
    """The webhook of a number that is not in a service."""

    kind = "number"
    names = ("sms_url", "sms_method", "sms_fallback_url", "sms_fallback_method")

    @cached_property
    def number(self) -> Number | None:
        """The number as it is now."""
        return self.account.number_by_sid(self.sid)

    def exists(self) -> bool:
        return self.number is not None

    def describe(self) -> str:
        return self.number.name if self.number else f"the number {self.sid}"

    def current(self) -> Settings:
        return {name: getattr(self.number, name) for name in self.names}

    def update(self, settings: Settings) -> None:
        with translate_errors():
            self.account.client.incoming_phone_numbers(self.sid).update(**settings)

    def used_by(self, project: Project) -> bool:
        return self.number is not None and self.number.address in project.senders


class Creation(Resource):
    """A resource that did not exist before setup."""

    @property
    @abstractmethod
    def remote(self) -> Any:
        """The resource of twilio-python."""

    def exists(self) -> bool:
        return found_or_none(self.remote.fetch) is not None

    def restore(self) -> None:
        """Delete it; one that no longer exists is not an error."""
        found_or_none(self.remote.delete)
        self.forget()


class ServiceSender(Creation):
    """A number that setup attached to a Messaging Service. Deleting the sender keeps the number in the account."""

    kind = "attached"

    @property
    def key(self) -> str:
        return f"{self.sid}@"

    @property
    def _senders(self) -> Any:
        return self.account.client.messaging.v1.services(self.saved["service"]).phone_numbers

    @property
    def remote(self) -> Any:
        return self._senders(self.sid)

    def describe(self) -> str:
        return f"the sender {self.sid} of {self.saved['service']}"

    def apply(self) -> None:
        """Attach the number."""
        self.save(service=self.saved["service"])
        with translate_errors():
            self._senders.create(phone_number_sid=self.sid)

    def used_by(self, project: Project) -> bool:
        return self.account.service_is_used(self.saved["service"], project)


class EventSink(Creation):
    """An Event Streams sink."""

    kind = "sink"

    @property
    def remote(self) -> Any:
        return self.account.client.events.v1.sinks(self.sid)

    def describe(self) -> str:
        return f"the Event Streams sink {self.sid}"

    def delete_with(self, subscriptions: tuple[str, ...]) -> None:
        """Delete a sink. Its subscriptions go first: Twilio does not delete a sink that is used."""
        with translate_errors():
            for sid in subscriptions:
                self.account.client.events.v1.subscriptions(sid).delete()
            self.remote.delete()


class Subscription(Creation):
    """The subscription of a sink to incoming messages."""

    kind = "subscription"

    @property
    def remote(self) -> Any:
        return self.account.client.events.v1.subscriptions(self.sid)

    def describe(self) -> str:
        return f"the subscription {self.sid} of the sink {self.saved['sink']}"


class CreatedService(Creation):
    """A Messaging Service. It is kept: it may have a campaign and Advanced Opt-Out, which deleting would lose."""

    kind = "created_service"
    restored_by_hand = True

    @property
    def remote(self) -> Any:
        return self.account.client.messaging.v1.services(self.sid)

    def describe(self) -> str:
        return f"the Messaging Service {self.sid}"

    def describe_restore(self) -> str:
        return (
            f"The Messaging Service {self.sid} was created by optout setup and is kept, without senders: delete it "
            "in the Console if neither its campaign nor its opt-out settings are needed."
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
