"""A STOP and a START of a test number, from the public address to the record and back.

The requests are signed as Twilio signs them; Twilio itself takes no part, so that its block list stays as it
is, unless it is asked to block the number (`block`), and to unblock it. Afterwards record and ledger are as they
were; only the two events remain in the history.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from hashlib import sha256
from json import dumps

import requests
from twilio.request_validator import RequestValidator

from shared.causes import cause_in_words
from shared.config import Project
from shared.domain.endpoints import (
    EVENTS_PATH,
    INBOUND_EVENT,
    INBOUND_PATH,
    TEST_BLOCK_PREFIX,
    TEST_SID_PREFIX,
)
from shared.domain.events import UNFINISHED, Change, State
from shared.domain.precedence import decode_statuses
from shared.errors import ConfigError, Failure
from shared.ledger import EventOutcome, StoredEvent
from shared.ledger.opt_outs.blocks import BlockedNumber, Blocks, BlockState
from shared.ledger.opt_outs.written_values import WrittenValue, WrittenValues
from shared.ledger.work.locks import try_lock
from worker.http_session import post
from worker.redcap.gateway import RedcapProject
from worker.redcap.opt_out_fields import RecordState
from worker.services import Services
from worker.steps.block_at_twilio.consents import toll_free_senders
from worker.steps.block_at_twilio.unblock import unblock_number

# Reserved for fiction in the North American numbering plan: nobody can have it.
TEST_NUMBER = "+16505550100"

_POLL_SECONDS = 0.02
Show = Callable[[Change, float, str], None]


class Via(StrEnum):
    """Which of the two doors is tried."""

    WEBHOOK = "webhook"
    EVENTS = "events"


# Twilio waits this long for an answer. Sources: Twilio docs, "Webhooks: connection overrides" and "Event Streams".
_ANSWER_SECONDS = {Via.WEBHOOK: 15, Via.EVENTS: 5}


class EndToEndTestRefused(Exception):
    """It would not be safe, or show nothing; the text says why and what to do."""


class EndToEndTestFailed(Exception):
    """A stage did not come; the text says which, and where to look."""


@dataclass(slots=True)
class _Before:
    """How one project was before: the number's status, and its records."""

    gateway: RedcapProject
    status: str | None
    states: dict[str, RecordState] = field(default_factory=dict)
    written: dict[str, WrittenValue] = field(default_factory=dict)


