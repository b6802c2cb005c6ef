"""The demo in containers: it starts from a fresh clone whatever its umask, and shares nothing with a deployment."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.compose.stack import Stack, a_clone, remove_images, said, without_a_deployment
from tests.processes import free_port, wait_until

pytestmark = pytest.mark.timeout(900)

NAMES = "deploy/demo/allowed-project-names"


class Demo:
    """A fresh clone, made with umask 077, in which somebody types `docker compose …`."""

    def __init__(self, root: Path) -> None:
        self.root = a_clone(root, umask=0o077)
        # Other tests may run the demo under its real name on the same host.
        self.project = f"optout-demo-{secrets.token_hex(3)}"
        override = root / "docker-compose.override.yml"
        override.write_text(override.read_text().replace("name: optout-demo\n", f"name: {self.project}\n"))
        (root / NAMES / f"{self.project}.yml").write_text("# a name for this test\n")
        ports = {
            f"DEMO_{name}_PORT": str(free_port())
            for name in ("WEB", "CONSOLE", "FLOWER", "REDCAP", "TWILIO", "MAIL")
        }
        self.env = without_a_deployment() | ports | {"DEMO_IMAGE": self.project}

    def compose(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`docker compose ARGS` in the clone."""
        return said("docker", "compose", *args, cwd=self.root, env=self.env, check=check)

    def story(self) -> str:
        """What the story has printed so far."""
        return self.compose("logs", "--no-log-prefix", "simulators").stdout

    def story_ends(self, *, times: int) -> str:
        """Wait until the story was played this often."""
        wait_until(
            lambda: (
                self.story().count("The whole story went") >= times
                or not self.compose("ps", "--quiet", "simulators").stdout
            ),
            seconds=240,
            what="the story ends",
        )
        told = self.story()
        assert told.count("The whole story went as expected") == times, told[-6000:]
        return told


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo, started by the plain command; removed at the end by the command that it prints."""
    demo = Demo(tmp_path_factory.mktemp("demo") / "clone")
    try:
        demo.compose("up", "--detach", "--build", "--wait")
        yield demo
    finally:
        demo.compose("-p", demo.project, "down", check=False)
        remove_images(demo.project)


def described(root: Path, env: dict[str, str]) -> dict[str, Any]:
    """`docker compose config` as data."""
    found: dict[str, Any] = json.loads(
        said("docker", "compose", "config", "--format", "json", cwd=root, env=env).stdout
    )
    return found


def resources(config: dict[str, Any]) -> dict[str, set[str]]:
    """What two compose projects on one host must not share."""
    services = config["services"].values()
    return {
        "project": {config["name"]},
        "volumes": {volume["name"] for volume in config.get("volumes", {}).values()},
        "networks": {network["name"] for network in config["networks"].values()},
        "ports": {port["published"] for service in services for port in service.get("ports", [])},
        "images": {service["image"] for service in services if "optout" in service["image"]},
        "secrets": {secret["file"] for secret in config.get("secrets", {}).values()},
        "mounts": {v["source"] for service in services for v in service.get("volumes", []) if "source" in v},
    }


def test_a_fresh_clone_made_with_umask_077_plays_the_story_to_the_end(demo: Demo) -> None:
    assert "✗" not in demo.story_ends(times=1)


def test_the_demo_can_be_played_again(demo: Demo) -> None:
    """A second time starts from nothing, although Redis kept the first."""
    demo.compose("restart", "simulators")
    assert "✗" not in demo.story_ends(times=2)


def test_the_demo_has_no_volume_and_mounts_nothing(demo: Demo) -> None:
    containers = json.loads(
        said(
            "docker", "inspect", *demo.compose("ps", "--quiet").stdout.split(), cwd=demo.root, env=demo.env
        ).stdout
    )
    assert len(containers) == 7
    assert [each["Mounts"] for each in containers if each["Mounts"]] == []
    assert described(demo.root, demo.env).get("volumes", {}) == {}


def test_the_console_shows_the_story_that_has_played(demo: Demo) -> None:
    url = f"http://127.0.0.1:{demo.env['DEMO_CONSOLE_PORT']}"
    assert url in demo.story()
    studies = requests.get(url, auth=("demo", "demo"), timeout=10)
    assert studies.status_code == 200
    assert {"/studies/asthma", "/studies/sleep"} <= set(re.findall(r'href="(/studies/\w+)"', studies.text))
    events = requests.get(f"{url}/studies/asthma/events", auth=("demo", "demo"), timeout=10).text
    assert events.count("In REDCap") > 1


def test_the_demo_listens_on_loopback_only(demo: Demo) -> None:
    services = described(demo.root, demo.env)["services"].values()
    assert {port["host_ip"] for service in services for port in service.get("ports", [])} == {"127.0.0.1"}


def test_demo_and_deployment_share_nothing_by_default(tmp_path: Path) -> None:
    env = without_a_deployment()
    demo, deployment = a_clone(tmp_path / "demo"), a_clone(tmp_path / "deployment")
    said("make", "deployment", cwd=deployment, env=env)
    shown, real = resources(described(demo, env)), resources(described(deployment, env))
    assert {kind: shown[kind] & real[kind] for kind in shown if shown[kind] & real[kind]} == {}
    assert real["volumes"]
    assert len(real["secrets"]) == 8


@pytest.mark.parametrize("command", [["up", "--detach"], ["create"], ["run", "worker", "true"], ["build"]])
@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ("OPTOUT_DEPLOYMENT=./deployment", "a deployment is configured"),
        ("COMPOSE_PROJECT_NAME={project}", "allowed-project-names"),
        ("COMPOSE_PROJECT_NAME={project}\nOPTOUT_DEPLOYMENT=./deployment", "a deployment is configured"),
    ],
)
def test_the_demo_refuses_a_deployments_settings_and_leaves_its_containers_alone(
    stack: Stack, tmp_path: Path, command: list[str], settings: str, names: str
) -> None:
    """In a second clone on the deployment's host, with pieces of its `.env`."""
    before = {each["Id"] for name in ("redis", "web", "worker") for each in stack.containers(name)}
    clone = a_clone(tmp_path / "clone")
    (clone / ".env").write_text(settings.format(project=stack.project) + "\n")
    done = said("docker", "compose", *command, cwd=clone, env=without_a_deployment(), check=False)
    assert done.returncode != 0
    assert names in done.stderr
    assert {each["Id"] for name in ("redis", "web", "worker") for each in stack.containers(name)} == before


def test_the_demo_beside_a_deployment_costs_it_nothing_when_it_is_removed(stack: Stack, demo: Demo) -> None:
    [record] = stack.enrol(1)
    assert stack.text(record).status == 200
    stack.expect_opted_out([record])
    events = stack.events()
    *_, printed = [line for line in demo.story().splitlines() if "Remove the demo" in line]
    command = printed.partition("containers:")[2].split()
    assert command[:4] == ["docker", "compose", "-p", demo.project]
    said(*command, cwd=demo.root, env=demo.env)
    # The same line typed by mistake in the deployment's own clone removes nothing of it.
    said(*command, cwd=stack.root, env=stack.env)
    assert not demo.compose("ps", "--all", "--quiet").stdout
    assert events
    assert stack.events() == events
