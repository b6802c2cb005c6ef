"""The scripts in deploy/: which files and settings they give to `docker compose`, with a stand-in for docker."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from shared.redis_rights import CONSOLE_RIGHTS
from tests.processes import ROOT

# Writes down each call with the files it would use. The proxy is in whichever overlay is named.
DOCKER = """#!/bin/bash
echo "$COMPOSE_FILE | $*" >>"$CALLS"
case "$*" in
"compose config --services")
    case $COMPOSE_FILE in *tls*|*scale*) echo proxy ;; esac
    # More than a pipe holds: a reader that ends early would break it.
    printf '%s\\n' redis web worker beat flower console
    head -c 200000 /dev/zero | tr '\\0' '\\n'
    ;;
"compose run"*) cat >/dev/null ;;
esac
"""
# The tests' own user stands in for a deployment's owner, root included.
OWNER = f"OPTOUT_UID={os.getuid()}\nOPTOUT_GID={os.getgid()}\n"
CONFIGURED = f"OPTOUT_DEPLOYMENT=./deployment\n{OWNER}"


class Clone:
    """The scripts in a folder of their own, with an `.env` and the stand-in."""

    def __init__(self, root: Path, env_file: str) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        shutil.copytree(ROOT / "deploy", root / "deploy", ignore=shutil.ignore_patterns("demo", "kubernetes"))
        shutil.copy(ROOT / "Makefile", root)
        (root / "bin").mkdir()
        (root / "bin" / "docker").write_text(DOCKER)
        (root / "bin" / "docker").chmod(0o755)
        (root / ".env").write_text(env_file)
        self.deployment = root / "deployment"
        for name in (
            "config.toml",
            "secrets/redis_auth.conf",
            "secrets/hash_key",
            "secrets/redcap/asthma",
            "tls/privkey.pem",
        ):
            path = self.deployment / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x\n")
            path.chmod(0o600)
        (self.deployment / "secrets" / "redis_auth.conf").chmod(0o640)
        self.deployment.chmod(0o700)
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

    @property
    def starts(self) -> list[str]:
        """The calls that start containers."""
        return [call for call in self.calls.read_text().splitlines() if "compose up" in call]


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
    assert clone.starts == ["docker-compose.yml | compose up --detach --wait"]


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
    assert sorted(clone.settings) == sorted(
        [
            "COMPOSE_FILE=docker-compose.yml:docker-compose.scale.yml",
            *CONFIGURED.splitlines(),
            "OPTOUT_WEBS=2",
            "OPTOUT_WEB_PORT=8001",
            "OPTOUT_WORKERS=4",
        ]
    )
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
    [start] = clone.starts
    assert start.startswith("docker-compose.yml:docker-compose.scale.yml | compose up")


def test_env_keeps_its_mode(tmp_path: Path) -> None:
    """It may hold the login of a broker."""
    clone = Clone(tmp_path, CONFIGURED)
    (tmp_path / ".env").chmod(0o600)
    clone.run("make", "scale", "WORKERS=2")
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / ".env.new").exists()


@pytest.mark.parametrize("command", ["make up", "make down", "make upgrade", "deploy/compose ps"])
def test_containers_of_another_clone_with_the_same_project_are_left_alone(
    tmp_path: Path, command: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    clone = Clone(tmp_path / "clone", CONFIGURED)
    (clone.root / "bin" / "docker").write_text(f'{DOCKER}case "$*" in "ps "*) echo {other} ;; esac\n')
    done = clone.run(*command.split())
    assert done.returncode != 0
    assert f"project optout belong to the deployment in {other}" in done.stderr
    assert [call for call in clone.calls.read_text().splitlines() if "| compose" in call] == []


def test_a_clone_that_was_moved_keeps_its_containers(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone", CONFIGURED)
    folders = f"{tmp_path}/formerly\\n{clone.root}/."
    (clone.root / "bin" / "docker").write_text(
        f'{DOCKER}case "$*" in "ps "*) printf "{folders}\\n" ;; esac\n'
    )
    assert clone.run("make", "ps").returncode == 0


@pytest.mark.parametrize("command", ["make up", "make upgrade"])
@pytest.mark.parametrize(
    ("image", "call"),
    [("", "compose build"), ("OPTOUT_IMAGE=registry.example.edu/optout\n", "compose pull web worker")],
)
def test_images_of_a_registry_are_pulled_and_others_built(
    tmp_path: Path, command: str, image: str, call: str
) -> None:
    clone = Clone(tmp_path, CONFIGURED + image)
    assert clone.run(*command.split()).returncode == 0
    calls = [line.partition(" | ")[2] for line in clone.calls.read_text().splitlines()]
    assert [line for line in calls if line.startswith(("compose build", "compose pull"))] == [call]


OTHERS = "OPTOUT_DEPLOYMENT=./deployment\nOPTOUT_UID=54321\nOPTOUT_GID=54321\n"


@pytest.mark.parametrize("command", ["make up", "make apply", "make upgrade", "make scale WORKERS=2"])
def test_files_that_the_containers_cannot_read_are_named_with_the_command_before_anything_starts(
    tmp_path: Path, command: str
) -> None:
    clone = Clone(tmp_path, OTHERS)
    done = clone.run(*command.split())
    assert done.returncode != 0
    assert "run as user 54321, group 54321" in done.stderr
    for name in ("config.toml", "secrets/hash_key", "secrets/redcap/asthma"):
        assert f"chown 54321:54321 './deployment/{name}'" in done.stderr
    assert "chgrp 54321 './deployment/secrets/redis_auth.conf' && chmod 640" in done.stderr
    assert "privkey" not in done.stderr  # nothing mounts it without the overlay for TLS
    assert clone.starts == []
    assert "OPTOUT_WORKERS=2" not in clone.settings


def test_the_key_of_the_certificate_must_be_readable_where_the_proxy_mounts_it(tmp_path: Path) -> None:
    clone = Clone(tmp_path, f"{OTHERS}COMPOSE_FILE=docker-compose.yml:docker-compose.tls.yml\n")
    assert "chown 54321:54321 './deployment/tls/privkey.pem'" in clone.run("make", "up").stderr


def test_the_named_commands_fix_it(tmp_path: Path) -> None:
    clone = Clone(
        tmp_path,
        f"OPTOUT_DEPLOYMENT=./deployment\nOPTOUT_UID={os.getuid() or 54321}\nOPTOUT_GID={os.getgid() or 54321}\n",
    )
    (clone.deployment / "secrets" / "hash_key").chmod(0o000)
    (clone.deployment / "secrets" / "redis_auth.conf").chmod(0o600)
    (clone.deployment / "secrets" / "redcap").chmod(0o600)
    named = clone.run("make", "up").stderr
    commands = [line for line in named.splitlines() if line.startswith("  ch")]
    assert commands
    subprocess.run(["bash", "-ec", "\n".join(commands)], cwd=clone.root, check=True)
    again = clone.run("make", "up")
    if "cannot read" in again.stderr:  # what a closed folder held shows itself now
        commands = [line for line in again.stderr.splitlines() if line.startswith("  ch")]
        subprocess.run(["bash", "-ec", "\n".join(commands)], cwd=clone.root, check=True)
        again = clone.run("make", "up")
    assert again.returncode == 0, again.stderr


def test_public_files_of_a_clone_made_with_umask_077_are_opened(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    for path in (clone.root / "deploy").rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    clone.run("make", "up")
    mounted = [clone.root / "deploy/redis.conf", *(clone.root / "deploy/nginx").rglob("*")]
    assert [path for path in mounted if not path.stat().st_mode & 0o004] == []


def test_a_deployment_of_an_earlier_version_gets_its_owner_as_the_containers_user(tmp_path: Path) -> None:
    clone = Clone(tmp_path, "OPTOUT_DEPLOYMENT=./deployment\n")
    uid, gid = os.getuid() or 54321, os.getgid() or 54321
    for path in (clone.deployment, *clone.deployment.rglob("*")):
        os.chown(path, uid, gid)
    assert clone.run("make", "up").returncode == 0
    assert {f"OPTOUT_UID={uid}", f"OPTOUT_GID={gid}", "COMPOSE_FILE=docker-compose.yml"} <= set(
        clone.settings
    )


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED.replace("./deployment", "/nowhere"))
    assert "/nowhere/config.toml is missing" in clone.run("make", "up").stderr


# The configuration is invalid: the one-off container that checks it says so.
INVALID = (
    DOCKER
    + """
