"""Event Streams: sinks, subscriptions and the CloudEvents that they deliver."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from tests.simulators.twilio.accounts import JsonObject, new_sid
from tests.simulators.twilio.messages import Message, geo_parameters

INBOUND_EVENT = "com.twilio.messaging.inbound-message.received"
TEST_EVENT = "com.twilio.eventstreams.test-event"
EVENT_TYPES = {
    INBOUND_EVENT: "Messaging.InboundMessageV1",
    "com.twilio.messaging.message.queued": "Messaging.MessageStatus",
    "com.twilio.messaging.message.sent": "Messaging.MessageStatus",
    "com.twilio.messaging.message.delivered": "Messaging.MessageStatus",
    "com.twilio.messaging.message.failed": "Messaging.MessageStatus",
    "com.twilio.messaging.message.undelivered": "Messaging.MessageStatus",
    "com.twilio.messaging.message.read": "Messaging.MessageStatus",
}


@dataclass(slots=True)
class Sink:
    """An Event Streams sink.

    Whether a webhook sink delivers before it is validated is not documented: here it does.
    """

    account_sid: str
    description: str
    configuration: JsonObject
    kind: str
    sid: str = field(default_factory=lambda: new_sid("DG"))
    status: str = "initialized"
    test_id: str = ""

    def record(self, base: str) -> JsonObject:
        url = f"{base}/{self.sid}"
        return {
            "sid": self.sid,
            "description": self.description,
            "sink_configuration": self.configuration,
            "sink_type": self.kind,
            "status": self.status,
            "date_created": "2026-01-02T10:00:00Z",
            "date_updated": "2026-01-02T10:00:00Z",
            "url": url,
            "links": {"sink_test": f"{url}/Test", "sink_validate": f"{url}/Validate"},
        }


@dataclass(slots=True)
class Subscription:
    """What an Event Streams sink receives: event type -> schema version."""

    account_sid: str
    description: str
    sink_sid: str
    types: dict[str, int]
    sid: str = field(default_factory=lambda: new_sid("DF"))

    def record(self, base: str) -> JsonObject:
        url = f"{base}/{self.sid}"
        return {
            "sid": self.sid,
            "account_sid": self.account_sid,
            "description": self.description,
            "sink_sid": self.sink_sid,
            "date_created": "2026-01-02T10:00:00Z",
            "date_updated": "2026-01-02T10:00:00Z",
            "url": url,
            "links": {"subscribed_events": f"{url}/SubscribedEvents"},
        }

    def event_record(self, kind: str, base: str) -> JsonObject:
        return {
            "account_sid": self.account_sid,
            "subscription_sid": self.sid,
            "type": kind,
            "schema_version": self.types[kind],
            "url": f"{base}/{self.sid}/SubscribedEvents/{kind}",
        }


def inbound_event(message: Message) -> JsonObject:
    """One CloudEvent, schema Messaging.InboundMessageV1/6 (Twilio docs: Event types, Inbound Message)."""
    when = message.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    data: JsonObject = {
        "messageSid": message.sid,
        "timestamp": when,
        "accountSid": message.account_sid,
        "eventName": INBOUND_EVENT,
        "from": message.from_,
        "to": message.to,
        "numMedia": message.num_media,
        "numSegments": 1,
        "body": message.body,
        "recipients": [],
    }
    if ":" not in message.from_:
        data |= {
            name[0].lower() + name[1:]: value for name, value in geo_parameters(message).items() if value
        }
    if message.messaging_service_sid:
        data["messagingServiceSid"] = message.messaging_service_sid
    if message.opt_out_type:
        data["optOutType"] = message.opt_out_type
    source = f"/2010-04-01/Accounts/{message.account_sid}/Messages/{message.sid}.json"
    schema = "https://events-schemas.twilio.com/Messaging.InboundMessageV1/6"
    return cloud_event(INBOUND_EVENT, data, source=source, schema=schema, id_=message.event_id, when=when)


def cloud_event(kind: str, data: JsonObject, *, source: str, schema: str, id_: str, when: str) -> JsonObject:
    return {
        "specversion": "1.0",
        "type": kind,
        "source": source,
        "id": id_,
        "dataschema": schema,
        "datacontenttype": "application/json",
        "time": when,
        "data": data,
    }


def event_stream_body(*messages: Message | JsonObject) -> str:
    """The body of one delivery: a JSON array, today always of one event (Twilio docs: webhook quickstart)."""
    events = [inbound_event(item) if isinstance(item, Message) else item for item in messages]
    return json.dumps(events, separators=(",", ":"))