@dataclass(kw_only=True)
class EndToEndTest:
    """One run for one project. `number` is E.164; `show` gets each stage with the ms since its request began."""

    project: str
    services: Services
    number: str
    show: Show
    url: str
    via: Via = Via.WEBHOOK
    timeout_seconds: float = 60.0
    block: bool = False  # also have Twilio block the number, and unblock it

    def __post_init__(self) -> None:
        self._config: Project = self.services.config.projects[self.project]
        self._phone = self.services.hasher(self.number)
        self._before: dict[str, _Before] = {}

    # --- is it safe? ------------------------------------------------------------------------------

    def prepare(self, *, force: bool = False) -> list[str]:
        """The ids of the records that will be written. Raises EndToEndTestRefused, or what REDCap raises."""
        sharing = self._sharing()
        self._before = {name: self._look(name) for name in [self.project, *sharing]}
        records = self._before[self.project].states
        if not records:
            raise EndToEndTestRefused(
                f"no record of {self.project} holds this number: add a record for tests, with the number "
                f"{TEST_NUMBER} (or --number) in {self._config.phone_field}"
            )
        self._raise_if_held_by(sharing)
        if self._was_opted_out and not force:
            raise EndToEndTestRefused(
                f"the number is opted out at present (record {', '.join(records)}): if that is real, leave it "
                "alone and use a test record; --force tries it anyway, and puts the fields back afterwards"
            )
        if self.block:
            self._raise_unless_blockable()
        return list(records)

    def _raise_if_held_by(self, sharing: list[str]) -> None:
        """Records of other projects must not be written."""
        if others := [name for name in sharing if self._before[name].states]:
            raise EndToEndTestRefused(
                f"records of {', '.join(others)}, which shares this Messaging Service, hold the number as well: "
                "use one that this project alone holds"
            )

    def _sharing(self) -> list[str]:
        """Other projects that a message to this one's senders concerns."""
        config = self.services.config
        names = config.sharing(self.project)
        return [name for name in names if config.projects[name].twilio == self._config.twilio]

    def _look(self, name: str) -> _Before:
        gateway, index = self.services.project(name), self.services.index(name)
        index.refresh(gateway, since=self.services.now())
        ids = index.records([self._phone]).get(self._phone, [])
        found = gateway.read(ids)
        states = {record: state for record, state in found.items() if self._phone in state.phones}
        status = self.services.ledger.statuses(name, [self._phone]).get(self._phone)
        return _Before(gateway, status, states, WrittenValues(name, self.services.redis).of(list(states)))

    @staticmethod
    def _is_opted_out(before: _Before) -> bool:
        shown = any(state.opt_out_value or state.ticked for state in before.states.values())
        statuses = decode_statuses(before.status) if before.status else ()
        return shown or any(status.change is Change.STOP for status in statuses)

    def _raise_unless_blockable(self) -> None:
        """What this test blocks, it has to be able to unblock."""
        if not self._config.block_at_twilio:
            raise EndToEndTestRefused(f"--block needs block_at_twilio = true in [projects.{self.project}]")
        if toll_free := toll_free_senders(self.project, self.services):
            raise EndToEndTestRefused(f"{toll_free[0]} is toll-free: Twilio could not unblock the number")
        if self._was_opted_out or self._own_blocks():
            raise EndToEndTestRefused("Twilio blocks the number already: use one that is not opted out")

    def _own_blocks(self) -> list[BlockedNumber]:
        blocks = Blocks(self.project, self.services.redis).in_force()
        return [number for number in blocks if number.phone_hash == self._phone]

    # --- there and back -----------------------------------------------------------------------------

    def run(self) -> None:
        """STOP, START (sent in any case once the STOP was), and everything as it was. Raises EndToEndTestFailed."""
        stopped, began = self._send(Change.STOP)
        broken: list[str] = []
        try:
            self._follow(Change.STOP, stopped, began)
        except EndToEndTestFailed as error:
            broken.append(str(error))
        finally:
            broken += self._back()
            broken += self._unblock(stopped) if self.block else []
        if broken:
            raise EndToEndTestFailed("; ".join(broken))

    def _back(self) -> list[str]:
        """START, and everything as it was. Returns what did not work."""
        broken: list[str] = []
        try:
            started, began = self._send(Change.START)
        except EndToEndTestFailed as error:
            text = "the record still shows the opt-out: clear its fields by hand, and run optout forget"
            return [f"{error}; {text}"]
        for stage in (partial(self._follow, Change.START, started, began), partial(self._put_back, started)):
            try:
                stage()
            except EndToEndTestFailed as error:
                broken.append(str(error))
        return broken

    def _unblock(self, stopped: str) -> list[str]:
        """Have Twilio deliver to the number again. Returns what did not work."""
        began = time.monotonic()
        try:
            unblock_number(self.project, stopped, self.number, self._own_blocks(), self.services)
        except (Failure, ConfigError) as error:
            return [f"{error}: Twilio may still block the number; text START from it"]
        self.show(Change.START, _since(began), "unblocked at Twilio")
        return []

    def _send(self, change: Change) -> tuple[str, float]:
        """One signed request. Returns its message SID, and when it began."""
        prefix = TEST_BLOCK_PREFIX if self._asks_for_block(change) else TEST_SID_PREFIX
        sid = (prefix + secrets.token_hex(11))[:34]
        request = {Via.WEBHOOK: self._form, Via.EVENTS: self._event}[self.via](change, sid)
        began = time.monotonic()
        try:
            answer = request()
        except requests.RequestException as error:
            cause = cause_in_words(error, timeout_seconds=_ANSWER_SECONDS[self.via])
            raise EndToEndTestFailed(
                f"{self.url} was not reached ({cause}): optout check looks into it"
            ) from None
        if answer.status_code != 200:
            raise EndToEndTestFailed(
                f"answered {answer.status_code}: {_MEANINGS.get(answer.status_code, _OTHER)}"
            )
        onward = ", handing the message on to forward_url" if "<Redirect" in answer.text else ""
        self.show(change, _since(began), f"answered 200{onward}")
        return sid, began

    def _form(self, change: Change, sid: str) -> Callable[[], requests.Response]:
        form = {
            "MessageSid": sid,
            "AccountSid": self.services.config.twilio[self._config.twilio].account_sid,
            "MessagingServiceSid": self._config.messaging_service_sid or "",
            "From": self.number,
            "To": self._recipient,
            "Body": change.value,
            "NumMedia": "0",
        }
        if not self._config.keyword_fallback and not self._asks_for_block(change):
            form["OptOutType"] = change.value
        signature = self._signature(INBOUND_PATH, form)
        return partial(
            post, self.url.rstrip("/") + INBOUND_PATH, data=form,
            headers={"X-Twilio-Signature": signature}, timeout=_ANSWER_SECONDS[Via.WEBHOOK], allow_redirects=False,
        )  # fmt: skip

    def _asks_for_block(self, change: Change) -> bool:
        """Whether a request stands for a text that Twilio did not recognise as an opt-out."""
        return self.block and change is Change.STOP

    def _event(self, change: Change, sid: str) -> Callable[[], requests.Response]:
        now = self.services.now().isoformat(timespec="milliseconds")
        data = {
            "messageSid": sid,
            "accountSid": self.services.config.twilio[self._config.twilio].account_sid,
            "messagingServiceSid": self._config.messaging_service_sid or "",
            "from": self.number,
            "to": self._recipient,
            "body": change.value,
            "timestamp": now,
        }
        body = dumps([{"specversion": "1.0", "type": INBOUND_EVENT, "id": sid, "time": now, "data": data}])
        path = f"{EVENTS_PATH}?bodySHA256={sha256(body.encode()).hexdigest()}"
        headers = {"X-Twilio-Signature": self._signature(path, {}), "Content-Type": "application/json"}
        return partial(
            post, self.url.rstrip("/") + path, data=body, headers=headers, timeout=_ANSWER_SECONDS[Via.EVENTS],
            allow_redirects=False,
        )  # fmt: skip

    @property
    def _recipient(self) -> str:
        """A sender of the project; beside the service's SID it decides nothing (the other is Twilio's for tests)."""
        return str(next(iter(self._config.senders), "+15005550006"))

    def _signature(self, path: str, params: Mapping[str, str]) -> str:
        token = self.services.config.twilio[self._config.twilio].auth_token[0].resolve()
        address = self.services.config.public_url.rstrip("/") + path
        return str(RequestValidator(token).compute_signature(address, dict(params)))

    # --- following an event -------------------------------------------------------------------------

    def _follow(self, change: Change, sid: str, began: float) -> None:
        self._await(change, sid, began, "stored", lambda _entry: True, "is the web process' Redis this one?")
        self._await(
            change, sid, began, "record found", lambda entry: bool(entry.records) or _has_ended(entry),
            "is a worker running? see optout top",
        )  # fmt: skip
        entry = self._await(
            change, sid, began, "written to REDCap", _has_ended,
            "REDCap, or the worker, is in the way: optout check looks into it",
        )  # fmt: skip
        if entry.state not in self._expected_states(change):
            raise EndToEndTestFailed(f"the {change} ended as {entry.state}: {entry.reason}")
        self._see_record(change, began)
        if self._asks_for_block(change):
            self._see_block(sid, began)
        if not self._config.notify or entry.state is not State.UPDATED:
            return
        if self._config.notify_digest:
            self.show(change, _since(began), "e-mail gathered for the project's digest")
        else:
            self._see_mail(change, sid, began)

    def _expected_states(self, change: Change) -> set[State]:
        """An opt-out that was there before (--force) is not the program's own: the START leaves it alone."""
        states = {State.UPDATED, State.ALREADY_CURRENT}
        return states | {State.NEEDS_REVIEW} if change is Change.START and self._was_opted_out else states

    @property
    def _was_opted_out(self) -> bool:
        return self._is_opted_out(self._before[self.project])

    def _see_block(self, sid: str, began: float) -> None:
        entry = self._await(
            Change.STOP, sid, began, "answered by Twilio", lambda entry: entry.block.state is not BlockState.WAITING,
            "Twilio, or the worker, is in the way: optout check looks into it",
        )  # fmt: skip
        if entry.block.state is not BlockState.BLOCKED:
            raise EndToEndTestFailed(
                f"Twilio does not block the number: {entry.block.reason or 'it was not asked'}"
            )
        self.show(Change.STOP, _since(began), "blocked at Twilio")

    def _see_mail(self, change: Change, sid: str, began: float) -> None:
        entry = self._await(
            change, sid, began, "e-mail handed to the mail server",
            lambda entry: entry.notice is None and bool(entry.mail),
            "the mail server is in the way, the mail will be tried again: optout check looks into it",
        )  # fmt: skip
        if not entry.mail.startswith("sent"):
            raise EndToEndTestFailed(f"the e-mail was not sent to everybody: {entry.mail}")

    def _await(
        self,
        change: Change,
        sid: str,
        began: float,
        stage: str,
        reached: Callable[[StoredEvent], bool],
        where: str,
    ) -> StoredEvent:
        deadline = time.monotonic() + self.timeout_seconds
        while time.monotonic() < deadline:
            entry = self.services.ledger.load(self.project, sid)
            if entry is not None and reached(entry):
                self.show(change, _since(began), stage)
                return entry
            time.sleep(_POLL_SECONDS)
        raise EndToEndTestFailed(f"the {change} was not {stage} within {self.timeout_seconds:g} s: {where}")

    def _see_record(self, change: Change, began: float) -> None:
        """Read the records back: believe REDCap, not the ledger."""
        before = self._before[self.project]
        form = before.gateway.form
        states = before.gateway.read(list(before.states))
        wrong = [
            record
            for record, state in states.items()
            if form.is_empty(state.opt_out_value) is (change is Change.STOP or self._was_opted_out)
        ]
        if wrong or states.keys() != before.states.keys():
            raise EndToEndTestFailed(f"REDCap does not show the {change} on record {', '.join(wrong)}")
        shown = "the opt-out" if change is Change.STOP or self._was_opted_out else "none"
        self.show(change, _since(began), f"read back: record {', '.join(states)} shows {shown}")

    # --- putting back -------------------------------------------------------------------------------

    def _put_back(self, started: str) -> None:
        """Restore status and records, unless a real change came in the meantime, or the START still waits.

        One project that cannot be restored does not prevent others.
        """
        broken: list[str] = []
        for name, before in self._before.items():
            try:
                self._put_back_one(name, before, started)
            except EndToEndTestFailed as error:
                broken.append(str(error))
        if broken:
            raise EndToEndTestFailed("; ".join(broken))

    def _put_back_one(self, name: str, before: _Before, started: str) -> None:
        entry = self.services.ledger.load(name, started)
        if entry is None or entry.state in UNFINISHED:
            raise EndToEndTestFailed(
                f"the START still waits in {name}: it will be written when that is fixed; afterwards remove the "
                "test's traces with optout forget"
            )
        with try_lock(self.services.redis, f"update:{name}", wait_seconds=self.timeout_seconds) as acquired:
            # A running update reads status and records, and would overwrite what is restored.
            if not acquired:
                raise EndToEndTestFailed(
                    f"a worker was still updating {name} after {self.timeout_seconds:g} s, so that nothing was put "
                    "back: what its records showed before, write by hand, then remove the test's traces with "
                    "optout forget"
                )
            if not self.services.ledger.restore_status(name, self._phone, started, before.status):
                return
            self._close_review(name, entry)
            now = before.gateway.read(list(before.states))
            changed = [
                state for record, state in before.states.items() if now.get(record) not in {None, state}
            ]
            if changed:
                before.gateway.restore(changed)
            WrittenValues(name, self.services.redis).remember(before.written)

    def _close_review(self, name: str, entry: StoredEvent) -> None:
        if entry.state is State.NEEDS_REVIEW:
            reason = "a test message, whose record was opted out before"
            outcome = EventOutcome(
                event_id=entry.event_id, phone_hash=self._phone, state=State.SUPERSEDED, reason=reason,
                records=entry.records,
            )  # fmt: skip
            self.services.ledger.complete_events(name, [outcome], now=self.services.now())


_OTHER = "is that this program?"
_MEANINGS = {
    403: "it refused the signature; are public_url and auth_token the same in the web process' configuration?",
    404: "is that this program? it should answer /healthz",
    503: "it could not store the change; is its Redis up?",
}


def _has_ended(entry: StoredEvent) -> bool:
    return entry.state not in UNFINISHED


def _since(began: float) -> float:
    return (time.monotonic() - began) * 1000
