"""Doubles that keep the real behaviour where it matters: the REDCap simulator without a socket, a mailer
that remembers, a publisher that remembers, and `Study`, which puts them together as a worker would."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from importlib import import_module
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest
import requests
from click.testing import CliRunner, Result
from fakeredis import FakeRedis
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPResponse

from shared.config import Config
from shared.domain.events import Change, OptOutEvent
from shared.errors import MailDeferred, TwilioRejected
from shared.ledger import Accepted, Ledger, StoredEvent, keys
from shared.messaging.record_events import publish_lookups
from shared.messaging.tasks import Publisher, TaskName
from tests import builders
from tests.simulators.redcap import Project, RedcapSimulator, classic_study
from worker.cli import COMMANDS, main
from worker.mail.verdicts import Recipients
from worker.services import Services
from worker.steps.background import run_job
from worker.steps.block_at_twilio import block_at_twilio
from worker.steps.lookup_records import lookup_records
from worker.steps.refresh_index import refresh_index
from worker.steps.send_email import send_email
from worker.steps.sweep import sweep
from worker.steps.update_records import update_records
from worker.steps.verify_project import verify_project


def fake_redis() -> Any:
    """An empty Redis of its own, in this process."""
    return FakeRedis(decode_responses=True)


def at_once(flush: Callable[[], None]) -> None:
    """Counts requests without a timer, which could log after the test has ended."""
    flush()


def accept(
    events: Sequence[OptOutEvent], *, ledger: Ledger, publish: Publisher, now: datetime | None = None
) -> list[Accepted]:
    """Record events, and publish the lookups that the ledger asks for."""
    answers = ledger.accept(events, now=now or datetime.now(UTC), lookups=True)
    publish_lookups(
        publish, [event for event, each in zip(events, answers, strict=True) if each is Accepted.ASK]
    )
    return [Accepted.NEW if answer is Accepted.ASK else answer for answer in answers]


class Message(NamedTuple):
    """A message that was published."""

    task: TaskName
    args: tuple[str, ...]
    delay_seconds: float = 0


class RecordingPublisher:
    """Remembers what was published; raises `error` instead where it is set."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.error: Exception | None = None

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None:
        if self.error is not None:
            raise self.error
        self.messages.append(Message(task, args, delay_seconds))

    def of(self, task: TaskName) -> list[tuple[str, ...]]:
        """The arguments of the messages for a task."""
        return [message.args for message in self.messages if message.task is task]


class FakeMailer:
    """Takes mail, or raises `errors` first."""

    sender = "optout-bridge@example.edu"

    def __init__(self) -> None:
        self.sent: list[EmailMessage] = []
        self.errors: deque[Exception] = deque()
        self.refuses: list[str] = []
        self.defers: list[str] = []
        self.sent_to: list[tuple[str, ...]] = []  # the accepted recipients of each mail

    def send(self, message: EmailMessage, *, to: Sequence[str] = ()) -> Recipients:
        if self.errors:
            raise self.errors.popleft()
        missed = [*self.refuses, *self.defers]
        accepted = tuple(address for address in to if address not in missed)
        deferred = tuple(address for address in to if address in self.defers)
        if deferred and not accepted:
            raise MailDeferred("smtp_deferred", "code 451 at RCPT")
        self.sent.append(message)
        self.sent_to.append(accepted)
        return Recipients(tuple(self.refuses), deferred, "code 451 at RCPT" if deferred else "")

    @property
    def subjects(self) -> list[str]:
        return [str(message["Subject"]) for message in self.sent]


