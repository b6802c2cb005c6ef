"""The scripts in deploy/: which files and settings they give to `docker compose`, with a stand-in for docker."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.processes import ROOT

# Writes down each call with the files it would use. The proxy is in whichever overlay is named.
DOCKER = """#!/bin/bash
echo "$COMPOSE_FILE | $*" >>"$CALLS"
case "$*" in
"compose config --services")
    printf '%s\\n' redis web worker beat flower
    case $COMPOSE_FILE in *tls*|*scale*) echo proxy ;; esac
    ;;
esac
"""
CONFIGURED = "OPTOUT_DEPLOYMENT=./deployment\n"


class Clone:
    """The scripts in a folder of their own, with an `.env` and the stand-in."""

    def __init__(self, root: Path, env_file: str) -> None:
        self.root = root
        shutil.copytree(ROOT / "deploy", root / "deploy", ignore=shutil.ignore_patterns("demo", "kubernetes"))
        shutil.copy(ROOT / "Makefile", root)
        (root / "bin").mkdir()
        (root / "bin" / "docker").write_text(DOCKER)
        (root / "bin" / "docker").chmod(0o755)
        (root / ".env").write_text(env_file)
        self.calls = root / "calls"
        self.calls.touch()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        env = {
            name: value for name, value in os.environ.items() if not name.startswith(("OPTOUT_", "COMPOSE_"))
        }
        path = f"{self.root / 'bin'}:{env['PATH']}"
        return subprocess.run(
            command, cwd=self.root, env=env | {"PATH": path, "CALLS": str(self.calls)},
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def settings(self) -> list[str]:
        return (self.root / ".env").read_text().splitlines()

    @property
    def last_call(self) -> str:
        return self.calls.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    "target", ["up", "down", "ps", "scale WEB=2", "upgrade", "backup", "restore FILE=x", "new-ledger"]
)
def test_without_a_deployment_nothing_is_touched_and_the_next_command_is_named(
    tmp_path: Path, target: str
) -> None:
    clone = Clone(tmp_path, "COMPOSE_PROJECT_NAME=optout\n")
    done = clone.run("make", *target.split())
    assert done.returncode != 0
    assert "make deployment" in done.stderr
    assert clone.calls.read_text() == ""


def test_the_deployments_files_are_used_and_never_the_demos(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    clone.run("make", "up")
    assert clone.last_call == "docker-compose.yml | compose up --detach --build --wait"


@pytest.mark.parametrize(
    "line",
    [
        "COMPOSE_FILE=docker-compose.yml:docker-compose.tls.yml",
        'COMPOSE_FILE="docker-compose.yml:docker-compose.tls.yml"',
        "COMPOSE_FILE=a.yml\nCOMPOSE_FILE = 'docker-compose.yml:docker-compose.tls.yml'",
        "COMPOSE_FILE=docker-compose.yml:docker-compose.tls.yml  # with the certificate",
    ],
)
def test_env_is_read_as_compose_reads_it(tmp_path: Path, line: str) -> None:
    clone = Clone(tmp_path, f"{CONFIGURED}{line}\n")
    clone.run("make", "ps")
    assert clone.last_call == "docker-compose.yml:docker-compose.tls.yml | compose ps --all"


def test_scaling_writes_the_numbers_and_the_proxy_into_env(tmp_path: Path) -> None:
    clone = Clone(tmp_path, f"{CONFIGURED}OPTOUT_WEBS=1\nOPTOUT_WEB_PORT=8001\n")
    assert clone.run("make", "scale", "WORKERS=4", "WEB=2").returncode == 0
    assert sorted(clone.settings) == [
        "COMPOSE_FILE=docker-compose.yml:docker-compose.scale.yml",
        "OPTOUT_DEPLOYMENT=./deployment",
        "OPTOUT_WEBS=2",
        "OPTOUT_WEB_PORT=8001",
        "OPTOUT_WORKERS=4",
    ]
    assert "scale.yml | compose up" in clone.last_call
    clone.run("make", "up")
    assert "scale.yml | compose up" in clone.last_call


def test_scaling_workers_keeps_the_web_containers(tmp_path: Path) -> None:
    clone = Clone(
        tmp_path, f"{CONFIGURED}OPTOUT_WEBS=2\nCOMPOSE_FILE=docker-compose.yml:docker-compose.tls.yml\n"
    )
    clone.run("make", "scale", "WORKERS=3")
    assert {
        "OPTOUT_WEBS=2",
        "OPTOUT_WORKERS=3",
        "COMPOSE_FILE=docker-compose.yml:docker-compose.tls.yml",
    } < set(clone.settings)


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_a_number_that_is_none_changes_nothing(tmp_path: Path, number: str) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    assert clone.run("make", "scale", f"WEB={number}").returncode != 0
    assert clone.settings == CONFIGURED.splitlines()


def test_several_web_containers_get_a_proxy_where_only_their_number_was_written(tmp_path: Path) -> None:
    clone = Clone(tmp_path, f"{CONFIGURED}OPTOUT_WEBS=2\n")
    clone.run("make", "up")
    assert clone.last_call.startswith("docker-compose.yml:docker-compose.scale.yml | compose up")


def test_env_keeps_its_mode(tmp_path: Path) -> None:
    """It may hold the login of a broker."""
    clone = Clone(tmp_path, CONFIGURED)
    (tmp_path / ".env").chmod(0o600)
    clone.run("make", "scale", "WORKERS=2")
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / ".env.new").exists()
