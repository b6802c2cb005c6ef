"""What the benchmarks run on: the platform's processes, and simulators as processes of their own."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from shared.ledger import keys
from tests.processes import BIN, Platform, Process, free_port, wait_until
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, SERVICE_SID

PROJECT = "asthma"
REDCAP_TOKEN = "FAKEASTHMATOKEN00000000000000000"
SECRETS = {
    "OPTOUT_HASH_KEY": "a-key-for-benchmarks-only",
    "BENCH_TWILIO_TOKEN": AUTH_TOKEN,
    "BENCH_REDCAP_TOKEN": REDCAP_TOKEN,
}
CONFIG = """\
public_url = "{public_url}"
[smtp]
sender = "optout-bridge@example.edu"
[twilio.main]
account_sid = "{account_sid}"
auth_token = "env:BENCH_TWILIO_TOKEN"
[projects.asthma]
redcap_url = "{redcap_url}"
redcap_token = "env:BENCH_REDCAP_TOKEN"
redcap_requests_per_minute = {per_minute}
twilio = "main"
messaging_service_sid = "{service_sid}"
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
opt_out_checkbox = "sms_opt_out"
notify = ["coordinator@example.edu"]
{more}
"""


def configuration(redcap_url: str, *, per_minute: int = 300, more: str = "") -> str:
    """One project, asthma; `more` is further lines of its table."""
    return CONFIG.format(
        public_url=PUBLIC_URL, account_sid=ACCOUNT_SID, service_sid=SERVICE_SID, redcap_url=redcap_url,
        per_minute=per_minute, more=more,
    )  # fmt: skip


EVENT_LOOP, WSGI, WAITRESS = "event loop", "WSGI", "waitress"


def web_command(made: Platform, application: str, server: str) -> list[str]:
    """A web process of any application: on granian as shipped, on its WSGI interface, or on waitress."""
    *command, _ = made["web"].command
    if server == WAITRESS:
        command = [
            str(BIN / "waitress-serve"),
            "--host",
            "127.0.0.1",
            "--port",
            str(made.web_port),
            "--threads",
            "8",
        ]
    if server == WSGI:
        at = command.index("--interface")
        command[at : at + 2] = ["--interface", "wsgi", "--blocking-threads", "8"]
    return [*command, application]


@contextmanager
def running(process: Process) -> Iterator[Process]:
    """A process for the length of the block."""
    process.start()
    try:
        yield process
    finally:
        process.stop()


@dataclass(slots=True)
class Redcap:
    """The REDCap simulator in another process."""

    url: str

    @property
    def _control(self) -> str:
        return self.url.removesuffix("api/") + "_sim/"

    def set(self, **settings: Any) -> None:
        """Latency, rate limit, …: the attributes of RedcapSimulator."""
        requests.post(f"{self._control}settings", json=settings, timeout=30).raise_for_status()

    def clear(self) -> None:
        """Forget counters and bans."""
        requests.post(f"{self._control}clear", timeout=30).raise_for_status()

    def counts(self) -> dict[str, Any]:
        """Requests by kind, records written, whether anybody was banned."""
        answer = requests.get(f"{self._control}requests", timeout=30)
        answer.raise_for_status()
        counts: dict[str, Any] = answer.json()
        return counts

    def change(self, record: str, **values: str) -> None:
        """Set values of a record."""
        order = {"project": REDCAP_TOKEN, "record": record, "values": values}
        requests.post(f"{self._control}records", json=order, timeout=30).raise_for_status()


@contextmanager
def redcap(folder: Path, *, records: int, **settings: Any) -> Iterator[Redcap]:
    """The simulator with `records` participants, numbered from 1, with their phones."""
    port = free_port()
    command = [
        sys.executable, "-m", "tests.simulators.redcap", "--port", str(port), "--records", str(records),
        "--asthma-token", REDCAP_TOKEN,
    ]  # fmt: skip
    with running(Process(f"redcap-{port}", command, env=os.environ, folder=folder)):
        served = Redcap(f"http://127.0.0.1:{port}/api/")
        wait_until(lambda: bool(served.counts()), seconds=120, what="the REDCap simulator answers")
        served.set(**settings)
        yield served


@dataclass(slots=True)
class MailServer:
    """A mail server in another process that counts and forgets."""

    url: str
    figures: Path

    def mails(self) -> int:
        """How many mails it took."""
        return int(self.figures.read_text() or 0)


@contextmanager
def mail_server(folder: Path) -> Iterator[MailServer]:
    """A mail server that takes everything."""
    port = free_port()
    figures = folder / f"mails-{port}"
    command = [sys.executable, "-m", "tests.benchmarks.mailbox", str(port), str(figures)]
    with running(Process(f"mail-{port}", command, env=os.environ, folder=folder)):
        wait_until(figures.exists, what="the mail server listens")
        yield MailServer(f"smtp://127.0.0.1:{port}", figures)


@contextmanager
def platform(
    folder: Path, config: str, *names: str, smtp_url: str = "smtp://127.0.0.1:1"
) -> Iterator[Platform]:
    """The named processes of the platform, all by default; logs at INFO as in production."""
    folder.mkdir(parents=True, exist_ok=True)
    with Platform(folder, config, {**SECRETS, "OPTOUT_SMTP_URL": smtp_url}) as made:
        made.start(*names)
        yield made


@contextmanager
def whole_world(folder: Path, *, records: int, config: Mapping[str, Any], **settings: Any) -> Iterator[World]:
    """Everything: platform with Flower, REDCap, mail; the phone index is built and counters are at zero."""
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        served = stack.enter_context(redcap(folder, records=records))
        mail = stack.enter_context(mail_server(folder))
        text = configuration(served.url, **config)
        made = stack.enter_context(platform(folder, text, smtp_url=mail.url))
        world = World(made, served, mail)
        wait_until(world.is_indexed, seconds=300, what="the phone index is built")
        time.sleep(1.0)
        served.clear()
        served.set(**settings)
        yield world


@dataclass(slots=True)
class World:
    """The platform and what is around it."""

    platform: Platform
    redcap: Redcap
    mail: MailServer

    def is_indexed(self) -> bool:
        return bool(self.platform.redis.hexists(keys.index_state(PROJECT), "built_ms"))

    def unfinished(self) -> int:
        """Events that have not ended."""
        return int(self.platform.redis.zcard(keys.unfinished(PROJECT)))

    def due_mails(self) -> int:
        """E-mails that have not been sent."""
        return int(self.platform.redis.zcard(keys.mailing(PROJECT)))

    def is_drained(self) -> bool:
        return not self.unfinished()

    def is_told(self) -> bool:
        return not self.unfinished() and not self.due_mails()


# --- what the operating system says of a process ------------------------------------------------------


def family(process: Process) -> list[int]:
    """A process and its descendants."""
    found = [process.pid]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def pss_megabytes(pid: int) -> float:
    """Proportional set size: pages that several processes share are divided among them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(r"^Pss: +(\d+)", text, re.MULTILINE)[1]) / 1024  # type: ignore[index]


def peak_rss_megabytes(pid: int) -> float:
    """The largest resident set so far."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmHWM:\s+(\d+)", text, re.MULTILINE)[1]) / 1024  # type: ignore[index]


def cpu_seconds(*pids: int) -> float:
    """User and system time of processes, all threads, so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / ticks
