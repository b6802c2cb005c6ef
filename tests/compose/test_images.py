"""What the images hold, and what the containers may do: read from the engine, not from the compose file."""

from __future__ import annotations

import json
import tomllib

import pytest
import requests

from tests.compose.stack import BASE, PLATFORM, SCALE, TLS, Stack
from tests.processes import ROOT

pytestmark = pytest.mark.timeout(900)

# Each service and the secrets that it may see, below /run/secrets.
SECRETS = {
    "redis": {"redis_auth.conf", "redis_console.conf"},
    "web": {"redis_url", "hash_key", "twilio/main"},
    "worker": {"redis_url", "hash_key", "smtp_url", "twilio/main", "redcap/asthma", "redcap/sleep"},
    "beat": {"redis_url"},
    "flower": {"redis_url", "flower_login"},
    "console": {"console_redis_url", "console_login"},
}
CODE = {"web": {"shared", "web", "deploy"}, "worker": {"shared", "worker", "deploy"}}


def inside(stack: Stack, service: str, command: str) -> str:
    """What a shell command prints in a service's container."""
    return stack.compose("exec", "-T", service, "sh", "-c", command)


@pytest.mark.parametrize("files", [(BASE,), (BASE, SCALE), (BASE, TLS)])
def test_the_compose_files_warn_of_nothing(stack: Stack, files: tuple[str, ...]) -> None:
    with stack.with_files(*files):
        done = stack.run("docker", "compose", "--profile", "*", "config")
    assert done.stderr == ""


@pytest.mark.parametrize("service", ["web", "worker"])
def test_an_image_holds_its_own_code_and_no_tools_to_build_with(stack: Stack, service: str) -> None:
    assert set(inside(stack, service, "ls /app").split()) == CODE[service]
    assert inside(stack, service, "which pip gcc cc make git || true") == ""
    assert inside(stack, service, "find / -name simulators -not -path '/proc/*' 2>/dev/null || true") == ""


@pytest.mark.parametrize("service", PLATFORM)
def test_a_container_has_no_more_rights_than_it_needs(stack: Stack, service: str) -> None:
    [container] = stack.containers(service)
    host = container["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["Init"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}
    assert container["State"]["Health"]["Status"] == "healthy"
    assert int(inside(stack, service, "id -u")) > 0


@pytest.mark.parametrize("service", PLATFORM)
def test_a_service_sees_its_own_secrets_only(stack: Stack, service: str) -> None:
    found = inside(stack, service, "cd /run/secrets && find . -type f").split()
    assert {name.removeprefix("./") for name in found} == SECRETS[service]


@pytest.mark.parametrize("service", PLATFORM)
def test_no_secret_stands_in_an_environment_or_a_command_line(stack: Stack, service: str) -> None:
    folder = stack.deployment / "secrets"
    secrets = [path.read_text().split()[-1] for path in folder.rglob("*") if path.is_file()]
    described = json.dumps(stack.containers(service))
    seen = described + inside(
        stack, service, "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' ' '"
    )
    assert [secret for secret in secrets if secret in seen] == []


def test_redis_can_be_reached_by_those_who_need_it_only(stack: Stack) -> None:
    [redis] = stack.containers("redis")
    networks = list(redis["NetworkSettings"]["Networks"])
    assert networks == [f"{stack.project}_data"]
    assert json.loads(stack.run("docker", "network", "inspect", *networks).stdout)[0]["Internal"]
    assert not redis["HostConfig"]["PortBindings"]
    assert "NOAUTH" in inside(stack, "redis", "redis-cli ping")


def test_web_and_flower_have_no_way_out(stack: Stack) -> None:
    """REDCap, here the simulated one, answers on the worker's network only; published ports lead in, not out."""
    [simulators] = stack.containers("simulators")
    address = simulators["NetworkSettings"]["Networks"][f"{stack.project}_outside"]["IPAddress"]
    attempt = f"import socket; socket.create_connection(('{address}', 8900), 3)"
    tried = {name: inside(stack, name, f'python -c "{attempt}" 2>&1 || true') for name in PLATFORM[1:]}
    assert tried["worker"] == ""
    assert all("Error" in tried[name] for name in ("web", "beat", "flower", "console"))
    for network in ("public", "admin"):
        described = json.loads(stack.run("docker", "network", "inspect", f"{stack.project}_{network}").stdout)
        assert described[0]["Options"]["com.docker.network.bridge.enable_ip_masquerade"] == "false"


def test_every_part_says_the_same_version(stack: Stack) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert requests.get(f"{stack.web_url}/healthz", timeout=10).json() == {"status": "ok", "version": version}
    assert version in stack.run("./optout", "--version").stdout
    console = requests.get(f"{stack.console_url}/platform", auth=stack.console_login, timeout=10).text
    assert f"the console runs version {version}" in console
    for service in ("web", "worker"):
        [container] = stack.containers(service)
        assert container["Config"]["Labels"]["org.opencontainers.image.version"] == version