class Clock:
    """The time, which a test may set ahead."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class InProcess(BaseAdapter):
    """Hands requests to the REDCap simulator without a socket, so that unit tests stay quick."""

    def __init__(self, simulator: RedcapSimulator) -> None:
        super().__init__()
        self._simulator = simulator

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        body = request.body or b""
        text = body.decode() if isinstance(body, bytes) else body
        answer = self._simulator.answer("127.0.0.1", parse_qsl(text, keep_blank_values=True))
        if answer.reset:
            raise requests.ConnectionError("reset")
        raw = HTTPResponse(
            io.BytesIO(answer.body),
            headers={"Content-Type": answer.content_type, **answer.headers},
            status=answer.status,
            preload_content=False,
        )
        response: requests.Response = HTTPAdapter().build_response(request, raw)
        return response

    def close(self) -> None:
        """Nothing is open."""


def in_process_session(simulator: RedcapSimulator) -> requests.Session:
    """A session whose every request the simulator answers."""
    session = requests.Session()
    session.mount("https://", InProcess(simulator))
    return session


@dataclass
class Study:
    """A worker over fake Redis and the REDCap simulator, which does its tasks when told to."""

    config: Config
    projects: Mapping[str, Project]  # by token
    redis: Any = field(default_factory=fake_redis)
    published: RecordingPublisher = field(default_factory=RecordingPublisher)
    mailer: FakeMailer = field(default_factory=FakeMailer)
    clock: Clock = field(default_factory=Clock)
    later: list[Message] = field(default_factory=list)  # published with a delay; tests do them when they like
    text_times: dict[str, datetime] = field(default_factory=dict)  # by message SID, as Twilio knows them
    twilio_errors: deque[Exception] = field(
        default_factory=deque
    )  # raised first, when Twilio is asked for a time

    def __post_init__(self) -> None:
        self.redcap = RedcapSimulator(self.projects)
        self.services = self.new_services()

    def new_services(self) -> Services:
        """Services as another worker process would have them."""
        services = Services(config=self.config, redis=self.redis, publish=self.published, now=self.clock)
        services.__dict__["_session"] = in_process_session(self.redcap)
        services.__dict__["mailer"] = self.mailer
        services.__dict__["time_of_text"] = self._time_of_text
        return services

    def _time_of_text(self, _project: str, message_sid: str) -> datetime:
        if self.twilio_errors:
            raise self.twilio_errors.popleft()
        if message_sid not in self.text_times:
            raise TwilioRejected("twilio_rejected", "status 404, code 20404")
        return self.text_times[message_sid].replace(microsecond=0)

    @property
    def ledger(self) -> Ledger:
        return self.services.ledger

    @property
    def project(self) -> Project:
        """The first project, as REDCap has it."""
        return next(iter(self.redcap.projects.values()))

    # --- what happens -----------------------------------------------------------------------------

    def text(self, phone: str, change: str | Change = Change.STOP, **more: Any) -> OptOutEvent:
        """A participant texts; the change is accepted. `received` is when (default: more than a second later)."""
        self.clock.ahead += timedelta(seconds=1.1)
        received = more.pop("received", None) or self.clock()
        event = builders.opt_out_event(phone, change, when=more.pop("when", None) or received, **more)
        self.text_times.setdefault(event.event_id, event.occurred_at)
        self.accept([event], now=received)
        return event

    def accept(self, events: Iterable[OptOutEvent], *, now: datetime | None = None) -> list[Accepted]:
        return accept(list(events), ledger=self.ledger, publish=self.published, now=now or self.clock())

    def work(self) -> None:
        """Do the published tasks, and those that these publish, until none is left but those in `later`."""
        while self.published.messages:
            message = self.published.messages.popleft()
            if message.delay_seconds:
                self.later.append(message)
            else:
                self.run(message)

    def run(self, message: Message) -> None:
        """Do one task."""
        match message.task:
            case TaskName.LOOKUP:
                lookup_records(message.args[0], message.args[1], self.services)
            case TaskName.UPDATE:
                update_records(message.args[0], self.services)
            case TaskName.EMAIL:
                send_email(message.args[0], message.args[1], self.services)
            case TaskName.SWEEP:
                sweep(self.services)
            case TaskName.BLOCK:
                block_at_twilio(message.args[0], self.services)
            case TaskName.VERIFY:
                project = message.args[0]
                run_job(self.services, lambda: verify_project(project, self.services), message.task, project)
            case TaskName.REFRESH:
                project = message.args[0]
                run_job(self.services, lambda: refresh_index(project, self.services), message.task, project)
            case TaskName.RECONCILE:
                raise AssertionError("no step of these asks for a reconciliation")

    def sweep(self) -> None:
        """Sweep, and verify the projects as it asks."""
        sweep(self.services)
        for message in [each for each in self.published.messages if each.task is TaskName.VERIFY]:
            self.published.messages.remove(message)
            self.run(message)

    def sweep_later(self, **ahead: float) -> None:
        """Set the clock ahead (default: two minutes), sweep and do what that publishes."""
        self.clock.ahead += timedelta(**ahead) if ahead else timedelta(minutes=2)
        self.end_rests()
        sweep(self.services)
        self.work()

    def end_rests(self) -> None:
        """Let REDCap hosts be asked again that were left alone after failures."""
        for circuit in self.redis.keys(f"{keys.circuit('')}*"):
            self.redis.delete(circuit)

    def lose_mail_server(self, monkeypatch: pytest.MonkeyPatch, url: str = "") -> None:
        """Take the secret that names the mail server away, or make it `url`."""
        monkeypatch.setenv("OPTOUT_SMTP_URL", url)
        self.services.__dict__.pop("mailer")

    def find_mail_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it back."""
        monkeypatch.setenv("OPTOUT_SMTP_URL", builders.SECRETS["OPTOUT_SMTP_URL"])
        monkeypatch.setattr("worker.services.make_mailer", lambda *_, **__: self.mailer)

    # --- what is then -----------------------------------------------------------------------------

    def entry(self, event: OptOutEvent) -> StoredEvent:
        """An accepted event as the ledger has it."""
        entry = self.ledger.load(event.project, event.event_id)
        assert entry is not None
        return entry

    def state(self, event: OptOutEvent) -> str:
        return self.entry(event).state.value

    def value(self, record: str = "1", field_name: str = "sms_opt_out_at") -> str:
        return self.project.value(record, field_name)

    def pending(self, project: str = "asthma") -> int:
        return int(self.redis.zcard(keys.pending(project)))

    def problem(self, project: str = "asthma") -> dict[str, str]:
        stored = self.redis.hget(keys.PROBLEMS, project)
        return dict(json.loads(stored)) if stored else {}

    def imports(self) -> int:
        return self.redcap.count("import")

    def exports(self) -> int:
        return self.redcap.count("export")


def study(project: Project | None = None, **changes: Any) -> Study:
    """A study with one project named asthma; changes are to its [projects.asthma] table."""
    table = builders.project_table(**changes)
    return Study(builders.config({"asthma": table}), {builders.REDCAP_TOKEN: project or classic_study()})


def host() -> str:
    """The host of the studies' REDCap, as the limiter names it."""
    return urlsplit(builders.REDCAP_URL).netloc


def command_line(study: Study, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Returns what runs `optout ARGS` over the study's services."""
    for name in COMMANDS:
        module = import_module(f"worker.cli.{name.replace('-', '_')}")
        monkeypatch.setattr(module, "make_services", lambda: study.services, raising=False)
    monkeypatch.setattr("worker.cli.configure_logging", lambda _level: None)
    return lambda *args, **more: CliRunner().invoke(main, args, **more)
