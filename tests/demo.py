"""`make demo`: the main job as a story, on real processes and simulators; exits 1 if a step goes wrong.

On a terminal it stays up afterwards, with Flower's address; elsewhere it ends.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import requests
from rich.console import Console
from rich.markup import escape

from tests.processes import CONSOLE_LOGIN, Platform, wait_until
from tests.simulators.redcap import Project, RedcapSimulator, classic_study, longitudinal_study
from tests.simulators.smtp import Phone, SmtpSimulator, serve_inbox
from tests.simulators.twilio import (
    ACCOUNT_SID,
    SENDER,
    SERVICE_SID,
    UNSUBSCRIBED,
    Account,
    TwilioSimulator,
    utc_now,
)

# As in deploy/demo/secrets: published, so that no deployment starts with them.
AUTH_TOKEN = "demo-only-twilio0000000000000000"
ASTHMA_TOKEN = "demo-only-asthma0000000000000000"
SLEEP_TOKEN = "demo-only-sleep-0000000000000000"
PUBLIC_URL = "https://optout.example.edu"
SLEEP_SENDER = "+16505550177"
EVENT = "enrolment_arm_1"

CONFIG = """\
public_url = "{public_url}"
time_zone = "America/Los_Angeles"

[smtp]
sender = "optout-bridge@example.edu"

[twilio.main]
account_sid = "{account_sid}"
auth_token = "env:DEMO_TWILIO_TOKEN"

[projects.asthma]
redcap_url = "{redcap_url}"
redcap_token = "env:DEMO_ASTHMA_TOKEN"
twilio = "main"
messaging_service_sid = "{service_sid}"
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
opt_out_checkbox = "sms_opt_out"
block_at_twilio = true
notify = ["asthma-coordinator@example.edu"]

