"""The REST API Messaging v1: services, their senders and A2P campaigns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from flask import g, jsonify
from flask.typing import ResponseReturnValue

from tests.simulators.twilio.accounts import JsonObject, Sender, SenderKind, Service
from tests.simulators.twilio.paging import v1_base, v1_page
from tests.simulators.twilio.parameters import (
    ApiError,
    Route,
    check_hooks,
    form,
    not_found,
    query,
    read_boolean,
    read_whole_number,
    required,
)
from tests.simulators.twilio.rest_messages import number_of

if TYPE_CHECKING:
    from tests.simulators.twilio.simulator import TwilioSimulator

SERVICE_TEXT = {
    "FriendlyName": "friendly_name",
    "InboundRequestUrl": "inbound_request_url",
    "InboundMethod": "inbound_method",
    "FallbackUrl": "fallback_url",
    "FallbackMethod": "fallback_method",
    "StatusCallback": "status_callback",
    "ScanMessageContent": "scan_message_content",
    "ValidityPeriod": "validity_period",
    "Usecase": "usecase",
}
SERVICE_SWITCHES = {
    "StickySender": "sticky_sender",
    "MmsConverter": "mms_converter",
    "SmartEncoding": "smart_encoding",
    "FallbackToLongCode": "fallback_to_long_code",
    "AreaCodeGeomatch": "area_code_geomatch",
    "SynchronousValidation": "synchronous_validation",
    "UseInboundWebhookOnNumber": "use_inbound_webhook_on_number",
}
SENDER_LISTS = {
    "PhoneNumbers": ("phone_numbers", SenderKind.PHONE_NUMBER),
    "ShortCodes": ("short_codes", SenderKind.SHORT_CODE),
    "AlphaSenders": ("alpha_senders", SenderKind.ALPHA),
    "ChannelSenders": ("senders", SenderKind.CHANNEL),
}


class ServicesApi:
    """The handlers, over one simulator's state. g.account is who asks."""

    def __init__(self, simulator: TwilioSimulator) -> None:
        self.sim = simulator

    def routes(self) -> list[Route]:
        services = "/v1/Services"
        return [
            ("GET", services, "Services", self.list_services),
            ("POST", services, "Services", self.create_service),
            ("GET", f"{services}/<sid>", "Service", self.fetch_service),
            ("POST", f"{services}/<sid>", "Service", self.update_service),
            *self._sender_routes(services),
            ("GET", f"{services}/<sid>/Compliance/Usa2p", "Services/Usa2p", self.list_campaigns),
        ]

    def _sender_routes(self, services: str) -> list[Route]:
        one = f"{services}/<service_sid>/PhoneNumbers/<sid>"
        return [
            (
                "GET",
                f"{services}/<service_sid>/<any({','.join(SENDER_LISTS)}):part>",
                "Services/Senders",
                self.list_senders,
            ),
            ("POST", f"{services}/<service_sid>/PhoneNumbers", "Services/PhoneNumbers", self.attach_number),
            ("GET", one, "Services/PhoneNumber", self.fetch_attached_number),
            ("DELETE", one, "Services/PhoneNumber", self.detach_number),
        ]

    def _service(self, sid: str) -> Service:
        service = self.sim.services.get(sid)
        if service is None or service.account_sid != g.account.sid:
            raise not_found()
        return service

    def list_services(self) -> ResponseReturnValue:
        query()
        own = [s for s in self.sim.services.values() if s.account_sid == g.account.sid]
        return v1_page("services", [service.record(v1_base("Services")) for service in own])

    def create_service(self) -> ResponseReturnValue:
        values = form(*SERVICE_TEXT, *SERVICE_SWITCHES)
        required(values, "FriendlyName")
        # Advanced Opt-Out is off until somebody enables it in the Console (Twilio docs: Advanced Opt-Out).
        service = Service(account_sid=g.account.sid, advanced_opt_out=False, **service_changes(values))
        self.sim.services[service.sid] = service
        return jsonify(service.record(v1_base("Services"))), 201

    def fetch_service(self, sid: str) -> ResponseReturnValue:
        return jsonify(self._service(sid).record(v1_base("Services")))

    def update_service(self, sid: str) -> ResponseReturnValue:
        service = self._service(sid)
        for name, value in service_changes(form(*SERVICE_TEXT, *SERVICE_SWITCHES)).items():
            setattr(service, name, value)
        return jsonify(service.record(v1_base("Services")))

    def list_senders(self, service_sid: str, part: str) -> ResponseReturnValue:
        self._service(service_sid)
        query()
        key, kind = SENDER_LISTS[part]
        base = v1_base(f"Services/{service_sid}/{part}")
        senders = [s for s in self.sim.senders_of(service_sid) if s.kind is kind]
        return v1_page(key, [sender.in_service(base) for sender in senders])

    def attach_number(self, service_sid: str) -> ResponseReturnValue:
        service = self._service(service_sid)
        values = form("PhoneNumberSid")
        required(values, "PhoneNumberSid")
        number = number_of(self.sim, service.account_sid, values["PhoneNumberSid"])
        if number.service_sid == service_sid:
            raise ApiError(409, 21710, "Phone Number or Short Code is already in the Messaging Service.")
        if number.service_sid:
            raise ApiError(409, 21712, "Phone Number or Short Code is in another Messaging Service.")
        number.service_sid = service_sid
        return jsonify(number.in_service(v1_base(f"Services/{service_sid}/PhoneNumbers"))), 201

    def _attached(self, service_sid: str, sid: str) -> Sender:
        number = number_of(self.sim, self._service(service_sid).account_sid, sid)
        if number.service_sid != service_sid:
            raise not_found()
        return number

    def fetch_attached_number(self, service_sid: str, sid: str) -> ResponseReturnValue:
        number = self._attached(service_sid, sid)
        return jsonify(number.in_service(v1_base(f"Services/{service_sid}/PhoneNumbers")))

    def detach_number(self, service_sid: str, sid: str) -> ResponseReturnValue:
        self._attached(service_sid, sid).service_sid = None
        return "", 204

    def list_campaigns(self, sid: str) -> ResponseReturnValue:
        query()
        return v1_page("compliance", self._service(sid).campaigns)


def service_changes(values: Mapping[str, str]) -> JsonObject:
    changes: JsonObject = {
        SERVICE_TEXT[name]: value for name, value in values.items() if name in SERVICE_TEXT
    }
    for name in SERVICE_SWITCHES.keys() & values.keys():
        changes[SERVICE_SWITCHES[name]] = read_boolean(name, values[name])
    check_hooks(values)
    for name in {"inbound_request_url", "fallback_url", "status_callback"} & changes.keys():
        changes[name] = changes[name] or None
    if "validity_period" in changes:
        changes["validity_period"] = read_whole_number("ValidityPeriod", changes["validity_period"])
    return changes
