"""The nightly comparison on real processes: Valkey, worker and beat, and the command in the foreground."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import requests

from shared.domain.events import milliseconds
from shared.ledger import keys
from shared.messaging.celery_config import make_celery
from shared.messaging.tasks import QUEUES, TaskName
from tests.processes import BIN, ROOT, Platform, wait_until
from tests.simulators.redcap import Project, RedcapSimulator, classic_study, enrol, fictional_phone
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    PUBLIC_URL,
    SENDER,
    SERVICE_SID,
    Message,
    TwilioSimulator,
)

LOS_ANGELES = ZoneInfo("America/Los_Angeles")
REDCAP_TOKEN = "A" * 32
FLOWER_LOGIN = ("operator", "a-password-for-tests-only")
CONFIG = """
public_url = "{public_url}"
time_zone = "America/Los_Angeles"

[smtp]
sender = "optout-bridge@example.edu"

[twilio.main]
account_sid = "{account_sid}"
auth_token = "env:TEST_AUTH_TOKEN"

[projects.asthma]
redcap_url = "{redcap_url}"
redcap_token = "env:TEST_REDCAP_TOKEN"
twilio = "main"
messaging_service_sid = "{service_sid}"
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
notify = ["coordinator@example.edu"]
redcap_requests_per_minute = 6000
"""


@dataclass(slots=True)
class World:
    """Simulators and processes; nothing runs yet but the simulators."""

    platform: Platform
    twilio: TwilioSimulator
    redcap: RedcapSimulator
    smtp: SmtpSimulator
    project: Project

    def reconcile(self, *arguments: str, check: bool = True) -> dict[str, Any]:
        """`optout reconcile`, and its report."""
        reports = json.loads(self.platform.run("reconcile", "--json", *arguments, check=check).stdout)
        report: dict[str, Any] = reports[0]
        return report

    def changes_told(self) -> list[str]:
        return [mail.subject for mail in self.smtp.inbox if "Nightly" not in mail.subject]

    def reports_told(self) -> list[str]:
        return [mail.subject for mail in self.smtp.inbox if "Nightly" in mail.subject]


class Worlds:
    def __init__(self, opened: ExitStack, folder: Path) -> None:
        self._opened = opened
        self._folder = folder

    def __call__(self, records: int) -> World:
        project = classic_study()
        enrol(project, records)
        redcap = self._opened.enter_context(RedcapSimulator({REDCAP_TOKEN: project}).serve())
        smtp = self._opened.enter_context(SmtpSimulator().serve())
        twilio = TwilioSimulator()
        api = self._opened.enter_context(twilio.serve())
        config = CONFIG.format(
            public_url=PUBLIC_URL,
            account_sid=ACCOUNT_SID,
            redcap_url=redcap.url,
            service_sid=SERVICE_SID,
        )
        secrets = {
            "OPTOUT_HASH_KEY": "a-key-for-tests-only",
            "OPTOUT_SMTP_URL": smtp.url,
            "OPTOUT_TWILIO_API_URL": api.url,
            "TEST_AUTH_TOKEN": AUTH_TOKEN,
            "TEST_REDCAP_TOKEN": REDCAP_TOKEN,
            "OPTOUT_FLOWER_LOGIN": ":".join(FLOWER_LOGIN),
        }
        platform = self._opened.enter_context(Platform(self._folder, config, secrets))
        twilio.deliver_to(platform.web_url)
        return World(platform, twilio, redcap, smtp, project)


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[Worlds]:
    with ExitStack() as opened:
        yield Worlds(opened, tmp_path)


def shown(moment: datetime) -> str:
    return moment.astimezone(LOS_ANGELES).strftime("%Y-%m-%d %H:%M:%S")


def mixed_changes(count: int, people: int, *, every: float = 7) -> tuple[list[Message], dict[int, str]]:
    """STOPs and STARTs of random people, `every` so many seconds, and what each one's field must say at last."""
    dice, truth = random.Random(20_260_504), dict[int, str]()
    begin = datetime.now(UTC) - timedelta(seconds=every * count + 60)
    messages = []
    for number in range(count):
        person, at = dice.randint(1, people), begin + timedelta(seconds=every * number)
        body = dice.choice(["STOP", "START"])
        messages.append(Message(fictional_phone(person), SENDER, body, at, messaging_service_sid=SERVICE_SID))
        # A repeated STOP keeps the time of the first.
        truth[person] = (truth.get(person) or shown(at)) if body == "STOP" else ""
    return messages, truth