[projects.sleep]
redcap_url = "{redcap_url}"
redcap_token = "env:DEMO_SLEEP_TOKEN"
twilio = "main"
senders = ["{sleep_sender}"]
phone_field = "mobile"
phone_event = "enrolment_arm_1"
opt_out_field = "sms_opt_out_at"
opt_out_event = "enrolment_arm_1"
notify = ["sleep-coordinator@example.edu"]
time_zone = "America/Chicago"
opt_out_keywords = ["ALTO"]
"""


class StoryError(Exception):
    """A step of the story that failed."""


class Stage(Protocol):
    """Where the platform runs: as processes (`make demo`) or in containers (`docker compose up`)."""

    web_url: str
    console_url: str
    flower_url: str

    def run(self, *args: str) -> subprocess.CompletedProcess[str]: ...

    def logs(self) -> str: ...


@dataclass(slots=True)
class World:
    """Everything that the story touches."""

    platform: Stage
    twilio: TwilioSimulator
    smtp: SmtpSimulator
    asthma: Project
    sleep: Project
    inbox_url: str = ""

    def expect(self, what: str, condition: Callable[[], object]) -> None:
        """Wait for something to be true. Raises StoryError after 20 s."""
        try:
            wait_until(condition, seconds=20, what=what)
        except TimeoutError as error:
            raise StoryError(str(error)) from None

    def opted_out(self, project: Project, *records: str) -> bool:
        """Whether all the records show an opt-out."""
        event = EVENT if project is self.sleep else None
        return all(project.value(record, "sms_opt_out_at", event=event) for record in records)

    def state(self, message_sid: str) -> list[str]:
        """The states of an event, one per project that it concerns."""
        return [event["state"] for event in self.events() if event["event_id"] == message_sid]

    def events(self) -> list[dict[str, str]]:
        """The ledger, from `optout events --json`."""
        found: list[dict[str, str]] = json.loads(self.platform.run("events", "--json").stdout)
        return found


@dataclass(frozen=True, slots=True)
class Step:
    """One scene: what happens, and what must be true afterwards."""

    title: str
    play: Callable[[World], str]  # returns the evidence, in one line


def stop(world: World) -> str:
    """A STOP, told to REDCap and to the team."""
    texted = world.twilio.text(from_="+16505550101", service=SERVICE_SID, body="STOP", advanced_opt_out=True)
    _answered(texted.status, 200)
    world.expect("record 1 shows the opt-out", lambda: world.opted_out(world.asthma, "1"))
    world.expect("one mail", lambda: len(world.smtp.inbox) == 1)
    world.expect("the event is updated", lambda: world.state(texted.message.sid) == ["updated"])
    return "the webhook was answered 200; record 1 shows the time of the text, and one e-mail was sent"


def duplicate(world: World) -> str:
    """The same webhook twice: as Twilio sends it again after a lost answer."""
    first = next(message for message in world.twilio.messages() if message.body == "STOP")
    hook = world.twilio.hook_for(first)
    assert hook is not None
    again = world.twilio.call_webhook(first, hook)
    _answered(again.status, 200)
    if len(world.smtp.inbox) != 1 or len(world.events()) != 1:
        raise StoryError("the duplicate was taken for a new event")
    return "answered 200; ledger, REDCap and mailbox unchanged"


def shared_number(world: World) -> str:
    """One number in two records, spelt differently; one mail about both."""
    world.twilio.text(from_="+16505550102", service=SERVICE_SID, body="Stop", advanced_opt_out=True)
    world.expect("records 2 and 3 show the opt-out", lambda: world.opted_out(world.asthma, "2", "3"))
    world.expect("one mail about both", lambda: "records 2, 3" in world.smtp.inbox[-1].subject)
    return "records 2 and 3 are written, and one e-mail names both"


def start(world: World) -> str:
    """START clears what STOP had set."""
    world.twilio.text(from_="+16505550101", service=SERVICE_SID, body="START", advanced_opt_out=True)
    world.expect("record 1 is cleared", lambda: not world.opted_out(world.asthma, "1"))
    world.expect("a mail about it", lambda: "START" in world.smtp.inbox[-1].subject)
    return "record 1 is empty again"


def other_study(world: World) -> str:
    """A longitudinal study on a plain number, with a word of its own, through Event Streams."""
    world.twilio.add_sink()
    world.twilio.text(from_="+16505550111", to=SLEEP_SENDER, body="alto", via="events")
    world.expect("record S-1 shows the opt-out", lambda: world.opted_out(world.sleep, "S-1"))
    world.expect("a mail to its team", lambda: "[sleep]" in world.smtp.inbox[-1].subject)
    return "record S-1 shows the opt-out, in the time zone of its study"


def missed(world: World) -> str:
    """A webhook that never came: the reconciliation with Twilio's log finds it."""
    at = utc_now() - timedelta(minutes=5)
    world.twilio.text(from_="+16505550104", service=SERVICE_SID, body="UNSUBSCRIBE", deliver=False, at=at)
    report = json.loads(world.platform.run("reconcile", "--project", "asthma", "--json").stdout)[0]
    if report["changes_recovered"] != 1:
        raise StoryError(f"{report['changes_recovered']} changes recovered instead of 1")
    world.expect("record 4 shows the opt-out", lambda: world.opted_out(world.asthma, "4"))
    world.expect(
        "mails about change and run", lambda: "record 4" in "".join(m.subject for m in world.smtp.inbox)
    )
    return "1 change recovered; record 4 shows Twilio's own time"


def phrase(world: World) -> str:
    """A wish in other words: nothing is written before a person has read it, in Twilio's console."""
    texted = world.twilio.text(
        from_="+16505550101", service=SERVICE_SID, body="please take me off your list", advanced_opt_out=True
    )
    _answered(texted.status, 200)
    sid = texted.message.sid
    world.expect("the event waits for a review", lambda: world.state(sid) == ["needs_review"])
    world.expect("a mail asks for it", lambda: "review" in world.smtp.inbox[-1].subject)
    if world.opted_out(world.asthma, "1"):
        raise StoryError("an unclear text was written")
    world.platform.run("review", sid, "stop", "--reason", "read in the console", "--by", "coordinator")
    world.expect("record 1 shows the opt-out", lambda: world.opted_out(world.asthma, "1"))
    return "record 1 was empty until somebody decided"


def staff(world: World) -> str:
    """An opt-out by phone: recorded by staff, blocked at Twilio, proved by the next text and the reconciliation."""
    decision = ("record", "asthma", "5", "stop", "--reason", "phoned the study nurse", "--by", "coordinator")
    world.platform.run(*decision)
    world.expect("record 5 shows the opt-out", lambda: world.opted_out(world.asthma, "5"))
    world.expect("a mail about it", lambda: "record 5" in world.smtp.inbox[-1].subject)
    if "blocked at Twilio since" not in world.smtp.inbox[-1].text:
        raise StoryError("the mail does not say that Twilio blocks the number")
    # Twilio's log has whole seconds: the next text is sent after the opt-out, not in its second.
    time.sleep(1.0)
    if world.twilio.send_outbound(to="+16505550105", service=SERVICE_SID).error_code != UNSUBSCRIBED:
        raise StoryError("Twilio delivered a text to a number that it was asked to block")
    [report] = json.loads(world.platform.run("reconcile", "--project", "asthma", "--json").stdout)
    if report["texts_after_opt_out"] != [{"record": "5", "refused": 1, "delivered": 0}]:
        raise StoryError(f"the report shows {report['texts_after_opt_out']}")
    return "record 5 shows the opt-out; Twilio refused the next text, and the report counts it"


