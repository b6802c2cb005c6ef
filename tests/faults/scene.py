"""What the fault tests do and ask: bursts of texts, kills, outages; and whether all that was accepted arrived."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from shared.ledger import keys
from shared.messaging.tasks import TaskName
from tests.blackhole import Blackhole
from tests.integration.privacy import Needles
from tests.integration.world import (
    HASH_KEY,
    STUDIES,
    Participant,
    World,
    configuration,
    sender_of,
    service_sid,
)
from tests.processes import Platform, Process, wait_until
from tests.simulators.redcap import RedcapSimulator
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import AUTH_TOKEN, Account, Texted, TwilioSimulator

# Within this long everything has to be in order again after a fault, given that the minutes between two
# sweeps are skipped (`hurry`).
PATIENCE_SECONDS = 150.0


class ProxiedPlatform(Platform):
    """Its processes reach Redis through a proxy."""

    def __init__(self, folder: Path, config: str, secrets: dict[str, str], *, proxy: Blackhole) -> None:
        self._proxy = proxy
        super().__init__(folder, config, secrets, level="DEBUG")

    def _process(self, name: str, command: Sequence[str]) -> Process:
        if name == "redis":
            return super()._process(name, command)
        self.env["OPTOUT_REDIS_URL"] = f"redis://127.0.0.1:{self._proxy.port}/0"
        return super()._process(name, command)


@dataclass(frozen=True, slots=True)
class Told:
    """A text of a participant, and whether we took it with a 2xx."""

    who: Participant
    texted: Texted

    @property
    def accepted(self) -> bool:
        return bool(self.texted.attempts) and 200 <= self.texted.attempts[-1].status < 300


@dataclass
class Scene(World):
    """A world whose parts are broken."""

    proxy: Blackhole = field(kw_only=True)
    arrived: int = 0  # accepted changes that were seen in REDCap, over all tests

    # --- breaking -----------------------------------------------------------------------------------

    def restart(self, name: str) -> None:
        """Start a process that has ended, and wait until it does its work (again)."""
        process = self.platform[name]
        marks = {"worker": " ready.", "beat": "beat: Starting"}
        before = process.text().count(marks.get(name, "\0"))
        process.start()
        if name in marks:
            wait_until(
                lambda: process.text().count(marks[name]) > before, seconds=60, what=f"{name} is ready"
            )
        else:
            self.platform.wait_ready(name)

    def mend(self) -> None:
        """Take back every fault, start what is down, and let what is under way come to its end."""
        self.redcap.faults.clear()
        self.redcap.revoked.clear()
        self.redcap.lift_ban()
        self.study().locked_records.clear()
        self.smtp.mend()
        self.proxy.swallow_new = False
        for name in ("redis", "web", "worker", "beat"):
            if not self.platform[name].running:
                self.restart(name)
        self.until(lambda: not self.waiting(), what="nothing waits")

    def while_texting(self, number: int, act: Callable[[], None], *, project: str = "asthma") -> list[Told]:
        """A burst: participants text STOP, a few at a time, and in the midst of it something happens."""
        people = [self.enrol(project) for _ in range(number)]
        begun, counter = threading.Event(), count(1)

        def send(who: Participant) -> Told:
            told = Told(who, self.text(who.phone, project=project))
            if next(counter) >= number // 3:
                begun.set()
            return told

        with ThreadPoolExecutor(4) as pool:
            sent = pool.map(send, people)
            begun.wait(30)
            act()
            return list(sent)

    # --- time ---------------------------------------------------------------------------------------

    def hurry(self) -> None:
        """Let the pauses of minutes be over: all that is due later is due now, and hosts have rested."""
        redis = self.platform.redis
        with suppress(RedisError, OSError):
            due: list[Any] = redis.zrange(keys.DUE, 0, -1)
            if due:
                redis.zadd(keys.DUE, dict.fromkeys(due, 0), xx=True)
            for circuit in redis.keys(f"{keys.circuit('')}*"):
                redis.delete(circuit)
            self.publish(TaskName.SWEEP)

    def until(self, condition: Callable[[], object], *, what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait, skipping the pauses. Raises TimeoutError with what the processes said."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                wait_until(condition, seconds=1.5, what=what)
            except TimeoutError as error:
                if time.monotonic() < deadline:
                    self.hurry()
                    continue
                error.add_note(f"waiting: {self.waiting()}\n{self.log_without_debug()[-6000:]}")
                raise
            return

    def waiting(self, also: str = "") -> dict[str, int]:
        """What is under way, of the projects that can be written (and one more)."""
        redis = self.platform.redis
        figures = {
            f"{name} {what.__name__}": int(redis.zcard(what(name)))
            for name in STUDIES
            if name != "dateonly" or name == also
            for what in (keys.unfinished, keys.pending, keys.mailing)
        }
        return {name: figure for name, figure in figures.items() if figure}

    # --- what must be then ----------------------------------------------------------------------------

    def expect_all_saved(self, told: Sequence[Told], *, project: str = "asthma", repeats: int = 0) -> None:
        """Every accepted change is in REDCap, ended as updated, and was mailed once (`repeats` more in all)."""
        accepted = [each for each in told if each.accepted]
        assert accepted, "nothing was accepted: this shows nothing"
        self.until(
            lambda: all(self.value(each.who, project) for each in accepted) and not self.waiting(project),
            what="all is in REDCap and told",
        )
        self.arrived += len(accepted)
        states = Counter(self._state(each, project) for each in accepted)
        assert states == {"updated": len(accepted)}
        mails = [len(self.mails_about(each.texted)) for each in accepted]
        assert min(mails) >= 1
        assert sum(mails) <= len(accepted) + repeats

    def _state(self, told: Told, project: str) -> str:
        entry = self.entry(told.texted, project)
        return str(entry.state) if entry else "lost"

    def resend(self, told: Sequence[Told]) -> list[Told]:
        """Twilio sends again what was not answered with 2xx; answers all, as they now are."""
        return [each if each.accepted else self._again(each) for each in told]

    def _again(self, told: Told) -> Told:
        return Told(told.who, self.twilio.call_webhook(told.texted.message))

    # --- promise P5 -----------------------------------------------------------------------------------

    def needles(self) -> Needles:
        """Everything personal or secret that was used."""
        return Needles.of(
            phones=[*(who.phone for who in self.participants),
                    *(message.participant for message in self.twilio.messages())],
            texts={"name": {who.name for who in self.participants}, "secret": self._secrets()},
        )  # fmt: skip

    def mail_texts(self) -> dict[str, str]:
        return {
            f"mail {number}": mail.message.as_string() + mail.text + mail.html
            for number, mail in enumerate(self.smtp.inbox)
        }

    def _secrets(self) -> set[str]:
        return {AUTH_TOKEN, HASH_KEY, *(token for token, *_ in STUDIES.values())}

    def secrets_in_process_list(self) -> list[str]:
        """Command lines of our processes and their children that show a secret."""
        pids = [process.pid for process in self.platform.processes.values() if process.running]
        pids += [child for process in self.platform.processes.values() if process.running
                 for child in process.children()]  # fmt: skip
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in pids]
        assert lines
        return [line for line in lines if any(secret in line for secret in self._secrets())]


def kill(pid: int) -> None:
    """SIGKILL, to a process that may just have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that has ended may wait for its parent)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def running_scene(folder: Path) -> Iterator[Scene]:
    """Start everything but Flower, with logs at DEBUG level."""
    redcap = RedcapSimulator({token: make() for token, _, make, _ in STUDIES.values()})
    with ExitStack() as stack:
        stack.enter_context(redcap.serve())
        smtp = stack.enter_context(SmtpSimulator().serve())
        proxy = Blackhole(0)
        stack.enter_context(proxy.serve())
        secrets = {f"{name.upper()}_TOKEN": token for name, (token, *_) in STUDIES.items()} | {
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "OPTOUT_HASH_KEY": HASH_KEY,
            "OPTOUT_SMTP_URL": smtp.url,
        }
        twilio = TwilioSimulator([Account()])
        secrets["OPTOUT_TWILIO_API_URL"] = stack.enter_context(twilio.serve()).url
        platform = ProxiedPlatform(folder, configuration(redcap.url), secrets, proxy=proxy)
        proxy.forward_to(platform.redis_port)
        stack.enter_context(platform)
        platform.start("redis", "web", "worker", "beat")
        twilio.deliver_to(platform.web_url)
        for number in {service for _, service, _, _ in STUDIES.values()}:
            twilio.add_service(sid=service_sid(number), senders=[sender_of(number)])
        yield Scene(platform, redcap, smtp, twilio, proxy=proxy)
