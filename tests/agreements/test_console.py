"""The console's rights and options stand in several places, which have to agree."""

from __future__ import annotations

import re

import pytest
import yaml  # type: ignore[import-untyped]

from shared.redis_rights import CONSOLE_RIGHTS
from tests.processes import ROOT


def compose_service(name: str, service: str) -> dict[str, object]:
    text = re.sub(r"!(reset|override)", "", (ROOT / name).read_text())
    text = re.sub(r"<<: \*service|<<: \*platform", "", text) if name.endswith("override.yml") else text
    found: dict[str, object] = yaml.safe_load(text)["services"][service]
    return found


@pytest.mark.parametrize(
    "path",
    [
        "deploy/new-deployment",
        "deploy/preflight.sh",
        "docs/how-to/restrict-redis.md",
        "deploy/demo/secrets/redis_console.conf",
    ],
)
def test_the_console_has_the_same_rights_wherever_its_user_is_made(path: str) -> None:
    assert CONSOLE_RIGHTS in (ROOT / path).read_text()


def test_the_demos_console_has_them_too() -> None:
    command = compose_service("docker-compose.override.yml", "redis")["command"]
    assert isinstance(command, list)
    user = command[command.index("--user") + 1 :]
    assert user[:2] == ["console", "on"]
    assert user[2:-1] == CONSOLE_RIGHTS.split()


def test_the_container_and_the_procfile_start_it_alike() -> None:
    command = compose_service("docker-compose.yml", "console")["command"]
    assert command == ["python", "-m", "web.console", "0.0.0.0:5050"]
    assert "console: $BIN/python -m web.console 127.0.0.1:" in (ROOT / "Procfile").read_text()


def test_it_is_published_on_loopback_only() -> None:
    for name in ("docker-compose.yml", "docker-compose.override.yml"):
        ports = compose_service(name, "console")["ports"]
        assert isinstance(ports, list)
        assert [port.split(":")[0] for port in ports] == ["127.0.0.1"]