def test_two_hundred_changes_that_only_twilio_saw_end_in_the_truth_and_are_told_once(worlds: Worlds) -> None:
    world = worlds(150)
    world.platform.start("redis", "worker")  # the web process is down
    long_ago = datetime.now(UTC) - timedelta(days=30)
    opted_out_before = set(range(1, 40))
    for person in opted_out_before:
        world.twilio.text(from_=fictional_phone(person), body="STOP", deliver=False, at=long_ago)
    world.reconcile()
    wait_until(lambda: len(world.changes_told()) == len(opted_out_before), what="the first mails")
    world.smtp.inbox.clear()

    messages, truth = mixed_changes(200, 150)
    world.twilio.add_messages(messages)
    report = world.reconcile()
    started = {message.from_ for message in messages if message.body == "START"}
    # Who is opted out and sends STOP again stays opted out since the first time.
    again = {person for person in opted_out_before & truth.keys() if fictional_phone(person) not in started}
    expected = truth | dict.fromkeys(again, shown(long_ago))
    assert {person: world.project.value(str(person), "sms_opt_out_at") for person in truth} == expected
    assert (report["outcome"], report["changes_recovered"]) == ("success", len(truth))

    changed = {person for person, value in truth.items() if value or person in opted_out_before} - again
    wait_until(lambda: len(world.changes_told()) >= len(changed), what="the mails")
    assert sorted(subject.rpartition(" ")[2] for subject in world.changes_told()) == sorted(map(str, changed))
    assert len(world.reports_told()) == 1

    before = world.redcap.count("import"), len(world.smtp.inbox)
    second = world.reconcile()
    world.platform["worker"].stop()  # what there was to tell is told
    assert (second["changes_recovered"], second["records_corrected"], second["outcome"]) == (0, 0, "success")
    assert (world.redcap.count("import"), len(world.smtp.inbox)) == before


def test_the_task_is_visible_with_its_report_and_its_time_in_the_metrics(worlds: Worlds) -> None:
    world = worlds(3)
    world.platform.start("redis", "web", "worker", "flower")
    world.twilio.text(from_=fictional_phone(1), body="STOP", deliver=False)
    _ask_for_runs(world, 1)
    wait_until(lambda: world.project.value("1", "sms_opt_out_at"), what="the field")
    task = wait_until(lambda: _task(world, "optout.reconcile"), what="the task in Flower")
    assert "'changes_recovered': 1" in task["result"]
    assert "6505550001" not in json.dumps(task)
    metrics = requests.get(f"{world.platform.web_url}/metrics", timeout=5).text
    last = 'optout_last_reconcile_timestamp_seconds{outcome="success",project="asthma"}'
    assert last in metrics
    assert "6505550001" not in metrics + world.platform.logs()


def _ask_for_runs(world: World, number: int, **how: bool) -> None:
    """Publish the task so many times."""
    with make_celery(world.platform.redis_url) as app:
        for _ in range(number):
            app.send_task(TaskName.RECONCILE, args=("asthma",), kwargs=how, queue=QUEUES[TaskName.RECONCILE])


def _task(world: World, name: str) -> dict[str, Any] | None:
    page = requests.get(f"{world.platform.flower_url}/api/tasks", auth=FLOWER_LOGIN, timeout=5)
    tasks = [task for task in page.json().values() if task["name"] == name] if page.ok else []
    return next((task for task in tasks if task["state"] == "SUCCESS"), None)


def test_a_run_that_was_missed_is_caught_up_with_by_the_next_sweep(worlds: Worlds) -> None:
    world = worlds(3)
    world.platform.start("redis")
    two_days_ago = milliseconds(datetime.now(UTC) - timedelta(days=2))
    world.platform.redis.hset(
        keys.reconciled("asthma"), mapping={"success_ms": two_days_ago, "watermark_ms": two_days_ago}
    )
    world.twilio.text(from_=fictional_phone(1), body="STOP", deliver=False)
    world.platform.start("worker")  # which sweeps at its start
    wait_until(lambda: world.project.value("1", "sms_opt_out_at"), what="the field")


def test_two_beats_start_one_run(worlds: Worlds) -> None:
    world = worlds(3)
    world.platform.start("redis", "worker")
    _ask_for_runs(world, 2, nightly=True)
    log = world.platform["worker"].text
    wait_until(lambda: log().count('"reconciled"'), what="a run")
    wait_until(lambda: not world.platform.redis.llen("optout.reconcile"), what="the queue is empty")
    world.platform["worker"].stop()  # warm: what was taken is finished
    assert log().count('"reconciled"') == 1
    assert world.twilio.request_counts()["Messages"] == 2  # received, and sent


