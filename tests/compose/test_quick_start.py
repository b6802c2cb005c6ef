"""The newcomer's path, walked literally: from a clone made with umask 077 to `optout test-message`."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.compose.stack import (
    ASTHMA,
    BASE,
    SIMULATORS,
    a_clone,
    remove_images,
    said,
    without_a_deployment,
)
from tests.processes import ROOT, free_port
from tests.simulators.redcap.__main__ import ASTHMA_TOKEN
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, SERVICE_SID

pytestmark = pytest.mark.timeout(900)

MOST_COMMANDS = 7
ANSWERS = {
    "PUBLIC_URL": PUBLIC_URL,
    "TWILIO_ACCOUNT_SID": ACCOUNT_SID,
    "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
    "REDCAP_URL": "http://simulators:8900/api/",
    "REDCAP_TOKEN": ASTHMA_TOKEN,
    "SMTP_URL": "smtp://simulators:9025",
}


def documented_commands() -> list[str]:
    """The commands that docs/how-to/onboard-a-study.md asks for, from the clone to the test message."""
    page = (ROOT / "docs/how-to/onboard-a-study.md").read_text().partition("## 9.")[0]
    lines = [
        line for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL) for line in block.splitlines()
    ]
    return [line.partition("#")[0].strip() for line in lines]


class Newcomer:
    """Somebody with a fresh clone, whose REDCap, Twilio and mail server are the simulators."""

    def __init__(self, root: Path) -> None:
        self.root = a_clone(root, umask=0o077)
        self.project = f"optout-test-{self.root.parent.name[-6:].strip('-_')}".lower()
        self.env = without_a_deployment() | ANSWERS
        self.redcap_port = free_port()

    def types(self, command: str, *, answers: str = "") -> str:
        """Run a documented command; every one has to succeed."""
        done = subprocess.run(
            ["bash", "-c", f"umask 077; {command}"], cwd=self.root, env=self.env, input=answers,
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def edits_the_configuration(self) -> None:
        """The one file that has to be edited; the study's service and mail address."""
        path = self.root / "deployment" / "config.toml"
        text = path.read_text()
        path.write_text(text.replace("MGxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", SERVICE_SID))

    def has_the_simulators(self) -> None:
        """What stands in for the institution's servers; free ports, as other tests run beside this one."""
        ports = ("OPTOUT_WEB", "OPTOUT_FLOWER", "OPTOUT_CONSOLE", "DEMO_TWILIO", "DEMO_MAIL")
        settings = {f"{name}_PORT": str(free_port()) for name in ports} | {
            "DEMO_REDCAP_PORT": str(self.redcap_port),
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": f"{BASE}:{SIMULATORS}",
            "OPTOUT_IMAGE": self.project,
        }
        with (self.root / ".env").open("a") as env_file:
            env_file.writelines(f"{name}={value}\n" for name, value in settings.items())
        with (self.root / "deployment" / "services.env").open("a") as services:
            services.write("OPTOUT_TWILIO_API_URL=http://simulators:9001\n")


@pytest.fixture
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    newcomer = Newcomer(tmp_path_factory.mktemp("newcomer") / "clone")
    try:
        yield newcomer
    finally:
        if (newcomer.root / ".env").exists():
            down = ("deploy/compose", "--profile", "*", "down", "--volumes", "--remove-orphans")
            said(*down, cwd=newcomer.root, env=newcomer.env, check=False)
        remove_images(newcomer.project)


def test_seven_commands_and_one_edited_file_lead_to_a_test_message(newcomer: Newcomer) -> None:
    clone, make, up, check, setup, test_message = documented_commands()
    assert clone.startswith("git clone")
    assert sum(command.count("&&") + 1 for command in documented_commands()) <= MOST_COMMANDS
    newcomer.types(make)
    newcomer.edits_the_configuration()
    newcomer.has_the_simulators()
    assert "./optout check" in newcomer.types(up)
    order = {"project": ASTHMA, "record": "TEST", "values": {"mobile": "(650) 555-0100"}}
    requests.post(f"http://127.0.0.1:{newcomer.redcap_port}/_sim/records", json=order, timeout=10)
    # Plain http and no public address: findings of this test's world, not of the path.
    report = newcomer.types(f"{check} --json || true")
    assert "config-unusable" not in report
    assert "secret-missing" not in report
    newcomer.types(setup, answers="y\n")
    shown = newcomer.types(f"{test_message} --url http://web:8000 --yes")
    assert {line.split()[0] for line in shown.splitlines()} >= {"STOP", "START"}
