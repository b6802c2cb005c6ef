"""Promises P2, P3, P4, P6 and P8 as a property: whatever happens, in whatever order, REDCap ends with every opt-out
that is in force, nothing was cleared but what the program had written for a text of the same scope, the team was
notified of each change once, and nothing else was touched.

Hypothesis makes up histories of texts to two scopes, deliveries (late, repeated, out of order, lost), nightly runs,
edits of records (numbers, times, texts and ticks), outages, retries and crashes between any two effects of a step,
plays them against the real steps and the REDCap simulator, and shrinks what fails. A history that failed is replayed
by the blob that is printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

import pytest
import requests
import structlog
import tenacity.nap
import time_machine
from fakeredis import FakeRedis, FakeServer
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from shared.domain.events import UNFINISHED, Change, Notice, OptOutEvent, Source, State
from shared.domain.phone import numbers_in
from shared.domain.precedence import Decision, decide, decode_statuses
from shared.domain.scopes import staff_key
from shared.errors import TwilioRejected, TwilioUnavailable
from shared.ledger import StoredEvent, keys
from shared.messaging.tasks import TaskName
from tests.builders import REDCAP_TOKEN, SECRETS, config, hashed, project_table, sid
from tests.fakes import Message, Study
from tests.properties.interruptions import (
    InterruptedMailer,
    InterruptedPublisher,
    InterruptedRedcap,
    Interruption,
    Killed,
    interrupted_redis,
)
from tests.simulators.redcap import classic_study, fictional_phone, fictional_phone_as_typed
from worker.redcap import phone_index, rate_limit
from worker.services import Services
from worker.steps.reconcile import compare, read_log, reconcile
from worker.steps.reconcile.report import Report
from worker.steps.sweep import sweep
from worker.twilio.message_log import LogCounts, SentText

pytestmark = pytest.mark.timeout(7200)  # for thousands of cases

BEGIN = datetime(2026, 5, 4, 17, 0, tzinfo=UTC)
ZONE = ZoneInfo("America/Los_Angeles")
FIELD, BOX = "sms_opt_out_at", "sms_opt_out___1"
OLD_TIME = "2024-02-03 04:05:06"
PHONES = 4
# What a person may type into the phone field: one of four numbers in some spelling, two numbers, or none.
TYPED = st.sampled_from(
    [fictional_phone_as_typed(number) for number in range(1, PHONES + 1)]
    + [fictional_phone(2), f"{fictional_phone(1)} or {fictional_phone(3)}", "", "asked not to be called"]
)
# What a person may leave in the opt-out fields.
SHOWN = st.sampled_from(
    [
        ("", "0"),
        ("", "1"),
        (OLD_TIME, "1"),
        (OLD_TIME, "0"),
        ("withdrawn", "0"),
        ("No", "0"),
        ("2099-01-01", "1"),
    ]
)
SCOPES = ["service", "service", "service", "number"]
PLACE = st.integers(0, 100)
# What strikes in the midst of a step, after how many effects, and a number to choose by.
Strike = tuple[str, int, int] | None
INTERRUPTION: st.SearchStrategy[Strike] = st.none() | st.tuples(
    st.sampled_from(["killed", "killed", "another task", "a delivery", "lost lock"]),
    st.integers(0, 45) | st.integers(0, 150),
    PLACE,
)

ERRORS = (
    "http_500",
    "http_503",
    "reset",
    "tabs_page",
    "empty_200",
    "memory_200",
    "truncated",
    "missing_rows",
)


@dataclass(frozen=True, slots=True)
class Text:
    """A STOP or START that a participant sent, as Twilio knows it."""

    sid: str
    phone: str
    change: Change
    at: datetime
    scope: str = "service"


@dataclass(frozen=True, slots=True)
class Delivery:
    """Twilio tells us of a text, by webhook (which has no time) or Event Streams."""

    text: Text
    source: Source


class FakeLog:
    """Twilio's message log: newest first, in small pages, in whole seconds, also of what was never delivered."""

    def __init__(self, texts: list[Text]) -> None:
        self.texts = texts
        self.counts = LogCounts()
        self.not_in_log: set[str] = set()
        self.in_service = ["the service"]

    def senders(self) -> list[str]:
        return ["the service"]

    def pages(self, _sender: str, since: datetime) -> Iterator[list[OptOutEvent]]:
        newest_first = [text for text in reversed(self.texts) if text.at >= since]
        self.not_in_log.difference_update(text.sid for text in newest_first)
        for start in range(0, len(newest_first), 3):
            yield [
                _event(text, Source.MESSAGE_LOG, text.at.replace(microsecond=0))
                for text in newest_first[start : start + 3]
            ]

    def sent_pages(self, *_: Any) -> Iterator[tuple[list[OptOutEvent], list[SentText]]]:
        yield from ()


