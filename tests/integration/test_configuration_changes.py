"""The files of the configuration change under running processes: nothing is refused, lost or restarted."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from shared.ledger import keys
from shared.ledger.platform.loaded_configurations import loaded_configurations
from tests.integration.world import (
    HASH_KEY,
    SENDER_ADDRESS,
    STUDIES,
    Participant,
    World,
    sender_of,
    service_sid,
)
from tests.processes import ROOT, Platform, wait_until
from tests.simulators.redcap import RedcapSimulator
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, Account, Texted, TwilioSimulator

WITHIN_SECONDS = 60
KINDS = ("beat", "web", "worker")


def main_file(folder: Path) -> str:
    return f"""\
include = "studies/*.toml"
public_url = "{PUBLIC_URL}"
[smtp]
sender = "{SENDER_ADDRESS}"
[twilio.main]
account_sid = "{ACCOUNT_SID}"
auth_token = "file:{folder}/secrets/twilio"
"""


def study_file(folder: Path, redcap_url: str, name: str, **changes: str) -> str:
    values = {
        "redcap_url": f'"{redcap_url}"', "redcap_token": f'"file:{folder}/secrets/{name}"', "twilio": '"main"',
        "messaging_service_sid": f'"{service_sid(STUDIES[name][1])}"', "phone_field": '"mobile"',
        "opt_out_field": '"sms_opt_out_at"', "notify": f'["{name}@example.edu"]',
        "redcap_requests_per_minute": "6000", **changes,
    }  # fmt: skip
    return "\n".join([f"[projects.{name}]", *(f"{key} = {value}" for key, value in values.items())]) + "\n"


class Deployment:
    """The processes of a world, and the folder with their configuration."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.studies = folder / "studies"

    def write(self, path: Path, text: str) -> None:
        """As an editor does: the new file takes the old one's name."""
        new = path.with_name(f".{path.name}.new")
        new.write_text(text)
        new.rename(path)

    def loaded(self) -> dict[str, Any]:
        """What each process has published, by its kind."""
        now_ms = time.time_ns() // 1_000_000
        found = loaded_configurations(self.world.platform.redis, now_ms=now_ms)
        return {each.process.split()[0]: each for each in found}

    def pids(self) -> dict[str, int]:
        return {kind: self.world.platform[kind].pid for kind in KINDS}

    def ready(self) -> requests.Response:
        return requests.get(f"{self.world.platform.web_url}/readyz", timeout=5)

    def metrics(self) -> str:
        return requests.get(f"{self.world.platform.web_url}/metrics", timeout=5).text


@contextmanager
def deployment(folder: Path) -> Iterator[Deployment]:
    redcap = RedcapSimulator({token: make() for token, _, make, _ in STUDIES.values()})
    (folder / "studies").mkdir()
    (folder / "secrets").mkdir()
    (folder / "secrets" / "twilio").write_text(AUTH_TOKEN)
    with ExitStack() as stack:
        stack.enter_context(redcap.serve())
        smtp = stack.enter_context(SmtpSimulator().serve())
        twilio = TwilioSimulator([Account()])
        api = stack.enter_context(twilio.serve())
        secrets = {
            "OPTOUT_HASH_KEY": HASH_KEY, "OPTOUT_SMTP_URL": smtp.url, "OPTOUT_TWILIO_API_URL": api.url,
        }  # fmt: skip
        (folder / "secrets" / "asthma").write_text(STUDIES["asthma"][0])
        (folder / "studies" / "asthma.toml").write_text(study_file(folder, redcap.url, "asthma"))
        platform = Platform(folder, main_file(folder), secrets)
        stack.enter_context(platform)
        platform.start("redis", "web", "worker", "beat")
        twilio.deliver_to(platform.web_url)
        for number in ("1", "2"):
            twilio.add_service(sid=service_sid(number), senders=[sender_of(number)])
        running = Deployment(World(platform, redcap, smtp, twilio), folder)
        wait_until(lambda: set(running.loaded()) == set(KINDS), what="all processes have published")
        yield running


class Texting(threading.Thread):
    """Somebody texts STOP to the first study, again and again."""

    def __init__(self, world: World) -> None:
        super().__init__(daemon=True)
        self.world = world
        self.texted: list[tuple[Participant, Texted]] = []
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.1):
            person = self.world.enrol()
            self.texted.append((person, self.world.text(person.phone)))

    def end(self) -> list[int]:
        """Stop; the status of every answer to Twilio."""
        self._ended.set()
        self.join()
        return [attempt.status or 0 for _, texted in self.texted for attempt in texted.attempts]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("deployment")) as found:
        yield found