def forged(world: World) -> str:
    """A request that Twilio did not sign."""
    before = len(world.events())
    form = {
        "MessageSid": "SM" + "f" * 32, "AccountSid": ACCOUNT_SID, "MessagingServiceSid": SERVICE_SID,
        "From": "+16505550105", "To": SENDER, "Body": "STOP", "OptOutType": "STOP",
    }  # fmt: skip
    headers = {"X-Twilio-Signature": "Zm9yZ2VkIGZvcmdlZCBmb3JnZWQ="}
    answer = requests.post(f"{world.platform.web_url}/twilio/inbound", data=form, headers=headers, timeout=5)
    _answered(answer.status_code, 403)
    if len(world.events()) != before:
        raise StoryError("a forged request was stored")
    return "403; ledger unchanged"


STORY = [
    Step("A participant texts STOP", stop),
    Step("Twilio delivers the same webhook again: nothing changes, no second mail", duplicate),
    Step("STOP from a number that two records hold, spelt differently", shared_number),
    Step("The first participant texts START", start),
    Step("Another study: longitudinal, its own word (ALTO), through Event Streams", other_study),
    Step("A webhook is lost; `optout reconcile` recovers it from Twilio's message log", missed),
    Step("A text in other words asks to stop; `optout review` decides it", phrase),
    Step("A participant phones: `optout record`, and Twilio blocks the number", staff),
    Step("A forged signature is rejected", forged),
]


