"""`/_sim/`: a JSON interface for whoever runs the simulator in another process (demo, benchmarks)."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

from flask import jsonify, request
from flask.typing import ResponseReturnValue

from tests.simulators.twilio.accounts import JsonObject
from tests.simulators.twilio.opt_outs import MessageRefused
from tests.simulators.twilio.parameters import Route

if TYPE_CHECKING:
    from tests.simulators.twilio.simulator import TwilioSimulator


class ControlApi:
    """What tests and the demo use from another process; no part of Twilio."""

    def __init__(self, simulator: TwilioSimulator) -> None:
        self.sim = simulator

    def routes(self) -> list[Route]:
        return [
            ("POST", "/_sim/text", "text", self.text),
            ("POST", "/_sim/outbound", "outbound", self.outbound),
            ("GET", "/_sim/consents", "consents", self.consents),
            ("POST", "/_sim/messages", "add", self.add_messages),
            ("GET", "/_sim/messages", "messages", self.messages),
            ("POST", "/_sim/faults", "fault", self.add_fault),
            ("DELETE", "/_sim/faults", "mend", self.mend),
            ("GET", "/_sim/requests", "requests", self.requests),
            ("DELETE", "/_sim/requests", "forget", self.forget_requests),
        ]

    def text(self) -> ResponseReturnValue:
        """{"from": …, "to" or "service": …, "body": …, "via": …, "deliver": …, "at": ISO 8601 …}"""
        given = self._given()
        try:
            return jsonify(self.sim.text(**given).summary())
        except (LookupError, TypeError, ValueError) as error:
            return jsonify({"error": str(error)}), 400

    def outbound(self) -> ResponseReturnValue:
        """{"to": …, "body": …, "from" or "service": …}"""
        try:
            message = self.sim.send_outbound(**self._given())
        except MessageRefused as refused:
            return jsonify({"error_code": refused.code}), 400
        return jsonify({"message_sid": message.sid, "error_code": message.error_code})

    def consents(self) -> ResponseReturnValue:
        """What the Consent Management API received."""
        return jsonify({"consents": [asdict(consent) for consent in self.sim.consents]})

    def add_messages(self) -> ResponseReturnValue:
        """{"messages": [{"from": …, "to" or "service": …, "body": …, "at": …}, …]}, not delivered."""
        rows = request.get_json()["messages"]
        try:
            messages = [self.sim.inbound(**self._renamed(row))[0] for row in rows]
        except (LookupError, TypeError, ValueError) as error:
            return jsonify({"error": str(error)}), 400
        self.sim.add_messages(messages)
        return jsonify({"added": len(messages), "sids": [message.sid for message in messages]})

    def messages(self) -> ResponseReturnValue:
        sid = request.args.get("account", self.sim.first_account.sid)
        account = self.sim.accounts[sid]
        return jsonify({"messages": [message.record(account) for message in self.sim.messages(sid)]})

    def add_fault(self) -> ResponseReturnValue:
        """{"kind": "503", "resource": "Messages", "page": 1, "times": null}"""
        given = request.get_json()
        self.sim.fail(given.pop("kind"), **given)
        return jsonify({"faults": len(self.sim.faults)})

    def mend(self) -> ResponseReturnValue:
        self.sim.mend()
        return "", 204

    def requests(self) -> ResponseReturnValue:
        log = [
            {"method": r.method, "resource": r.resource, "path": r.path, "query": r.query, "status": r.status}
            for r in list(self.sim.request_log)
        ]
        return jsonify({"counts": self.sim.request_counts(), "requests": log})

    def forget_requests(self) -> ResponseReturnValue:
        self.sim.request_log.clear()
        return "", 204

    def _given(self) -> JsonObject:
        return self._renamed(request.get_json())

    @staticmethod
    def _renamed(row: JsonObject) -> JsonObject:
        given = dict(row)
        if "from" in given:
            given["from_"] = given.pop("from")
        if isinstance(given.get("at"), str):
            given["at"] = datetime.fromisoformat(given["at"])
        return given