case "$*" in *check*--config-only*) echo "config.toml: smtp.from: unknown key"; exit 1 ;; esac
"""
)


@pytest.mark.parametrize("command", ["make apply", "make upgrade"])
def test_an_invalid_configuration_is_not_applied_and_no_container_is_touched(
    tmp_path: Path, command: str
) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    (clone.root / "bin" / "docker").write_text(INVALID)
    done = clone.run(*command.split())
    assert done.returncode != 0
    assert "smtp.from: unknown key" in done.stderr
    assert "Nothing was changed" in done.stderr
    composed = [call for call in clone.calls.read_text().splitlines() if "| compose" in call]
    assert [call for call in composed if " build" not in call and " run " not in call] == []


def test_containers_that_could_not_use_their_configuration_are_not_started(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    (clone.root / "bin" / "docker").write_text(INVALID)
    done = clone.run("make", "up")
    assert done.returncode != 0
    assert "smtp.from: unknown key\nNothing was changed: correct what is listed above" in done.stderr
    assert clone.starts == []


@pytest.mark.parametrize("command", ["make scale WEB=2", "make restore FILE=backup.rdb.gz"])
def test_what_restarts_containers_is_not_done_with_a_configuration_that_they_could_not_use(
    tmp_path: Path, command: str
) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    (clone.root / "backup.rdb.gz").write_bytes(gzip.compress(b"REDIS0011"))
    (clone.root / "bin" / "docker").write_text(INVALID)
    assert "Nothing was changed" in clone.run(*command.split()).stderr
    assert not [call for call in clone.calls.read_text().splitlines() if " up " in call or " stop " in call]
    assert "OPTOUT_WEBS=2" not in clone.settings


def applied(clone: Clone, *command: str) -> str:
    """What the containers are labelled with after a command."""
    assert clone.run(*command).returncode == 0
    [line] = [line for line in clone.settings if line.startswith("OPTOUT_CONFIGURATION=")]
    return line


@pytest.mark.parametrize("name", ["config.toml", "studies/asthma.toml", "secrets/redcap/asthma"])
def test_make_up_applies_an_edit_and_other_starts_do_not(tmp_path: Path, name: str) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    first = applied(clone, "make", "up")
    assert applied(clone, "make", "up") == first
    (clone.deployment / name).parent.mkdir(exist_ok=True)
    (clone.deployment / name).write_text("edited\n")
    assert applied(clone, "make", "scale", "WORKERS=2") == first
    assert applied(clone, "make", "up") != first


# A worker runs.
RUNNING = (
    DOCKER
    + """