def _answered(status: int, expected: int) -> None:
    if status != expected:
        raise StoryError(f"answered {status} instead of {expected}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What REDCap, the ledger and the mailbox hold at one moment."""

    opt_outs: dict[tuple[str, str], str]  # project and record
    events: dict[str, dict[str, str]]
    mails: int

    @classmethod
    def of(cls, world: World) -> Snapshot:
        """Take one."""
        shown = {
            (name, record): project.value(record, "sms_opt_out_at", event=event)
            for name, project, event in (("asthma", world.asthma, None), ("sleep", world.sleep, EVENT))
            for record in project.ordered_ids()
        }
        events = {f"{entry['event_id']} {entry['project']}": entry for entry in world.events()}
        return cls(shown, events, len(world.smtp.inbox))


def changes(before: Snapshot, after: Snapshot, world: World) -> Iterator[tuple[str, str]]:
    """What a scene has changed: where, and what."""
    for (project, record), value in after.opt_outs.items():
        if value != before.opt_outs.get((project, record)):
            yield "REDCap", f"{project}, record {record}: sms_opt_out_at = {value or '(empty)'}"
    for key, entry in after.events.items():
        if entry["state"] != before.events.get(key, {}).get("state"):
            sid = f"{entry['event_id'][:6]}…{entry['event_id'][-4:]}"
            yield "Ledger", f"{sid} {entry['change'] or 'unclear'}: {entry['state']} ({entry['source']})"
    for mail in world.smtp.inbox[before.mails : after.mails]:
        yield "E-mail", mail.subject


def show(before: Snapshot, after: Snapshot, world: World, console: Console) -> None:
    """What a scene has changed, a line each."""
    for where, what in changes(before, after, world):
        console.print(f"  [bold]{where:<7}[/] {escape(what)}", highlight=False)


def the_studies() -> tuple[Project, Project]:
    """Asthma and sleep, with their participants."""
    asthma, sleep = classic_study(), longitudinal_study()
    for record, mobile in (("1", "(650) 555-0101"), ("2", "650.555.0102"), ("3", "+1 650 555 0102"),
                           ("4", "650-555-0104"), ("5", "6505550105")):  # fmt: skip
        asthma.add_record(record, mobile=mobile)
    sleep.add_record("S-1", event=EVENT, mobile="(650) 555-0111")
    return asthma, sleep


def the_account() -> TwilioSimulator:
    """An account with a Messaging Service for asthma, and a plain number for sleep."""
    twilio = TwilioSimulator([Account(sid=ACCOUNT_SID, auth_token=AUTH_TOKEN)], public_url=PUBLIC_URL)
    twilio.add_service(sid=SERVICE_SID, senders=[SENDER])
    twilio.add_sender(SLEEP_SENDER, sms_url="https://redcap.example.edu/surveys/")
    return twilio


def the_phone(twilio: TwilioSimulator) -> Phone:
    """The participants' phones, for people who want to text something themselves."""
    names = {
        "+16505550101": "asthma, record 1",
        "+16505550102": "asthma, records 2 and 3",
        "+16505550104": "asthma, record 4",
        "+16505550105": "asthma, record 5",
        "+16505550111": "sleep, record S-1",
        "+16505550199": "a number of no record",
    }

    def send(number: str, words: str) -> str:
        if number not in names:
            return "Choose one of the participants."
        if number == "+16505550111":
            texted = twilio.text(from_=number, to=SLEEP_SENDER, body=words, via="events")
        else:
            texted = twilio.text(from_=number, service=SERVICE_SID, body=words, advanced_opt_out=True)
        return f"Sent “{words}”; the platform answered {texted.status}. REDCap and inbox show it in a second."

    return Phone(names, send)


@contextlib.contextmanager
def the_world(folder: Path) -> Iterator[World]:
    """Simulators and processes, running."""
    (asthma, sleep), twilio = the_studies(), the_account()
    redcap = RedcapSimulator({ASTHMA_TOKEN: asthma, SLEEP_TOKEN: sleep})
    with (
        redcap.serve(),
        SmtpSimulator().serve() as smtp,
        twilio.serve() as api,
        serve_inbox(smtp, phone=the_phone(twilio)) as inbox_url,
    ):
        config = CONFIG.format(
            public_url=PUBLIC_URL, account_sid=ACCOUNT_SID, service_sid=SERVICE_SID,
            redcap_url=redcap.url, sleep_sender=SLEEP_SENDER,
        )  # fmt: skip
        secrets = {
            "OPTOUT_HASH_KEY": "insecure-hash-key-of-the-demo-only",
            "OPTOUT_SMTP_URL": smtp.url,
            "OPTOUT_TWILIO_API_URL": api.url,
            "OPTOUT_DEMO": "1",
            "DEMO_TWILIO_TOKEN": AUTH_TOKEN,
            "DEMO_ASTHMA_TOKEN": ASTHMA_TOKEN,
            "DEMO_SLEEP_TOKEN": SLEEP_TOKEN,
        }
        with Platform(folder, config, secrets) as platform:
            twilio.deliver_to(platform.web_url)
            platform.start()
            yield World(platform, twilio, smtp, asthma, sleep, inbox_url)


def play(world: World, console: Console) -> bool:
    """Play the story, and show what each step changes. Returns whether all steps succeeded."""
    for number, step in enumerate(STORY, 1):
        console.rule(f"{number}. {step.title}", align="left")
        before = Snapshot.of(world)
        try:
            evidence = step.play(world)
        except StoryError as error:
            console.print(f"✗ {error}", style="bold red")
            console.print(world.platform.logs()[-4000:], markup=False)
            return False
        show(before, Snapshot.of(world), world, console)
        console.print(f"✓ {evidence}", style="green", highlight=False)
    console.rule("The whole story went as expected", align="left")
    return True


def main() -> int:
    """Play the story. Answers the exit code."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    with tempfile.TemporaryDirectory(prefix="opt-out-bridge-demo-") as folder:
        console.print(
            "Starting Valkey, web, worker, beat, Flower and the console, and stand-ins for REDCap, Twilio and mail …"
        )
        with the_world(Path(folder)) as world:
            if not play(world, console):
                return 1
            stay_up(world, console)
    return 0


def stay_up(world: World, console: Console) -> None:
    """On a terminal, leave everything running for a look around."""
    if not sys.stdout.isatty():
        return
    user, password = CONSOLE_LOGIN
    console.print(f"Console (user {user}, password {password}):  {world.platform.console_url}")
    console.print(f"The mailbox (also as HTML):   {world.inbox_url}/")
    console.print(f"Text something yourself:      {world.inbox_url}/phone")
    console.print(f"Flower (what the tasks did):  {world.platform.flower_url}/tasks")
    console.print(f"Figures for Prometheus:       {world.platform.web_url}/metrics")
    console.print("Press Ctrl+C to end.")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