def _event(text: Text, source: Source, occurred_at: datetime) -> OptOutEvent:
    return OptOutEvent(
        project="asthma", event_id=text.sid, change=text.change, occurred_at=occurred_at, source=source,
        phone_hash=hashed(text.phone), scope=text.scope,
    )  # fmt: skip


class Convergence(RuleBasedStateMachine):
    """One study of a few records, and everything that can happen to it."""

    # Above this many records the index is refreshed by what changed since; 0 has that done always.
    small_project = phone_index.SMALL_PROJECT

    # --- the world --------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.world = ExitStack()
        self.clock = self.world.enter_context(time_machine.travel(BEGIN, tick=False))
        self._replace_pauses()
        server, self.interruption = FakeServer(), Interruption()
        self.redis: Any = FakeRedis(
            server=server, decode_responses=True
        )  # for looking; not part of the program
        project = classic_study(phone_validation="", opt_out_validation="")
        for record, typed in (("1", "(650) 555-0001"), ("2", "650.555.0002"), ("3", "+1 650 555 0002")):
            project.add_record(record, mobile=typed, first_name="Somebody")
        self.mailer = InterruptedMailer(self.interruption)
        self.study = Study(
            config({"asthma": project_table(opt_out_checkbox="sms_opt_out", suspected_digest_after=1000)}),
            {REDCAP_TOKEN: project},
            redis=interrupted_redis(server, self.interruption),
            published=InterruptedPublisher(self.interruption),
            mailer=self.mailer,
        )
        self.texts: list[Text] = []
        self.under_way: list[Delivery] = []
        self.delivered: list[Delivery] = []
        self.received: list[tuple[str, datetime]] = []  # message SID, and when it came
        self.done: list[Message] = []
        self.written: dict[str, set[str]] = {}  # event id -> the records that were written on its behalf
        self.moved: dict[str, set[str]] = {}  # event id -> those whose time became another one
        self.own: dict[
            str, tuple[str, str]
        ] = {}  # what the program wrote last to a record, and nobody changed
        self.held_since = {  # record and number
            (record, number): BEGIN
            for record, values in self._all_values().items()
            for number in numbers_in(values["mobile"], "US")
        }
        self.left_unseen: dict[tuple[str, str], datetime] = {}  # the same, of numbers that were removed
        self.twilio_away = 0  # how many further questions Twilio leaves without an answer
        self.erased: set[str] = set()  # texts that REDCap has deleted from Twilio's log
        self.repeats: Counter[str] = Counter()  # mails that may come once more, by event id
        self.problems: list[str] = []
        self.lock_lost = False
        self.beside: set[str] = set()  # texts that came in the midst of the present step
        self.rows_hidden = False  # an export has silently left out records
        self.edited: set[str] = set()  # records that somebody changed by hand
        self._new_process()

    def _replace_pauses(self) -> None:
        """Pauses take no time but the world's."""
        pause = lambda seconds: self.clock.shift(timedelta(seconds=seconds))  # noqa: E731
        patches: list[AbstractContextManager[object]] = [
            mock.patch.dict("os.environ", SECRETS),
            mock.patch.object(tenacity.nap, "time", SimpleNamespace(sleep=pause)),
            mock.patch("redis.lock.mod_time", SimpleNamespace(sleep=pause, monotonic=self._seconds)),
            mock.patch.object(rate_limit, "time", SimpleNamespace(sleep=pause)),
            mock.patch.object(compare, "time", SimpleNamespace(sleep=pause, monotonic=self._seconds)),
            mock.patch.object(read_log, "open_message_log", self._open_log),
            mock.patch.object(phone_index, "SMALL_PROJECT", self.small_project),
        ]
        for patch in patches:
            self.world.enter_context(patch)
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), processors=[])

    def _seconds(self) -> float:
        return datetime.now(UTC).timestamp()

    def _open_log(self, *_: Any) -> FakeLog:
        return FakeLog([text for text in self.texts if text.sid not in self.erased])

    def _time_of_text(self, _project: str, message_sid: str) -> datetime:
        if self.twilio_away:
            self.twilio_away -= 1
            raise TwilioUnavailable("twilio_server_error", "status 503")
        for text in self.texts:
            if text.sid == message_sid and message_sid not in self.erased:
                return text.at.replace(microsecond=0)
        raise TwilioRejected("twilio_rejected", "status 404")

    def _new_process(self) -> None:
        """A fresh worker process: nothing in its memory."""
        self.interruption.disarm()
        self.study.services = self._new_services()

    def _new_services(self) -> Services:
        services, session = self.study.new_services(), requests.Session()
        session.mount("https://", InterruptedRedcap(self.study.redcap, self.interruption, self._watched))
        services.__dict__["_session"] = session
        services.__dict__["time_of_text"] = self._time_of_text
        return services

    def _run(self, step: Callable[[], object]) -> None:
        """Run a step in the process; where it is killed, another process takes its place."""
        before = len(self.mailer.sent)
        try:
            step()
        except Killed:
            # The server's yes may not have been noted: that mail may come again, once.
            self.repeats.update(_event_of(message) for message in self.mailer.sent[before:])
            self._new_process()
        self.repeats.update(_event_of(message) for message in self.mailer.unheard)
        self.mailer.unheard.clear()

    def _watched(
        self, request: requests.PreparedRequest, answer: Callable[[], requests.Response]
    ) -> requests.Response:
        """Look over the shoulder of every import: what it changes, and whether it may (promise P4)."""
        body = request.body if isinstance(request.body, str) else (request.body or b"").decode()
        fields = dict(parse_qsl(body, keep_blank_values=True))
        if "data" not in fields:
            return answer()
        before = self._all_values()
        intents = self.redis.hgetall(keys.intents("asthma"))
        unfinished = set(self.redis.zrange(keys.unfinished("asthma"), 0, -1))
        response = answer()
        for record, values in self._all_values().items():
            changed = {name for name in values if values[name] != before.get(record, {}).get(name)}
            if record not in before:
                self.problems.append("an import created a record")
            elif changed - {FIELD, BOX}:
                self.problems.append(f"an import wrote {sorted(changed - {FIELD, BOX})}")
            elif changed:
                self._check_write(record, before[record], values, intents, unfinished)
        return response

    def _check_write(
        self,
        record: str,
        before: dict[str, str],
        after: dict[str, str],
        intents: dict[str, str],
        unfinished: set[str],
    ) -> None:
        """One record was changed by an import: by whom, may it be, and has it to be mailed?"""
        owners = [intents[phone] for phone in self._hashes(record) if phone in intents]
        if not owners and not self.lock_lost:
            self.problems.append("an import wrote a record for which no write was intended")
        moved = before[FIELD] and after[FIELD] and before[BOX] == after[BOX]
        for owner in owners:
            # A time that becomes another one is mailed only as part of a new change.
            (self.moved if moved else self.written).setdefault(owner, set()).add(record)
        cleared = (before[FIELD] and not after[FIELD]) or (before[BOX] == "1" and after[BOX] != "1")
        if cleared:
            self._check_clearing(record, before, [owner for owner in owners if owner in unfinished])
        shown = after[FIELD], after[BOX]
        self.own = (
            {**self.own, record: shown}
            if after[FIELD]
            else {k: v for k, v in self.own.items() if k != record}
        )

    def _check_clearing(self, record: str, before: dict[str, str], owners: list[str]) -> None:
        """Promise P8: only a START that is being processed, and only what the program wrote, and no STOP in force."""
        starts = [text for text in self.texts if text.sid in owners and text.change is Change.START]
        if not starts and not self.lock_lost:
            self.problems.append(f"record {record} was cleared without a START in progress")
        if (
            before[FIELD]
            and self.own.get(record, ("", ""))[0] != before[FIELD]
            and not self._is_a_stop(record, before)
        ):
            self.problems.append(f"record {record}: an entry of a person was cleared: {before[FIELD]}")
        if not before[FIELD] and record not in self.own:
            self.problems.append(f"record {record}: a person's tick was cleared")
        for text in starts:
            received = min((at for sid_, at in self.received if sid_ == text.sid), default=text.at)
            if self.held_since.get((record, text.phone), BEGIN) > received:
                self.problems.append(f"record {record} was cleared by a number that it did not hold then")
        # A STOP that comes between the note that a write begins and the write itself is written right after it.
        stops = [stop for stop in self._decision(record).stops if stop.event_id not in self.beside]
        if stops and not self.lock_lost:
            self.problems.append(f"record {record} was cleared while an opt-out was in force")

    def _is_a_stop(self, record: str, before: dict[str, str]) -> bool:
        """Whether what a record shows is the time of a STOP by one of its numbers."""
        mine = set(self._hashes(record))
        try:
            shown = datetime.strptime(before[FIELD], "%Y-%m-%d %H:%M:%S").replace(tzinfo=ZONE)
        except ValueError:
            return False
        stops = [text.at for text in self.texts if text.change is Change.STOP and hashed(text.phone) in mine]
        stops += [
            at
            for sid_, at in self.received
            if any(t.sid == sid_ and t.change is Change.STOP for t in self.texts)
        ]
        return any(abs(shown - stop) <= timedelta(seconds=62) for stop in stops)

    def _decision(self, record: str) -> Decision:
        """What the ledger says of a record now."""
        names = [*self._hashes(record), staff_key(record)]
        stored = [text for text in self.redis.hmget(keys.status("asthma"), names) if text]
        return decide(status for text in stored for status in decode_statuses(text))

    def _all_values(self) -> dict[str, dict[str, str]]:
        project = self.study.project
        names = ("mobile", "first_name", "texting_notes", FIELD, BOX)
        return {record: {name: project.value(record, name) for name in names} for record in project.records}

    def _hashes(self, record: str) -> list[str]:
        typed = self.study.project.value(record, "mobile")
        return [hashed(number) for number in numbers_in(typed, "US")]

    # --- participants and Twilio --------------------------------------------------------------------

    @rule(
        phone=st.sampled_from([1, 2, 2, 3, 4]),
        change=st.sampled_from(Change),
        seconds=st.sampled_from([1, 2, 20, 90]),
        by=st.sampled_from(["webhook", "webhook", "event_stream", "both", "nobody"]),
        late=st.sampled_from([False, False, True]),
        scope=st.sampled_from(SCOPES),
    )
    def text(
        self, phone: int, change: Change, seconds: int, by: str, late: bool, scope: str = "service"
    ) -> None:
        """A participant texts; Twilio logs it, and tells us by one way, both or not at all, at once or late."""
        self.clock.shift(timedelta(seconds=seconds, milliseconds=137))
        text = Text(sid(), fictional_phone(phone), change, datetime.now(UTC), scope)
        self.texts.append(text)
        sources = [Source(source) for source in ("webhook", "event_stream") if by in {source, "both"}]
        self.under_way += [Delivery(text, source) for source in sources]
        if sources and not late:
            self._deliver(self.under_way.pop())

    @rule(
        phone=st.integers(1, 3),
        changes=st.lists(st.sampled_from([Change.STOP, Change.START]), min_size=1, max_size=3),
        interruption=INTERRUPTION,
    )
    def text_and_work(self, phone: int, changes: list[Change], interruption: Strike) -> None:
        """A participant changes their mind quickly, and the workers do what is in the queues."""
        for change in changes:
            self.text(phone, change, 1, "webhook", False)
        self.work(interruption)

    @precondition(lambda self: self.under_way)
    @rule(place=PLACE, killed_after=st.none() | st.integers(0, 6), seconds=st.sampled_from([0, 1, 14]))
    def deliver(self, place: int, killed_after: int | None, seconds: int) -> None:
        """A delivery arrives, late and out of order; where we are killed, Twilio gets no 2xx."""
        self.clock.shift(timedelta(seconds=seconds))
        delivery = self.under_way.pop(place % len(self.under_way))
        if killed_after is not None:
            self.interruption.arm(killed_after)
        self._deliver(delivery)
        self.interruption.disarm()

    @precondition(lambda self: self.delivered)
    @rule(place=PLACE)
    def repeat_delivery(self, place: int) -> None:
        """Twilio sends a request again, or somebody replays one."""
        self._deliver(self.delivered[place % len(self.delivered)])

    def _deliver(self, delivery: Delivery) -> None:
        self.delivered.append(delivery)
        now = datetime.now(UTC)
        self.received.append((delivery.text.sid, now))
        occurred = now if delivery.source is Source.WEBHOOK else delivery.text.at
        self._run(lambda: self.study.accept([_event(delivery.text, delivery.source, occurred)], now=now))

    # --- the worker ---------------------------------------------------------------------------------

    @precondition(lambda self: self.study.published.messages)
    @rule(place=PLACE, interruption=INTERRUPTION)
    def do_a_task(self, place: int, interruption: Strike) -> None:
        """A worker takes any message of the queues."""
        message = self._taken(place)
        self._arm(interruption)
        self._run_task(message)
        self.interruption.disarm()

    @rule(interruption=INTERRUPTION)
    def work(self, interruption: Strike) -> None:
        """The workers do what is in the queues."""
        self._arm(interruption)
        for _ in range(200):
            if not self.study.published.messages:
                self.interruption.disarm()
                return
            self._run_task(self._taken(0))
        raise AssertionError("the tasks publish each other without end")

    def _arm(self, interruption: Strike) -> None:
        """What happens after so many effects from now."""
        self.beside.clear()
        if interruption is None:
            return
        kind, effects, place = interruption
        acts: dict[str, Callable[[], None] | None] = {
            "killed": None,
            "another task": lambda: self._beside(place),
            "a delivery": lambda: self._deliver_beside(place),
            "lost lock": lambda: self._overtake(place),
        }
        self.interruption.arm(effects, acts[kind])

    def _overtake(self, place: int) -> None:
        """The process stands still for so long that its lock is gone; others do all the work meanwhile."""
        self.lock_lost = True
        self._deliver_beside(place)
        self.clock.shift(timedelta(seconds=25))
        for _ in range(50):
            self._beside(0)

    def _deliver_beside(self, place: int) -> None:
        if self.under_way:
            delivery = self.under_way.pop(place % len(self.under_way))
        else:  # the one who texted last changes their mind
            last = self.texts[-1] if self.texts else Text("", fictional_phone(1), Change.START, BEGIN)
            self.clock.shift(timedelta(seconds=1))
            change = Change.START if last.change is Change.STOP else Change.STOP
            text = Text(sid(), last.phone, change, datetime.now(UTC), last.scope)
            self.texts.append(text)
            delivery = Delivery(text, Source.WEBHOOK)
        self.delivered.append(delivery)
        self.beside.add(delivery.text.sid)
        now = datetime.now(UTC)
        self.received.append((delivery.text.sid, now))
        occurred = now if delivery.source is Source.WEBHOOK else delivery.text.at
        self.study.accept([_event(delivery.text, delivery.source, occurred)], now=now)

    def _beside(self, place: int) -> None:
        """Another worker process does a task."""
        if self.study.published.messages:
            services, message = self.study.services, self._taken(place)
            self.study.services = self._new_services()
            try:
                if message.task is not TaskName.RECONCILE:
                    self.study.run(message)
            finally:
                self.study.services = services

    def _taken(self, place: int) -> Message:
        messages = self.study.published.messages
        position = place % len(messages)
        message = messages[position]
        del messages[position]
        self.done.append(message)
        return message

    def _run_task(self, message: Message) -> None:
        if message.task is not TaskName.RECONCILE:
            self._run(lambda: self.study.run(message))

    @precondition(lambda self: self.done)
    @rule(place=PLACE, lose_the_queues=st.booleans())
    def repeat_a_task(self, place: int, lose_the_queues: bool) -> None:
        """A message is delivered twice; or the broker comes back empty."""
        if lose_the_queues:
            self.study.published.messages.clear()
        self._run_task(self.done[place % len(self.done)])

    @rule(minutes=st.sampled_from([1, 6]), interruption=INTERRUPTION)
    def sweep(self, minutes: int, interruption: Strike) -> None:
        """Minutes pass, and beat has the sweep done."""
        self.clock.shift(timedelta(minutes=minutes, seconds=1))
        self._arm(interruption)
        self._run(lambda: sweep(self.study.services))
        self.interruption.disarm()

    @rule(interruption=INTERRUPTION)
    def reconcile(self, interruption: Strike) -> None:
        """A night passes in a second."""
        self._arm(interruption)
        self._run(self._reconcile)
        self.interruption.disarm()

    def _reconcile(self) -> Report:
        return reconcile("asthma", self.study.services)

    @precondition(lambda self: self.delivered)
    @rule(place=PLACE)
    def replay(self, place: int) -> None:
        """An administrator has an event done again (`optout replay`)."""
        text = self.delivered[place % len(self.delivered)].text
        if self.study.ledger.reopen("asthma", text.sid, now=datetime.now(UTC)):
            self.study.published(TaskName.LOOKUP, "asthma", text.sid)

    # --- outages ------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(ERRORS),
        kind=st.sampled_from(["export", "import", "import", "any"]),
        after_commit=st.booleans(),
        times=st.integers(1, 4),
        interruption=INTERRUPTION,
    )
    def break_redcap(
        self, name: str, kind: str, after_commit: bool, times: int, interruption: Strike
    ) -> None:
        """REDCap's next answers are bad ones, before or after it did what was asked."""
        self.rows_hidden |= name == "missing_rows"
        self.study.redcap.faults.add(name, kind=kind, after_commit=after_commit, times=times)
        self.work(interruption)

    @rule(times=st.integers(1, 3))
    def break_twilio(self, times: int) -> None:
        """Twilio leaves the next questions for a text's time without an answer."""
        self.twilio_away = times

    @precondition(lambda self: self.delivered)
    @rule(place=PLACE)
    def erase(self, place: int) -> None:
        """REDCap deletes a STOP that it was given from Twilio's log."""
        text = self.delivered[place % len(self.delivered)].text
        if text.change is Change.STOP and self.study.ledger.load("asthma", text.sid):
            self.erased.add(text.sid)

    @rule(trouble=st.sampled_from(["refused_for_now", "lost_answer", "mended"]))
    def break_mail(self, trouble: str) -> None:
        """The mail server is in trouble, or somebody mends what is broken."""
        if trouble == "mended":
            self.study.redcap.faults.clear()
            self.mailer.trouble.clear()
            self.study.project.locked_records.clear()
        else:
            self.mailer.trouble.append(trouble)

    # --- the study team -------------------------------------------------------------------------------

    @rule(
        act=st.sampled_from(["renumber", "renumber", "add", "delete", "edit", "lock"]),
        place=PLACE,
        typed=TYPED,
        shown=SHOWN,
    )
    def edit(self, act: str, place: int, typed: str, shown: tuple[str, str]) -> None:
        """A record is renumbered, added, deleted or locked, or its opt-out fields are edited by hand."""
        project, records = self.study.project, sorted(self.study.project.records)
        free = sorted({"1", "2", "3", "4", "5"} - set(records))
        if act == "add" and free:
            # Perhaps with a number that has opted out already.
            project.add_record(free[0], mobile=typed)
            self.edited.add(free[0])
            self.own.pop(free[0], None)
            self._note_numbers(free[0], typed)
        if act == "add" or not records or self._being_written(record := records[place % len(records)]):
            return
        self.edited.add(record)
        match act:
            case "renumber":
                project.set_value(record, "mobile", typed)
                self._note_numbers(record, typed)
            case "edit":
                project.set_value(record, FIELD, shown[0])
                project.set_value(record, BOX, shown[1])
                self.own.pop(record, None)
            case "lock":
                project.lock_record(record)
            case "delete":
                project.delete_record(record)
                project.locked_records.discard(record)

    def _note_numbers(self, record: str, typed: str) -> None:
        """Since when a record holds its numbers. One that comes back before an export showed it gone never left."""
        now, held_now = datetime.now(UTC), set(numbers_in(typed, "US"))
        for number in held_now:
            since = self.left_unseen.get((record, number), now) if self._shown(record, number) else now
            self.held_since.setdefault((record, number), since)
        for other in [known for known in self.held_since if known[0] == record and known[1] not in held_now]:
            self.left_unseen[other] = self.held_since.pop(other)

    def _shown(self, record: str, number: str) -> bool:
        """Whether the last export showed the record with that number, or there was none yet."""
        index = phone_index.PhoneIndex("asthma", self.redis)
        return index.refreshed_at() is None or record in index.records([hashed(number)]).get(
            hashed(number), []
        )

    def _being_written(self, record: str) -> bool:
        """Whether a write of the record is not known to have ended. What a person changes in that moment
        hides from everybody whether it had reached REDCap; docs/explanation/reliability.md says so."""
        intents = self.redis.hgetall(keys.intents("asthma"))
        return any(phone in intents for phone in self._hashes(record))

    # --- the end ----------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """All outages end, time passes: then everything must be as promised."""
        if not hasattr(self, "study"):
            return
        with self.world:
            self._mend_everything()
            self._drain()
            self._check_nothing_waits()
            self._check_that_redcap_follows_the_ledger()
            assert self._healed_report().outcome == "success"
            self._drain()
            self._check_nothing_waits()
            self._check_redcap()
            self._check_mails()
            self._check_that_nothing_is_left_to_do()
            assert not self.problems

    def _mend_everything(self) -> None:
        self.clock.shift(timedelta(minutes=6))  # locks of the dead and the rests of hosts are over
        self.study.redcap.faults.clear()
        self.study.project.locked_records.clear()
        self.mailer.trouble.clear()
        self._new_process()

    def _drain(self) -> None:
        for _ in range(12):
            self.work(None)
            if not self.redis.zcard(keys.DUE):
                return
            self.clock.shift(timedelta(minutes=5, seconds=1))
            self._run(lambda: sweep(self.study.services))
        raise AssertionError(f"still due: {self.redis.zrange(keys.DUE, 0, -1)}")

    def _healed_report(self) -> Report:
        return self._reconcile()

    def _entries(self) -> list[StoredEvent]:
        return list(self.study.ledger.entries("asthma"))

    def _check_nothing_waits(self) -> None:
        """Promise P6."""
        assert not [entry for entry in self._entries() if entry.state in UNFINISHED]
        for key in (keys.pending, keys.unfinished, keys.mailing, keys.intents):
            assert not self.redis.exists(key("asthma")), key.__name__
        assert not self.redis.exists(keys.PROBLEMS)

    def _check_that_redcap_follows_the_ledger(self) -> None:
        """Promise P2 as far as it needs no nightly run: what we were told, of records that nobody edited."""
        if self.rows_hidden:
            return
        for record in set(self.study.project.records) - self.edited:
            decision = self._decision(record)
            entries = [self.study.ledger.load("asthma", stop.event_id) for stop in decision.stops]
            if not entries or any(
                entry is None or entry.state in {State.FAILED, State.NO_MATCHING_RECORD} for entry in entries
            ):
                continue
            value, ticked = (self.study.project.value(record, name) for name in (FIELD, BOX))
            assert value, f"record {record} shows no opt-out: {decision.stops}"
            assert ticked == "1", record

    def _in_force(self, record: str) -> list[Text]:
        """The opt-outs in force by Twilio's clock: of each number's latest changes, in each scope, the STOPs."""
        mine = set(self._hashes(record))
        latest = {
            (text.phone, text.scope): text
            for text in self.texts
            if hashed(text.phone) in mine and text.change is not Change.UNCLEAR
        }
        return [text for text in latest.values() if text.change is Change.STOP]

    def _check_redcap(self) -> None:
        """Promise P2: every opt-out in force is shown; what a person wrote in the field stays beside the tick."""
        for record in self.study.project.records:
            value, ticked = (self.study.project.value(record, name) for name in (FIELD, BOX))
            if in_force := self._in_force(record):
                shown = f"record {record} shows {value!r}, {ticked} after {in_force}"
                assert value, shown
                assert ticked == "1", shown
            if record not in self.edited and value:
                self._check_time(record, value)
        self._check_that_starts_ended_what_they_had_to()

    def _check_time(self, record: str, value: str) -> None:
        """An opt-out time that the program entered is of a STOP by the record's number."""
        assert self._is_a_stop(record, {FIELD: value}), f"record {record} shows {value}"

    def _check_that_starts_ended_what_they_had_to(self) -> None:
        """A START that ended as done has cleared the records that nobody edited.

        Not so if a process paused for so long that it lost its lock, and wrote the STOP after the START was handled:
        then the opt-out stays, as the reconciliation never clears.
        """
        if self.lock_lost:
            return
        for record in set(self.study.project.records) - self.edited:
            statuses = [
                text for text in self.redis.hmget(keys.status("asthma"), self._hashes(record)) if text
            ]
            ids = [status.event_id for text in statuses for status in decode_statuses(text)]
            entries = [self.study.ledger.load("asthma", event_id) for event_id in ids]
            done = all(entry and entry.state in {State.UPDATED, State.ALREADY_CURRENT} for entry in entries)
            if entries and done and not self._decision(record).opted_out and not self.rows_hidden:
                assert self.study.project.value(record, FIELD) == "", record

    def _check_mails(self) -> None:
        """Promise P3: each change that reached REDCap is told, once, and no other as saved."""
        saved, unsaved, review = (
            self._told(notice) for notice in (Notice.SAVED, Notice.UNSAVED, Notice.REVIEW)
        )
        for event_id in self.written:
            # Where REDCap took one record of a number and refused another, the mail is about the refusal.
            told = saved[event_id] + unsaved[event_id] + review[event_id]
            assert told >= 1 or self._is_reviewed_already(event_id), f"{event_id} was written and not told"
        for event_id, times in [*saved.items(), *unsaved.items()]:
            # A record that is written later is mailed later.
            records = self.written.get(event_id, set()) | self.moved.get(event_id, set())
            most = max(1, len(records)) + self.repeats[event_id]
            assert times <= most, f"{event_id} was told {times} times"
        for entry in self._entries():
            if entry.state is State.UPDATED:
                assert saved[entry.event_id], f"{entry.event_id} is updated and not told"
            if entry.state is State.FAILED:
                assert unsaved[entry.event_id], f"{entry.event_id} failed and was not told"

    def _is_reviewed_already(self, event_id: str) -> bool:
        """Whether it needs review, and the participant's reviews of that day were mailed already."""
        entry = self.study.ledger.load("asthma", event_id)
        return entry is not None and entry.state is State.NEEDS_REVIEW

    def _told(self, notice: Notice) -> Counter[str]:
        mails = [mail for mail in self.mailer.sent if f".{notice}@" in str(mail["Message-ID"])]
        return Counter(_event_of(mail) for mail in mails)

    def _check_that_nothing_is_left_to_do(self) -> None:
        """A second nightly run finds nothing and tells nothing."""
        mails, imports = self._mails_about_changes(), self.study.imports()
        report = self._reconcile()
        self._drain()
        assert (report.changes_recovered, report.records_corrected) == (0, 0)
        assert (self._mails_about_changes(), self.study.imports()) == (mails, imports)

    def _mails_about_changes(self) -> int:
        """Without the reports, which also say what REDCap has deleted from Twilio's log."""
        return sum("X-Opt-Out-Event" in mail for mail in self.mailer.sent)


def _event_of(message: EmailMessage) -> str:
    return str(message["X-Opt-Out-Event"])


class ConvergenceOfALargeProject(Convergence):
    """The same with an index that is refreshed by what changed since."""

    small_project = 0


TestConvergence = Convergence.TestCase
TestConvergenceOfALargeProject = ConvergenceOfALargeProject.TestCase
