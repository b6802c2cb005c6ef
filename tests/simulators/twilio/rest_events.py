"""The REST API Events v1: sinks, subscriptions and event types."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flask import g, jsonify, request
from flask.typing import ResponseReturnValue

from tests.simulators.twilio.accounts import JsonObject, new_sid
from tests.simulators.twilio.events import (
    EVENT_TYPES,
    TEST_EVENT,
    Sink,
    Subscription,
    cloud_event,
    event_stream_body,
)
from tests.simulators.twilio.messages import utc_now
from tests.simulators.twilio.paging import v1_base, v1_page
from tests.simulators.twilio.parameters import (
    Route,
    bad_request,
    form,
    not_found,
    query,
    read_boolean,
    read_json_object,
    read_whole_number,
    required,
)
from tests.simulators.twilio.signing import json_request

if TYPE_CHECKING:
    from tests.simulators.twilio.simulator import TwilioSimulator


class EventsApi:
    """The handlers, over one simulator's state. g.account is who asks."""

    def __init__(self, simulator: TwilioSimulator) -> None:
        self.sim = simulator

    def routes(self) -> list[Route]:
        return [
            ("GET", "/v1/Sinks", "Sinks", self.list_sinks),
            ("POST", "/v1/Sinks", "Sinks", self.create_sink),
            ("GET", "/v1/Sinks/<sid>", "Sink", self.fetch_sink),
            ("DELETE", "/v1/Sinks/<sid>", "Sink", self.delete_sink),
            ("POST", "/v1/Sinks/<sid>/Test", "Sink/Test", self.test_sink),
            ("POST", "/v1/Sinks/<sid>/Validate", "Sink/Validate", self.validate_sink),
            ("GET", "/v1/Subscriptions", "Subscriptions", self.list_subscriptions),
            ("POST", "/v1/Subscriptions", "Subscriptions", self.create_subscription),
            ("GET", "/v1/Subscriptions/<sid>", "Subscription", self.fetch_subscription),
            ("DELETE", "/v1/Subscriptions/<sid>", "Subscription", self.delete_subscription),
            ("GET", "/v1/Subscriptions/<sid>/SubscribedEvents", "SubscribedEvents", self.list_events),
            ("POST", "/v1/Subscriptions/<sid>/SubscribedEvents", "SubscribedEvents", self.create_event),
            (
                "DELETE",
                "/v1/Subscriptions/<sid>/SubscribedEvents/<kind>",
                "SubscribedEvent",
                self.delete_event,
            ),
            ("GET", "/v1/Types", "Types", self.list_types),
            ("GET", "/v1/Types/<kind>", "Type", self.fetch_type),
        ]

    def _sink(self, sid: str) -> Sink:
        sink = self.sim.sinks.get(sid)
        if sink is None or sink.account_sid != g.account.sid:
            raise not_found()
        return sink

    def list_sinks(self) -> ResponseReturnValue:
        values = query("InUse", "Status")
        used = {s.sink_sid for s in self.sim.subscriptions.values()}
        rows = [s for s in self.sim.sinks.values() if s.account_sid == g.account.sid]
        if "InUse" in values:
            wanted = read_boolean("InUse", values["InUse"])
            rows = [s for s in rows if (s.sid in used) is wanted]
        rows = [s for s in rows if values.get("Status", s.status) == s.status]
        return v1_page("sinks", [s.record(v1_base("Sinks")) for s in rows])

    def create_sink(self) -> ResponseReturnValue:
        values = form("Description", "SinkConfiguration", "SinkType")
        required(values, "Description", "SinkConfiguration", "SinkType")
        kind = values["SinkType"]
        if kind not in {"webhook", "kinesis", "segment", "email"}:
            raise bad_request("SinkType is unknown")
        configuration = read_json_object("SinkConfiguration", values["SinkConfiguration"])
        if kind == "webhook":
            check_webhook_sink(configuration)
        sink = Sink(g.account.sid, values["Description"], configuration, kind)
        self.sim.sinks[sink.sid] = sink
        return jsonify(sink.record(v1_base("Sinks"))), 201

    def fetch_sink(self, sid: str) -> ResponseReturnValue:
        return jsonify(self._sink(sid).record(v1_base("Sinks")))

    def delete_sink(self, sid: str) -> ResponseReturnValue:
        sink = self._sink(sid)
        # The subscription must go first; the error's own code is not documented.
        if any(s.sink_sid == sink.sid for s in self.sim.subscriptions.values()):
            raise bad_request("The sink is used by a subscription")
        del self.sim.sinks[sink.sid]
        return "", 204

    def test_sink(self, sid: str) -> ResponseReturnValue:
        """Send the test event, whose data holds the test_id that Validate wants back."""
        sink = self._sink(sid)
        sink.test_id, sink.status = str(uuid.uuid4()), "validating"
        when = utc_now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        schema = "https://events-schemas.twilio.com/EventStreams.TestSinkEvent/1"
        event = cloud_event(
            TEST_EVENT, {"test_id": sink.test_id}, source="Sink", schema=schema, id_=new_sid("EZ"), when=when
        )
        destination = str(sink.configuration.get("destination", ""))
        self.sim.send(json_request(destination, event_stream_body(event), g.account.auth_token))
        return jsonify({"result": "submitted"}), 201

    def validate_sink(self, sid: str) -> ResponseReturnValue:
        sink = self._sink(sid)
        values = form("TestId")
        required(values, "TestId")
        if not sink.test_id or values["TestId"] != sink.test_id:
            raise bad_request("TestId is not the one of the last test event")
        sink.status = "active"
        return jsonify({"result": "valid"}), 201

    def _subscription(self, sid: str) -> Subscription:
        subscription = self.sim.subscriptions.get(sid)
        if subscription is None or subscription.account_sid != g.account.sid:
            raise not_found()
        return subscription

    def list_subscriptions(self) -> ResponseReturnValue:
        sink_sid = query("SinkSid").get("SinkSid")
        own = [s for s in self.sim.subscriptions.values() if s.account_sid == g.account.sid]
        rows = [s for s in own if sink_sid in {None, s.sink_sid}]
        return v1_page("subscriptions", [s.record(v1_base("Subscriptions")) for s in rows])

    def create_subscription(self) -> ResponseReturnValue:
        values = form("Description", "SinkSid", "Types", repeatable="Types")
        required(values, "Description", "SinkSid", "Types")
        sink = self._sink(values["SinkSid"])
        types: dict[str, int] = {}
        for text in request.form.getlist("Types"):
            wanted = read_json_object("Types", text)
            version = read_whole_number("schema_version", wanted.get("schema_version", 1))
            types[check_type(wanted.get("type"))] = version
        subscription = Subscription(g.account.sid, values["Description"], sink.sid, types)
        self.sim.subscriptions[subscription.sid] = subscription
        return jsonify(subscription.record(v1_base("Subscriptions"))), 201

    def fetch_subscription(self, sid: str) -> ResponseReturnValue:
        return jsonify(self._subscription(sid).record(v1_base("Subscriptions")))

    def delete_subscription(self, sid: str) -> ResponseReturnValue:
        del self.sim.subscriptions[self._subscription(sid).sid]
        return "", 204

    def list_events(self, sid: str) -> ResponseReturnValue:
        query()
        subscription, base = self._subscription(sid), v1_base("Subscriptions")
        return v1_page("types", [subscription.event_record(kind, base) for kind in subscription.types])

    def create_event(self, sid: str) -> ResponseReturnValue:
        subscription = self._subscription(sid)
        values = form("Type", "SchemaVersion")
        required(values, "Type")
        kind = check_type(values["Type"])
        subscription.types[kind] = read_whole_number("SchemaVersion", values.get("SchemaVersion", "1"))
        return jsonify(subscription.event_record(kind, v1_base("Subscriptions"))), 201

    def delete_event(self, sid: str, kind: str) -> ResponseReturnValue:
        if self._subscription(sid).types.pop(kind, None) is None:
            raise not_found()
        return "", 204

    def list_types(self) -> ResponseReturnValue:
        schema = query("SchemaId").get("SchemaId")
        kinds = [kind for kind, own in EVENT_TYPES.items() if schema in {None, own}]
        return v1_page("types", [self._type(kind) for kind in kinds])

    def fetch_type(self, kind: str) -> ResponseReturnValue:
        if kind not in EVENT_TYPES:
            raise not_found()
        return jsonify(self._type(kind))

    def _type(self, kind: str) -> JsonObject:
        schema = EVENT_TYPES[kind]
        return {
            "type": kind,
            "schema_id": schema,
            "description": kind,
            "status": "available",
            "documentation_url": "https://www.twilio.com/docs/events/event-types",
            "date_created": "2020-08-13T13:28:20Z",
            "date_updated": "2020-08-13T13:28:20Z",
            "url": f"{v1_base('Types')}/{kind}",
            "links": {"schema": f"{v1_base('Schemas')}/{schema}/Versions"},
        }


def check_webhook_sink(configuration: JsonObject) -> None:
    url = urlsplit(str(configuration.get("destination", "")))
    if url.scheme not in {"http", "https"} or configuration.get("method") not in {"GET", "POST"}:
        raise bad_request("SinkConfiguration needs a destination URL and a method")
    if url.fragment:  # Twilio docs: connection overrides are not for Event Streams
        raise bad_request("A sink's destination takes no connection overrides")


def check_type(kind: object) -> str:
    if not isinstance(kind, str) or kind not in EVENT_TYPES:
        raise bad_request("The event type is unknown")
    return kind