def test_a_run_that_somebody_asks_for_is_done_however_short_the_last_one_was_ago(worlds: Worlds) -> None:
    world = worlds(3)
    world.platform.start("redis", "worker")
    log = world.platform["worker"].text
    _ask_for_runs(world, 1)
    wait_until(lambda: log().count('"reconciled"') == 1, what="a run")
    _ask_for_runs(world, 1)
    wait_until(lambda: log().count('"reconciled"') == 2, what="another run")


def test_ten_thousand_messages_against_ten_thousand_records_cost_few_requests(worlds: Worlds) -> None:
    count = 10_000
    world = worlds(count)
    world.platform.start("redis")
    messages, truth = mixed_changes(count, count, every=2)
    world.twilio.add_messages(messages)

    report = world.reconcile()
    # What is listed as from the study's number: nothing but the texts of the participant who has the same number.
    read = count + sum(message.from_ == SENDER for message in messages)
    assert (report["messages_read"], report["pages_read"], report["records_read"]) == (read, 11, count)
    assert (report["changes_recovered"], report["still_pending"]) == (len(truth), 0)
    assert {person: world.project.value(str(person), "sms_opt_out_at") for person in truth} == truth
    assert world.twilio.request_counts() == {
        "Messages": 11,  # one of them for what the study sent
        "Services/PhoneNumbers": 1,
        "Services/ShortCodes": 1,
        "Services/ChannelSenders": 1,
    }
    batches = -(-len(truth) // 450)
    exports = [request.records for request in world.redcap.requests if request.kind == "export"]
    imports = [request.records for request in world.redcap.requests if request.kind == "import"]
    assert exports.count(0) == 1  # the whole project, once
    assert len(exports) == 1 + batches
    assert max(exports) <= 450
    assert len(imports) <= batches
    assert sum(imports) == sum(value != "" for value in truth.values())

    world.redcap.requests.clear()
    again = world.reconcile()
    assert (again["changes_recovered"], again["records_corrected"]) == (0, 0)
    assert [request.kind for request in world.redcap.requests if request.content == "record"] == ["export"]


class TestCommand:
    def test_a_dry_run_changes_nothing_and_says_what_it_would_do(self, worlds: Worlds) -> None:
        world = worlds(20)
        world.platform.start("redis")
        messages, truth = mixed_changes(30, 20)
        world.twilio.add_messages(messages)
        before = _ledger(world)
        report = world.reconcile("--dry-run", check=False)
        assert report["changes_recovered"] == len(truth)
        assert _ledger(world) == before
        assert world.redcap.count("import") == 0
        assert world.smtp.inbox == []

    @pytest.mark.parametrize("terminal", [True, False])
    def test_progress_shows_on_a_terminal_only(self, worlds: Worlds, terminal: bool) -> None:
        world = worlds(3)
        world.platform.start("redis")
        told = _standard_error(world, terminal=terminal)
        assert ("asthma: " in told) is terminal

    def test_without_redis_it_ends_with_2_and_says_so(self, worlds: Worlds) -> None:
        world = worlds(3)
        ended = world.platform.run("reconcile", check=False)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "Redis does not answer" in ended.stderr


def _ledger(world: World) -> dict[str, bytes | None]:
    """All of Redis but the request budget, what is cached of REDCap's structure, and counts of requests."""
    redis, may_change = world.platform.redis, (keys.rate(""), keys.structure(""), keys.METRICS)
    names = map(str, redis.keys("*"))
    return {name: redis.dump(name) for name in names if not name.startswith(may_change)}


def _standard_error(world: World, *, terminal: bool) -> str:
    """What `optout reconcile` writes there, with a terminal at its end or a pipe."""
    here, there = pty.openpty() if terminal else os.pipe()
    command = subprocess.Popen(
        [BIN / "optout", "reconcile"], env=world.platform.env | {"TERM": "xterm"}, cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=there,
    )  # fmt: skip
    os.close(there)
    told = b""
    try:
        while chunk := os.read(here, 4096):
            told += chunk
    except OSError:  # how a terminal ends
        pass
    os.close(here)
    assert command.wait(30) == 0
    return told.decode(errors="replace")
