"""The REST API of 2010-04-01: accounts, messages and incoming phone numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from flask import g, jsonify
from flask.typing import ResponseReturnValue

from tests.simulators.twilio.accounts import Account, JsonObject, Sender
from tests.simulators.twilio.messages import Message, MessageLog
from tests.simulators.twilio.opt_outs import MessageRefused
from tests.simulators.twilio.paging import old_frame, old_page, page_number, page_size
from tests.simulators.twilio.parameters import (
    Route,
    bad_request,
    check_hooks,
    form,
    not_found,
    query,
    read_address,
    read_boolean,
    read_time,
    required,
)

if TYPE_CHECKING:
    from tests.simulators.twilio.simulator import TwilioSimulator

NUMBER_FIELDS = {
    "FriendlyName": "friendly_name",
    "SmsUrl": "sms_url",
    "SmsMethod": "sms_method",
    "SmsFallbackUrl": "sms_fallback_url",
    "SmsFallbackMethod": "sms_fallback_method",
    "SmsApplicationSid": "sms_application_sid",
    "StatusCallback": "status_callback",
    "StatusCallbackMethod": "status_callback_method",
}


class MessagesApi:
    """The handlers, over one simulator's state. g.account is who asks."""

    def __init__(self, simulator: TwilioSimulator) -> None:
        self.sim = simulator

    def routes(self) -> list[Route]:
        account = "/2010-04-01/Accounts/<account_sid>"
        numbers = f"{account}/IncomingPhoneNumbers"
        return [
            ("GET", "/2010-04-01/Accounts.json", "Accounts", self.list_accounts),
            ("GET", f"{account}.json", "Account", self.fetch_account),
            ("GET", f"{account}/Messages.json", "Messages", self.list_messages),
            ("POST", f"{account}/Messages.json", "Messages", self.create_message),
            ("GET", f"{account}/Messages/<sid>.json", "Message", self.fetch_message),
            ("GET", f"{numbers}.json", "IncomingPhoneNumbers", self.list_numbers),
            ("GET", f"{numbers}/<sid>.json", "IncomingPhoneNumber", self.fetch_number),
            ("POST", f"{numbers}/<sid>.json", "IncomingPhoneNumber", self.update_number),
        ]

    def _account(self, sid: str) -> Account:
        """The account in the path: one's own, or a subaccount of one's own."""
        account = self.sim.accounts.get(sid)
        if account is None or g.account.sid not in {account.sid, account.owner_sid}:
            raise not_found()
        return account

    def list_accounts(self) -> ResponseReturnValue:
        values = query("FriendlyName", "Status")
        own = [a.record() for a in self.sim.accounts.values() if g.account.sid in {a.sid, a.owner_sid}]
        return old_page("accounts", equal(own, values, "FriendlyName", "Status"))

    def fetch_account(self, account_sid: str) -> ResponseReturnValue:
        return jsonify(self._account(account_sid).record())

    def list_messages(self, account_sid: str) -> ResponseReturnValue:
        account = self._account(account_sid)
        values = query("To", "From", "DateSent", "DateSent<", "DateSent>")
        size, number = page_size(values), page_number(values)
        log = self.sim.logs[account_sid]
        rows, more = log.page(message_filter(values), size=size, after=self._after(log, values))
        token = f"PA{rows[-1].sid}" if more else None
        return old_frame("messages", [row.record(account) for row in rows], number, size, token)

    @staticmethod
    def _after(log: MessageLog, values: Mapping[str, str]) -> Message | None:
        """The last message of the page before: so pages do not shift while messages arrive."""
        if "PageToken" not in values:
            return None
        message = log.find(values["PageToken"].removeprefix("PA"))
        if message is None:
            raise bad_request("Invalid PageToken")
        return message

    def create_message(self, account_sid: str) -> ResponseReturnValue:
        account = self._account(account_sid)
        values = form("To", "From", "MessagingServiceSid", "Body")
        required(values, "To", "Body")
        service, from_ = values.get("MessagingServiceSid"), values.get("From")
        if not service and not from_:
            raise bad_request("A 'From' phone number is required.", 21603)
        try:
            sent = self.sim.send_outbound(to=values["To"], body=values["Body"], service=service, from_=from_)
        except MessageRefused as refused:
            raise bad_request(refused.message, refused.code) from refused
        except LookupError as error:
            raise bad_request(str(error), 21606) from error
        accepted = {"status": "accepted" if service else "queued", "error_code": None, "date_sent": None}
        return jsonify(sent.record(account) | accepted), 201

    def fetch_message(self, account_sid: str, sid: str) -> ResponseReturnValue:
        account = self._account(account_sid)
        message = self.sim.logs[account_sid].find(sid)
        if message is None:
            raise not_found()
        return jsonify(message.record(account))

    def list_numbers(self, account_sid: str) -> ResponseReturnValue:
        self._account(account_sid)
        values = query("PhoneNumber", "FriendlyName", "Beta", "Origin")
        rows = [number.as_incoming_number() for number in self.sim.numbers_of(account_sid)]
        part = values.get("PhoneNumber", "").strip("*")  # a part of a number finds it too
        rows = [row for row in equal(rows, values, "FriendlyName", "Origin") if part in row["phone_number"]]
        if "Beta" in values:
            rows = [row for row in rows if row["beta"] is read_boolean("Beta", values["Beta"])]
        return old_page("incoming_phone_numbers", rows)

    def fetch_number(self, account_sid: str, sid: str) -> ResponseReturnValue:
        self._account(account_sid)
        return jsonify(number_of(self.sim, account_sid, sid).as_incoming_number())

    def update_number(self, account_sid: str, sid: str) -> ResponseReturnValue:
        self._account(account_sid)
        number = number_of(self.sim, account_sid, sid)
        values = form(*NUMBER_FIELDS)
        check_hooks(values)
        for name, value in values.items():
            setattr(number, NUMBER_FIELDS[name], value)
        return jsonify(number.as_incoming_number())


def number_of(simulator: TwilioSimulator, account_sid: str, sid: str) -> Sender:
    for number in simulator.numbers_of(account_sid):
        if number.sid == sid:
            return number
    raise not_found()


def message_filter(values: Mapping[str, str]) -> Callable[[Message], bool]:
    """To, From, DateSent (that day, GMT), DateSent< and DateSent> (both inclusive, twilio-oai api_v2010).

    A message without DateSent meets none of the three: what Twilio does is not documented.
    """
    to = read_address("To", values["To"]) if "To" in values else None
    from_ = read_address("From", values["From"]) if "From" in values else None
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    if "DateSent" in values:
        day = read_time("DateSent", values["DateSent"]).replace(hour=0, minute=0, second=0)
        first, last = day, day + timedelta(days=1, microseconds=-1)
    if "DateSent>" in values:
        first = max(first, read_time("DateSent>", values["DateSent>"]))
    if "DateSent<" in values:
        last = min(last, read_time("DateSent<", values["DateSent<"]))

    dated = any(name.startswith("DateSent") for name in values)

    def matches(message: Message) -> bool:
        return (
            (message.sent or not dated)
            and (to is None or message.to == to)
            and (from_ is None or message.from_ == from_)
            and first <= message.at.replace(microsecond=0) <= last
        )

    return matches


def equal(rows: list[JsonObject], values: Mapping[str, str], *names: str) -> list[JsonObject]:
    """The rows whose fields are what the filters of these names ask for."""
    wanted = {
        re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(): values[name] for name in names if name in values
    }
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]
