"""Messages, the log that the REST API shows, and the form of the incoming-message webhook."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime

from tests.simulators.twilio.accounts import ACCOUNT_SID, Account, JsonObject, new_sid

_sequence = itertools.count()


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Message:
    """One message. `at` is aware; the REST API shows it in whole seconds, Event Streams in milliseconds."""

    from_: str
    to: str
    body: str = "STOP"
    at: datetime = field(default_factory=utc_now)
    account_sid: str = ACCOUNT_SID
    messaging_service_sid: str | None = None
    opt_out_type: str | None = None
    direction: str = "inbound"
    status: str = "received"
    error_code: int | None = None
    error_message: str | None = None
    num_media: int = 0
    sent: bool = True  # else date_sent is null: nobody was told of it, or it failed before it went out
    sid: str = ""
    event_id: str = field(default_factory=lambda: new_sid("EZ"))
    sequence: int = field(default_factory=lambda: next(_sequence))

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise ValueError("at must be aware, e.g. datetime(2026, 1, 31, 12, tzinfo=UTC)")
        self.at = self.at.astimezone(UTC)
        self.sid = self.sid or new_sid("MM" if self.num_media else "SM")

    def order(self) -> tuple[datetime, int]:
        """Twilio sorts by DateSent; within one second by arrival.

        Where a message without DateSent stands is not documented: here the time of its creation counts.
        """
        return self.at.replace(microsecond=0), self.sequence

    @property
    def participant(self) -> str:
        return self.from_ if self.direction == "inbound" else self.to

    def record(self, account: Account) -> JsonObject:
        """The record of api v2010 Messages: no opt-out type, RFC 2822 dates, redacted if so set."""
        when = format_datetime(self.at.replace(microsecond=0))
        uri = f"/2010-04-01/Accounts/{self.account_sid}/Messages/{self.sid}"
        return {
            "account_sid": self.account_sid,
            "api_version": "2010-04-01",
            "body": "" if account.redact_bodies else self.body,
            "date_created": when,
            "date_sent": when if self.sent else None,
            "date_updated": when,
            "direction": self.direction,
            "error_code": self.error_code,
            "error_message": self.error_message,
            "from": self._shown(self.from_, account),
            "messaging_service_sid": self.messaging_service_sid,
            "num_media": str(self.num_media),
            "num_segments": "1",
            "price": None,
            "price_unit": "USD",
            "sid": self.sid,
            "status": self.status,
            "subresource_uris": {"media": f"{uri}/Media.json"},
            "to": self._shown(self.to, account),
            "uri": f"{uri}.json",
        }

    def _shown(self, address: str, account: Account) -> str:
        # Twilio docs: message redaction. The last four digits of the person's number become XXXX.
        hide = account.redact_numbers and address == self.participant
        return address[:-4] + "XXXX" if hide else address


class MessageLog:
    """The messages of one account, oldest first inside, newest first outside."""

    def __init__(self) -> None:
        self._rows: list[Message] = []
        self._by_sid: dict[str, Message] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, messages: Iterable[Message]) -> None:
        with self._lock:
            for message in messages:
                self._by_sid[message.sid] = message
                bisect.insort(self._rows, message, key=Message.order)

    def remove(self, sid: str) -> None:
        """Delete a message, as REDCap does with those that it has handled."""
        with self._lock:
            self._rows.remove(self._by_sid.pop(sid))

    def find(self, sid: str) -> Message | None:
        return self._by_sid.get(sid)

    def newest_first(self) -> list[Message]:
        with self._lock:
            return self._rows[::-1]

    def page(
        self, matches: Callable[[Message], bool], *, size: int, after: Message | None
    ) -> tuple[list[Message], bool]:
        """Up to `size` matching messages older than `after`, and whether more follow."""
        with self._lock:
            end = len(self._rows)
            if after is not None:
                end = bisect.bisect_left(self._rows, after.order(), key=Message.order)
            older = (self._rows[i] for i in range(end - 1, -1, -1))
            found = list(itertools.islice(filter(matches, older), size + 1))
        return found[:size], len(found) > size


def inbound_parameters(message: Message, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The form of the incoming-message webhook; there is no timestamp, and geo fields may be blank."""
    params = {
        "MessageSid": message.sid,
        "SmsSid": message.sid,
        "SmsMessageSid": message.sid,
        "AccountSid": message.account_sid,
        "From": message.from_,
        "To": message.to,
        "Body": message.body,
        "NumMedia": str(message.num_media),
        "NumSegments": "1",
        "SmsStatus": "received",
        "ApiVersion": "2010-04-01",
        "ReferralNumMedia": "0",
    }
    if message.messaging_service_sid:
        params["MessagingServiceSid"] = message.messaging_service_sid
    if message.opt_out_type:
        params["OptOutType"] = message.opt_out_type
    if message.from_.startswith("whatsapp:"):
        params |= {"ProfileName": "Pat Example", "WaId": message.from_.removeprefix("whatsapp:+")}
    elif ":" not in message.from_:
        params |= geo_parameters(message)
    for number in range(message.num_media):
        params[f"MediaUrl{number}"] = f"https://media.example.edu/{message.sid}/{number}"
        params[f"MediaContentType{number}"] = "image/jpeg"
    return params | dict(extra or {})


def geo_parameters(message: Message) -> dict[str, str]:
    """Where both numbers are at home: partly blank, as for many real numbers."""
    known = {"Country": "US", "State": "CA", "City": "", "Zip": ""}
    blank = dict.fromkeys(known, "")
    return {
        side + name: value
        for side, address in (("From", message.from_), ("To", message.to))
        for name, value in (known if address.startswith("+1") else blank).items()
    }