case "$*" in *"ps --quiet worker"*) echo 4f5e ;; esac
"""
)
LOADED = "docker-compose.yml | compose exec -T worker optout check --loaded"


@pytest.mark.parametrize(
    "name", ["config.toml", "studies/sleep.toml", "secrets/redcap/asthma", "templates/x/y"]
)
def test_what_running_processes_take_is_applied_without_replacing_a_container(
    tmp_path: Path, name: str
) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    (clone.root / "bin" / "docker").write_text(RUNNING)
    assert clone.run("make", "up").returncode == 0
    clone.calls.write_text("")
    path = clone.deployment / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("edited\n")
    assert clone.run("make", "apply").returncode == 0
    assert clone.starts == []
    assert clone.last_call == LOADED


def test_a_change_that_a_process_does_not_take_ends_apply_with_an_error(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    (clone.root / "bin" / "docker").write_text(RUNNING)
    clone.run("make", "up")
    (clone.root / "bin" / "docker").write_text(RUNNING + 'case "$*" in *--loaded*) exit 1 ;; esac\n')
    done = clone.run("make", "apply")
    assert done.returncode != 0
    assert "is applied" not in done.stdout


@pytest.mark.parametrize(
    "name", ["../.env", "services.env", "secrets/hash_key", "secrets/redis_auth.conf", "ca.pem"]
)
def test_what_counts_at_the_start_only_is_applied_by_replacing_the_containers(
    tmp_path: Path, name: str
) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    (clone.root / "bin" / "docker").write_text(RUNNING)
    assert clone.run("make", "up").returncode == 0
    clone.calls.write_text("")
    with (clone.deployment / name).open("a") as file:
        file.write("SMTP_X=1\n")
    assert clone.run("make", "apply").returncode == 0
    assert clone.starts
    assert LOADED not in clone.calls.read_text()
    clone.calls.write_text("")
    assert clone.run("make", "apply").returncode == 0
    assert clone.starts == []


def test_a_study_without_its_token_does_not_keep_the_others_from_starting(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    (clone.root / "bin" / "docker").write_text(INVALID.replace("exit 1", "exit 3"))
    assert clone.run("make", "up").returncode == 0
    assert len(clone.starts) == 1


def test_where_a_container_does_not_become_healthy_it_is_named_last(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    (clone.root / "bin" / "docker").write_text(
        DOCKER
        + """