@pytest.fixture
def texting(running: Deployment) -> Iterator[Texting]:
    """Webhooks during the whole test: none is refused, and each arrives in REDCap."""
    load = Texting(running.world)
    load.start()
    before = running.pids()
    yield load
    statuses = load.end()
    assert len(statuses) > 20
    assert set(statuses) == {200}
    assert running.pids() == before
    for _, texted in load.texted:  # under load some are found by sweep, a minute later
        running.world.ended(texted, seconds=120)
    assert all(running.world.value(person) for person, _ in load.texted)


def study_of_the_how_to(running: Deployment) -> str:
    """The example of the page, with the addresses of this world."""
    page = (ROOT / "docs" / "how-to" / "add-a-study.md").read_text()
    [example] = re.findall(r"```toml\n(\[projects\..*?)```", page, re.DOTALL)
    for written, here in (
        ("https://redcap.example.edu/api/", running.world.redcap.url),
        ("/run/secrets/redcap", str(running.folder / "secrets")),
        ("MGxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", service_sid(STUDIES["sleep"][1])),
    ):
        assert written in example
        example = example.replace(written, here)
    found: str = example
    return found


def test_a_study_is_added_and_removed_as_the_how_to_says_while_webhooks_arrive(
    running: Deployment, texting: Texting
) -> None:
    world, optout, person = running.world, running.world.platform.run, running.world.enrol("sleep")
    assert world.text(person.phone, project="sleep").answer.status == 200  # of no project yet
    running.write(running.folder / "secrets" / "sleep", STUDIES["sleep"][0])
    running.write(running.studies / "sleep.toml", study_of_the_how_to(running))
    optout("check", "--config-only", "--project", "sleep")
    began = time.monotonic()
    optout("check", "--loaded", "--timeout", str(WITHIN_SECONDS))
    assert time.monotonic() - began < WITHIN_SECONDS
    world.ended(world.text(person.phone, project="sleep"), "sleep")
    assert world.value(person, "sleep")
    (running.studies / "sleep.toml").unlink()
    optout("check", "--loaded", "--timeout", str(WITHIN_SECONDS))
    texted = world.text(world.enrol("sleep").phone, project="sleep")
    assert texted.answer.status == 200
    assert world.entry(texted, "sleep") is None
    assert world.value(person, "sleep")


def test_an_invalid_file_changes_nothing_and_is_named_everywhere(
    running: Deployment, texting: Texting
) -> None:
    path, digest = running.studies / "asthma.toml", running.loaded()["web"].digest
    right = path.read_text()
    running.write(path, right.replace("phone_field", "phone_feild"))
    wait_until(
        lambda: all(each.trouble.file == str(path) for each in running.loaded().values()),
        seconds=WITHIN_SECONDS, what="all processes have found the mistake",
    )  # fmt: skip
    answer = running.ready()
    [named] = answer.json()["configuration"]
    assert answer.status_code == 503
    assert (named["file"], named["key"]) == (str(path), "projects.asthma.phone_feild")
    assert 'Did you mean "phone_field"?' in named["problem"]
    assert sorted(process.split()[0] for process in named["processes"]) == list(KINDS)
    assert f'optout_configuration_problem{{file="{path}"}} 1.0' in running.metrics()
    for kind in KINDS:
        lines = running.world.platform[kind].text().splitlines()
        [said] = [json.loads(line) for line in lines if '"configuration_problem"' in line]
        assert said["file"] == str(path)
        assert said["problems"][0].startswith("projects.asthma.phone_feild: ")
    assert {each.digest for each in running.loaded().values()} == {digest}
    running.write(path, right)
    wait_until(lambda: running.ready().status_code == 200, seconds=WITHIN_SECONDS, what="web is ready again")
    assert 'optout_configuration_problem{file=""} 0.0' in running.metrics()


def test_a_process_that_starts_while_a_file_is_invalid_has_the_last_valid_configuration(
    running: Deployment,
) -> None:
    world, path = running.world, running.studies / "asthma.toml"
    right = path.read_text()
    wait_until(lambda: world.platform.redis.get(keys.CONFIGURATION), what="the configuration is kept")
    running.write(path, "[projects.")
    for kind in KINDS:
        world.platform[kind].stop()
        world.platform.start(kind)
    person = world.enrol()
    world.ended(world.text(person.phone), seconds=40)
    assert world.value(person)
    assert running.ready().json()["configuration"][0]["file"] == str(path)
    running.write(path, right)
    wait_until(lambda: running.ready().status_code == 200, seconds=WITHIN_SECONDS, what="web is ready again")


def test_a_replaced_auth_token_counts_without_a_restart(running: Deployment) -> None:
    token = running.folder / "secrets" / "twilio"

    def status() -> int | None:
        return running.world.text(running.world.enrol().phone, body="hello").attempts[0].status

    running.write(token, "another-token")
    wait_until(lambda: status() == 403, seconds=WITHIN_SECONDS, what="web verifies with the new token")
    running.write(token, AUTH_TOKEN)
    wait_until(lambda: status() == 200, seconds=WITHIN_SECONDS, what="web verifies with the old token")
