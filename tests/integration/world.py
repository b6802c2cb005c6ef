"""The whole platform as processes, between simulators of REDCap, Twilio and mail, for integration tests.

One world serves all tests of a session: each test takes participants of its own, so that none disturbs another.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.ledger import Ledger, StoredEvent
from shared.messaging.celery_config import make_celery
from shared.messaging.publisher import CeleryPublisher
from shared.messaging.tasks import TaskName
from tests.processes import Platform, wait_until
from tests.simulators.redcap import (
    Project,
    RedcapSimulator,
    classic_study,
    longitudinal_study,
    repeating_phone_study,
)
from tests.simulators.smtp import Mail, SmtpSimulator
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, Account, Texted, TwilioSimulator

HASH_KEY = "an-integration-hash-key"
SENDER_ADDRESS = "optout-bridge@example.edu"

# Project -> token, Messaging Service, study, further lines of its table.
STUDIES: dict[str, tuple[str, str, Callable[[], Project], str]] = {
    "asthma": ("A" * 32, "1", classic_study, 'opt_out_checkbox = "sms_opt_out"\nnotify_unmatched = true'),
    "sleep": ("B" * 32, "2", longitudinal_study,
              'phone_event = "enrolment_arm_1"\nopt_out_event = "enrolment_arm_1"\ntime_zone = "America/Chicago"'),
    "family": ("C" * 32, "3", repeating_phone_study, ""),
    "north": ("D" * 32, "4", lambda: classic_study("North", project_id=104), ""),
    "south": ("E" * 32, "4", lambda: classic_study("South", project_id=105), ""),
    "phoned": ("1" * 32, "6", lambda: classic_study("Phoned", project_id=107), "block_at_twilio = true"),
    "dateonly": ("F" * 32, "5", lambda: classic_study("Dates", opt_out_validation="date_ymd", project_id=106), ""),
}  # fmt: skip


def service_sid(number: str) -> str:
    return "MG" + number.rjust(32, "0")


def sender_of(number: str) -> str:
    return f"+1650555999{number}"


def configuration(redcap_url: str) -> str:
    """The TOML of all studies."""
    lines = [
        f'public_url = "{PUBLIC_URL}"',
        'time_zone = "America/Los_Angeles"',
        f'[smtp]\nsender = "{SENDER_ADDRESS}"',
        f'[twilio.main]\naccount_sid = "{ACCOUNT_SID}"\nauth_token = "env:TWILIO_AUTH_TOKEN"',
    ]
    for name, (_, service, _, more) in STUDIES.items():
        lines.append(f'''[projects.{name}]
redcap_url = "{redcap_url}"
redcap_token = "env:{name.upper()}_TOKEN"
twilio = "main"
messaging_service_sid = "{service_sid(service)}"
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
suspected_digest_after = 1000
notify = ["{name}@example.edu"]
redcap_requests_per_minute = 6000
{more}''')
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Participant:
    """One who was enrolled for a test."""

    record: str
    phone: str  # E.164
    name: str


@dataclass
class World:
    """The platform and what stands around it."""

    platform: Platform
    redcap: RedcapSimulator
    smtp: SmtpSimulator
    twilio: TwilioSimulator
    participants: list[Participant] = field(default_factory=list)
    bodies: set[str] = field(default_factory=set)
    _texted: dict[str, float] = field(default_factory=dict)
    _ended: dict[str, float] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # --- what tests do ----------------------------------------------------------------------------

    def new_phone(self) -> tuple[str, str, str, str]:
        """A number that no other test has: area, exchange, line, and all of it in E.164."""
        number = next(self._numbers)
        area, exchange, line = "415", "555", f"{number:04d}"
        return area, exchange, line, f"+1{area}{exchange}{line}"

    def enrol(self, project: str = "asthma", style: str = "({}) {}-{}") -> Participant:
        """A new record with a new number, in some spelling."""
        area, exchange, line, phone = self.new_phone()
        participant = Participant(f"R{line}", phone, f"Given{line} Family{line}")
        self.participants.append(participant)
        self.study(project).add_record(
            participant.record, first_name=participant.name, mobile=style.format(area, exchange, line)
        )
        return participant

    def text(self, phone: str, body: str = "STOP", project: str = "asthma", **more: Any) -> Texted:
        """Somebody texts a project's number; Twilio delivers it.

        Not in the same second as the last text of the same number: there a STOP counts before a START. Nor in the one
        in which that ended: the index may have learned of the record then, and clears nothing that is older.
        """
        self.bodies.add(body)
        if "at" not in more:
            self.let_a_second_pass(phone)
            self._texted[phone] = time.time()
        more.setdefault("advanced_opt_out", True)
        return self.twilio.text(from_=phone, body=body, service=service_sid(STUDIES[project][1]), **more)

    def let_a_second_pass(self, phone: str) -> None:
        """Wait until what comes now is later than the last text of a number, in Twilio's whole seconds."""
        earliest = max(self._texted.get(phone, 0) + 1.1, int(self._ended.get(phone, 0)) + 1)
        time.sleep(max(0, earliest - time.time()))

    def publish(self, task: TaskName, *args: str) -> None:
        """Ask the workers for a task."""
        app = make_celery(self.platform.redis_url)
        CeleryPublisher(app)(task, *args)
        app.close()

    # --- what is then -----------------------------------------------------------------------------

    def study(self, project: str = "asthma") -> Project:
        return self.redcap.projects[STUDIES[project][0]]

    def value(self, participant: Participant, project: str = "asthma", name: str = "sms_opt_out_at") -> str:
        return self.study(project).value(participant.record, name)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.platform.redis)

    def entry(self, texted: Texted, project: str = "asthma") -> StoredEvent | None:
        return self.ledger.load(project, texted.message.sid)

    def ended(self, texted: Texted, project: str = "asthma", *, seconds: float = 20) -> StoredEvent:
        """The event as soon as it has ended and its mail is dealt with."""

        def finished() -> StoredEvent | None:
            entry = self.entry(texted, project)
            return entry if entry and entry.finished_at and entry.notice is None else None

        try:
            entry: StoredEvent = wait_until(finished, seconds=seconds, what=f"{texted.message.sid} ends")
        except TimeoutError as error:
            error.add_note(f"{self.entry(texted, project)}\n{self.log_without_debug()[-3000:]}")
            raise
        self._ended[texted.message.from_] = time.time()
        return entry

    def log_without_debug(self) -> str:
        """What web and worker said above DEBUG level, for when something fails."""
        lines = (self.platform["web"].text() + self.platform["worker"].text()).splitlines()
        return "\n".join(line for line in lines if '"level": "debug"' not in line)

    def mails_about(self, texted: Texted) -> list[Mail]:
        sid = texted.message.sid
        return [mail for mail in self.smtp.inbox if mail.message["X-Opt-Out-Event"] == sid]

    def optout(self, *args: str, **more: Any) -> Any:
        """The JSON that an `optout` command prints."""
        return json.loads(self.platform.run(*args, "--json", **more).stdout)


@contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """Start everything, with logs at DEBUG level."""
    redcap = RedcapSimulator({token: make() for token, _, make, _ in STUDIES.values()})
    with ExitStack() as stack:
        stack.enter_context(redcap.serve())
        smtp = stack.enter_context(SmtpSimulator().serve())
        twilio = TwilioSimulator([Account()])
        api = stack.enter_context(twilio.serve())
        secrets = {f"{name.upper()}_TOKEN": token for name, (token, *_) in STUDIES.items()} | {
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "OPTOUT_HASH_KEY": HASH_KEY,
            "OPTOUT_SMTP_URL": smtp.url,
            "OPTOUT_TWILIO_API_URL": api.url,
            "FLOWER_UNAUTHENTICATED_API": "true",  # tests read it; without this Flower keeps it shut
        }
        platform = Platform(folder, configuration(redcap.url), secrets, level="DEBUG")
        stack.enter_context(platform)
        platform.start()
        twilio.deliver_to(platform.web_url)
        for number in {service for _, service, _, _ in STUDIES.values()}:
            twilio.add_service(sid=service_sid(number), senders=[sender_of(number)])
        yield World(platform, redcap, smtp, twilio)