case "$*" in
*"compose up"*) exit 1 ;;
*"ps --all"*) printf '%s\\n' "redis healthy running" "prometheus  running" "beat  created" "web unhealthy running" ;;
*"logs"*web) echo "the last line" ;;
esac
"""
    )
    done = clone.run("make", "up")
    assert done.returncode != 0
    assert (
        "web is not healthy. Its log ends with:\nthe last line\nSee docs/how-to/troubleshoot.md"
        in done.stderr
    )
    assert done.stderr.count("is not healthy") == 1
    assert "\nNext: ./optout check" in done.stderr


def test_the_command_line_runs_in_a_worker_or_else_in_a_container_of_its_own(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    shutil.copy(ROOT / "optout", clone.root)
    clone.run("./optout", "events", "--json")
    assert (
        clone.last_call
        == "docker-compose.yml | compose run --rm --no-deps -e OPTOUT_USER -T worker optout events --json"
    )
    (clone.root / "bin" / "docker").write_text(DOCKER + 'case "$*" in *"ps --quiet"*) echo 4f5e ;; esac\n')
    clone.run("./optout", "status", "-")
    assert clone.last_call == "docker-compose.yml | compose exec -e OPTOUT_USER -T worker optout status -"


def backup(clone: Clone) -> str:
    path = clone.root / "backup.rdb.gz"
    path.write_bytes(gzip.compress(b"REDIS0011"))
    return str(path)


def test_a_restore_ends_with_a_reconciliation(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    done = clone.run("make", "restore", f"FILE={backup(clone)}")
    assert (done.returncode, done.stderr) == (0, "")
    assert clone.last_call == "docker-compose.yml | compose exec -T worker optout reconcile"
    assert "reconciled" in done.stdout


def test_a_drill_restores_without_a_reconciliation(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    done = clone.run("make", "restore", f"FILE={backup(clone)}", "RECONCILE=no")
    assert done.returncode == 0
    assert "reconcile" not in clone.calls.read_text()
    assert "missing until ./optout reconcile" in done.stdout


def test_a_reconciliation_that_fails_after_a_restore_is_said_loudly(tmp_path: Path) -> None:
    clone = Clone(tmp_path, CONFIGURED)
    docker = tmp_path / "bin" / "docker"
    docker.write_text(f'{DOCKER}case "$*" in *reconcile*) exit 1 ;; esac\n')
    done = clone.run("make", "restore", f"FILE={backup(clone)}")
    assert "STOPs that came after the backup may be missing" in done.stderr


class SelinuxHost(Clone):
    """A host with SELinux, whose labels are written down."""

    def __init__(self, root: Path, *, enabled: bool = True, labels: bool = True) -> None:
        super().__init__(root, CONFIGURED)
        self._command("selinuxenabled", f"exit {0 if enabled else 1}")
        self._command("chcon", f'echo "$*" >>"{root}/labels"; exit {0 if labels else 1}')

    def _command(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    @property
    def labels(self) -> list[str]:
        path = self.root / "labels"
        return path.read_text().splitlines() if path.exists() else []


def test_with_selinux_everything_that_is_mounted_is_labelled_before_containers_start(tmp_path: Path) -> None:
    host = SelinuxHost(tmp_path)
    assert host.run("make", "up").returncode == 0
    assert host.starts
    assert host.labels == [
        f"-R -t container_file_t {path}"
        for path in ("./deployment", "deploy/redis.conf", "deploy/nginx", "deploy/monitoring")
    ]


def test_without_selinux_nothing_is_labelled(tmp_path: Path) -> None:
    host = SelinuxHost(tmp_path, enabled=False)
    assert host.run("make", "up").returncode == 0
    assert host.labels == []


def test_where_labels_cannot_be_set_the_command_is_named_and_nothing_starts(tmp_path: Path) -> None:
    host = SelinuxHost(tmp_path, labels=False)
    done = host.run("make", "up")
    assert done.returncode != 0
    assert "chcon -R -t container_file_t './deployment'" in done.stderr
    assert host.starts == []


class TestDeploymentsWithoutAConsole:
    """Those of an earlier version: `make up` and `make upgrade` make its login and its user of Redis, once."""

    def clone(self, root: Path, redis_url: str) -> Clone:
        clone = Clone(root, CONFIGURED)
        (clone.deployment / "secrets" / "redis_url").write_text(f"{redis_url}\n")
        return clone

    def secret(self, clone: Clone, name: str) -> str:
        return (clone.deployment / "secrets" / name).read_text().rstrip("\n")

    @pytest.mark.parametrize("target", ["up", "upgrade"])
    def test_they_get_a_login_and_a_user_that_can_only_read(self, tmp_path: Path, target: str) -> None:
        clone = self.clone(tmp_path, "redis://:secret@redis:6379/0")
        done = clone.run("make", target)
        assert done.returncode == 0, done.stderr
        password = self.secret(clone, "console_redis_url").removeprefix("redis://console:").partition("@")[0]
        assert len(password) >= 40
        assert self.secret(clone, "redis_auth.conf") == "x"
        assert self.secret(clone, "redis_console.conf") == f"user console on {CONSOLE_RIGHTS} >{password}"
        assert self.secret(clone, "console_login").startswith("operator:")
        for name in ("console_redis_url", "console_login"):
            assert (clone.deployment / "secrets" / name).stat().st_mode & 0o777 == 0o600
        assert any("compose exec -T redis" in call for call in clone.calls.read_text().splitlines())
        assert password not in done.stdout + done.stderr

    def test_what_is_there_is_left_alone(self, tmp_path: Path) -> None:
        clone = self.clone(tmp_path, "redis://:secret@redis:6379/0")
        clone.run("make", "up")
        before = [
            self.secret(clone, name) for name in ("console_login", "console_redis_url", "redis_console.conf")
        ]
        clone.run("make", "up")
        after = [
            self.secret(clone, name) for name in ("console_login", "console_redis_url", "redis_console.conf")
        ]
        assert after == before

    def test_another_redis_is_read_with_the_address_that_is_known(self, tmp_path: Path) -> None:
        clone = self.clone(tmp_path, "rediss://optout:secret@redis.example.edu:6380/0")
        clone.run("make", "up")
        assert self.secret(clone, "console_redis_url") == "rediss://optout:secret@redis.example.edu:6380/0"
        assert self.secret(clone, "redis_console.conf") == ""
