"""The Consent Management API of Accounts v1: many consents in one form, each with a result of its own.

Source: twilio-oai, accounts_v1 CreateBulkConsents; Twilio docs, "Bulk Upsert Consents API" (25 items, 100 requests
per minute) and error 30646. What Twilio answers an account without the API is not documented: here 403.
"""

from __future__ import annotations

import json
import re
import time
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flask import g, jsonify, request
from flask.typing import ResponseReturnValue

from tests.simulators.twilio.opt_outs import TOLL_FREE
from tests.simulators.twilio.parameters import ApiError, Route, bad_request, form, required

if TYPE_CHECKING:
    from tests.simulators.twilio.simulator import TwilioSimulator

MOST_ITEMS = 25
REQUESTS_PER_MINUTE = 100
INVALID = 30646
STATUSES = {"opt-in", "opt-out"}
SOURCES = {"website", "offline", "opt-in-message", "opt-out-message", "others"}
FIELDS = {"contact_id", "correlation_id", "sender_id", "status", "source", "date_of_consent"}


@dataclass(frozen=True, slots=True)
class Consent:
    """An item as the account sent it, and the errors that it was answered with."""

    contact_id: str
    correlation_id: str
    sender_id: str
    status: str
    source: str
    date_of_consent: str
    errors: tuple[str, ...]


class ConsentsApi:
    """The handler, over one simulator's state. g.account is who asks."""

    def __init__(self, simulator: TwilioSimulator) -> None:
        self.sim = simulator
        self._requested: deque[float] = deque()

    def routes(self) -> list[Route]:
        return [("POST", "/v1/Consents/Bulk", "Consents", self.create)]

    def create(self) -> ResponseReturnValue:
        if not g.account.consents_enabled:
            raise ApiError(403, 20403, "Forbidden")
        self._count_request()
        required(form("Items", repeatable="Items"), "Items")
        items = request.form.getlist("Items")
        if len(items) > MOST_ITEMS:
            raise bad_request(f"Items has more than {MOST_ITEMS} consents")
        return jsonify({"items": [self._upsert(_read(text)) for text in items]}), 201

    def _count_request(self) -> None:
        now = time.monotonic()
        while self._requested and self._requested[0] <= now - 60:
            self._requested.popleft()
        if len(self._requested) >= self.sim.consent_requests_per_minute:
            raise ApiError(429, 20429, "Too Many Requests")
        self._requested.append(now)

    def _upsert(self, item: dict[str, Any]) -> dict[str, Any]:
        errors = [*self.sim.consent_errors.get(str(item.get("contact_id")), ()), *self._errors(item)]
        values = {name: str(item.get(name) or "") for name in sorted(FIELDS)}
        self.sim.consents.append(Consent(**values, errors=tuple(errors)))
        if not errors:
            self._apply(values)
        return {
            "correlation_id": item.get("correlation_id"),
            "error_code": INVALID if errors else 0,
            "error_messages": errors,
        }

    def _apply(self, values: dict[str, str]) -> None:
        sender, contact = values["sender_id"], values["contact_id"]
        if values["status"] == "opt-out":
            self.sim.block(sender, contact)
        elif not self._is_toll_free(sender):  # Twilio docs: an opt-in overrides STOP, except US toll-free
            self.sim.unblock(sender, contact)

    def _is_toll_free(self, sender: str) -> bool:
        addresses = [each.address for each in self.sim.senders_of(sender)] or [sender]
        return all(address.startswith(TOLL_FREE) for address in addresses)

    def _errors(self, item: dict[str, Any]) -> list[str]:
        checks = {
            "INVALID_CONTACT_ID": _matches(r"\+[1-9]\d{7,14}", item.get("contact_id")),
            "INVALID_CORRELATION_ID": _matches(r"[0-9a-fA-F]{32}", item.get("correlation_id")),
            "INVALID_SENDER_ID": self._is_sender(item.get("sender_id")),
            "INVALID_STATUS": item.get("status") in STATUSES,
            "INVALID_SOURCE": item.get("source") in SOURCES,
            "INVALID_DATE_OF_CONSENT": _is_time(item.get("date_of_consent")),
        }
        return [name for name, valid in checks.items() if not valid]

    def _is_sender(self, sender: object) -> bool:
        service = self.sim.services.get(str(sender))
        if service is not None:
            return bool(service.account_sid == g.account.sid)
        own = [each for each in self.sim.senders.values() if each.account_sid == g.account.sid]
        return any(each.address == sender and ":" not in each.address for each in own)


def _read(text: str) -> dict[str, Any]:
    try:
        item = json.loads(text)
    except ValueError as error:
        raise bad_request("Items is not an array of JSON objects") from error
    if not isinstance(item, dict):
        raise bad_request("Items is not an array of JSON objects")
    if unknown := item.keys() - FIELDS:
        raise bad_request(f"Items has an unknown field {min(unknown)}")
    return item


def _matches(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_time(value: object) -> bool:
    """Absent, or an ISO 8601 time; a day alone is refused in the example of the API's description."""
    if value is None:
        return True
    try:
        return "T" in str(value) and datetime.fromisoformat(str(value)).tzinfo is not None
    except ValueError:
        return False
