"""`make deployment`, and the demo's folder: what they hold is what compose and the program look for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from shared.config import load_config
from tests.demo import ASTHMA_TOKEN, AUTH_TOKEN, CONFIG, SLEEP_TOKEN
from tests.processes import ROOT
from tests.simulators.twilio import ACCOUNT_SID, PUBLIC_URL, SERVICE_SID

DEMO = ROOT / "deploy" / "demo"
SECRETS = "/run/secrets/"


def make_deployment(root: Path, **answers: str) -> subprocess.CompletedProcess[str]:
    """Run deploy/new-deployment in a folder that holds nothing else of the project; it asks nothing."""
    (root / "deploy").mkdir(exist_ok=True)
    shutil.copy(ROOT / "deploy" / "new-deployment", root / "deploy")
    shutil.copy(ROOT / "config.example.toml", root)
    return subprocess.run(
        [root / "deploy" / "new-deployment"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], **answers},
    )  # fmt: skip


def references(value: Any) -> set[str]:
    """The secrets that a parsed configuration refers to by file, below the folder of secrets."""
    if isinstance(value, str):
        return {value.removeprefix(f"file:{SECRETS}")} if value.startswith(f"file:{SECRETS}") else set()
    if isinstance(value, dict):
        return set().union(*(references(each) for each in value.values()))
    return set().union(*(references(each) for each in value)) if isinstance(value, list) else set()


def test_a_new_deployment_fits_the_program(tmp_path: Path) -> None:
    assert make_deployment(tmp_path).returncode == 0
    folder = tmp_path / "deployment"
    config = (folder / "config.toml").read_text()
    load_config(folder / "config.toml")
    assert '= "env:' not in config
    named = references(tomllib.loads(config))
    assert {"hash_key", "smtp_url", "twilio/main"} <= named
    assert [name for name in named if not (folder / "secrets" / name).is_file()] == []
    assert (folder / "templates").is_dir()
    assert (folder / "ca.pem").read_bytes() == b""
    settings = (tmp_path / ".env").read_text().splitlines()
    assert {"OPTOUT_DEPLOYMENT=./deployment", "COMPOSE_FILE=docker-compose.yml"} <= set(settings)
    assert [line for line in settings if line.startswith("COMPOSE_PROJECT_NAME=optout")]


ANSWERS = {
    "PUBLIC_URL": "https://optout.example.edu/a?b=1&c=2|3",
    "TWILIO_ACCOUNT_SID": "AC" + "5" * 32,
    "TWILIO_AUTH_TOKEN": "token-of-twilio",
    "REDCAP_URL": "https://redcap.example.edu/redcap/api/",
    "REDCAP_TOKEN": "token-of-redcap",
    "SMTP_URL": "smtp://us%40er:pass%2Fword&@relay.example.edu:25",
}


def test_answers_are_written_where_the_program_reads_them(tmp_path: Path) -> None:
    done = make_deployment(tmp_path, **ANSWERS)
    folder = tmp_path / "deployment"
    config = load_config(folder / "config.toml")
    assert config.public_url == ANSWERS["PUBLIC_URL"]
    assert config.twilio["main"].account_sid == ANSWERS["TWILIO_ACCOUNT_SID"]
    assert [project.redcap_url for project in config.projects.values()] == [ANSWERS["REDCAP_URL"]]
    read = {
        name: (folder / "secrets" / name).read_text().strip()
        for name in ("twilio/main", "redcap/asthma", "smtp_url")
    }
    assert list(read.values()) == [
        ANSWERS[name] for name in ("TWILIO_AUTH_TOKEN", "REDCAP_TOKEN", "SMTP_URL")
    ]
    assert "Fill in" not in done.stdout
    assert not [value for value in read.values() if value in done.stdout]


def test_without_answers_the_files_to_fill_in_are_named(tmp_path: Path) -> None:
    shown = make_deployment(tmp_path).stdout
    for name in ("twilio/main", "redcap/asthma", "smtp_url"):
        assert f"./deployment/secrets/{name}" in shown
    assert "secrets/redis_url" not in shown


@pytest.mark.parametrize("answer", ['https://a"b', "https://a\\b", "https://a\nb"])
def test_an_answer_that_would_break_the_file_is_rejected(tmp_path: Path, answer: str) -> None:
    assert make_deployment(tmp_path, PUBLIC_URL=answer).returncode == 1
    assert not (tmp_path / "deployment").exists()
    assert not (tmp_path / ".env").exists()


def test_a_deployment_keeps_the_settings_that_stand_in_env(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "COMPOSE_FILE=docker-compose.yml:docker-compose.tls.yml\nOPTOUT_WEB_PORT=8001\n"
    )
    assert make_deployment(tmp_path).returncode == 0
    settings = (tmp_path / ".env").read_text().splitlines()
    assert [line for line in settings if line.startswith("COMPOSE_FILE=")] == [
        "COMPOSE_FILE=docker-compose.yml:docker-compose.tls.yml"
    ]
    assert {"OPTOUT_WEB_PORT=8001", "OPTOUT_DEPLOYMENT=./deployment"} <= set(settings)


def test_a_second_deployment_is_not_made_where_env_names_one(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OPTOUT_DEPLOYMENT=/srv/optout\n")
    assert make_deployment(tmp_path).returncode == 1
    assert not (tmp_path / "deployment").exists()


# Each of these removes data: of the project, or of everything on the host that no container uses.
REMOVES_A_VOLUME = re.compile(
    r"volume (rm|remove|prune)|--volumes|system prune|(down|rm) .*-v\b|flushall|flushdb", re.IGNORECASE
)


def test_no_documented_or_printed_command_removes_a_volume() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    told = [
        path
        for path in listed
        if path.startswith(
            ("docs/", "deploy/", "web/", "worker/", "shared/", "tests/demo.py", "tests/compose/story.py")
        )
        or "/" not in path
    ]
    assert {"README.md", "Makefile", "deploy/restore", "docs/tutorial/demo.md"} <= set(told)
    found = [
        f"{path}: {line.strip()}"
        for path in told
        if (ROOT / path).is_file()
        for line in (ROOT / path).read_text(errors="replace").splitlines()
        if REMOVES_A_VOLUME.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("demo", [True, False])
def test_a_deployment_holds_every_secret_of_the_compose_file(tmp_path: Path, demo: bool) -> None:
    if not demo:
        make_deployment(tmp_path)
    folder = DEMO if demo else tmp_path / "deployment"
    compose = (ROOT / "docker-compose.yml").read_text()
    single = [
        line.split("/secrets/")[1].strip(' "}')
        for line in compose.splitlines()
        if "{file:" in line and "/secrets/" in line
    ]
    assert len(single) == 8
    assert [
        name for name in [*single, "twilio", "redcap", "smtp"] if not (folder / "secrets" / name).exists()
    ] == []
    password = (folder / "secrets" / "redis_auth.conf").read_text().removeprefix("requirepass ").strip()
    assert (folder / "secrets" / "redis_url").read_text().strip() == f"redis://:{password}@redis:6379/0"


def test_its_files_are_closed_to_all_but_their_owner_as_whom_the_containers_run(tmp_path: Path) -> None:
    make_deployment(tmp_path)
    settings = dict(
        line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines() if "=" in line
    )
    folder = tmp_path / "deployment"
    paths = [folder, *folder.rglob("*")]
    owners = {(str(path.stat().st_uid), str(path.stat().st_gid)) for path in paths}
    assert owners == {(settings["OPTOUT_UID"], settings["OPTOUT_GID"])}
    assert "0" not in {settings["OPTOUT_UID"], settings["OPTOUT_GID"]}
    # Redis, which runs as a user of its own, reads its passwords by the group.
    by_group = [folder / "secrets" / name for name in ("redis_auth.conf", "redis_console.conf")]
    assert [path.stat().st_mode & 0o777 for path in by_group] == [0o640, 0o640]
    assert [path for path in paths if path.stat().st_mode & 0o077 and path not in by_group] == []


def test_what_is_taken_over_for_kubernetes_is_closed_also_over_an_older_copy(tmp_path: Path) -> None:
    make_deployment(tmp_path)
    kubernetes = tmp_path / "deploy" / "kubernetes"
    (kubernetes / "secrets").mkdir(parents=True)
    (kubernetes / "secrets" / "hash_key").touch(0o644)
    page = (ROOT / "docs/how-to/install-kubernetes.md").read_text()
    commands = page.split("```console\n")[1].split("```")[0]
    subprocess.run(["bash", "-ec", f"umask 022\n{commands}"], cwd=tmp_path, check=True)
    copied = [kubernetes / "secrets", *(kubernetes / "secrets").rglob("*")]
    assert (kubernetes / "secrets" / "twilio" / "main").is_file()
    assert (kubernetes / "config.toml").is_file()
    assert [path for path in copied if path.stat().st_mode & 0o077] == []


def test_every_deployment_gets_secrets_of_its_own(tmp_path: Path) -> None:
    made = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_deployment(tmp_path / name)
        secrets = tmp_path / name / "deployment" / "secrets"
        made |= {
            (secrets / each).read_text()
            for each in ("hash_key", "redis_auth.conf", "redis_console.conf", "flower_login", "console_login")
        }
    assert len(made) == 10
    assert min(len(secret.split()[-1]) for secret in made) >= 40


def test_a_deployment_that_exists_is_left_alone(tmp_path: Path) -> None:
    make_deployment(tmp_path)
    key = (tmp_path / "deployment" / "secrets" / "hash_key").read_text()
    again = make_deployment(tmp_path)
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert (tmp_path / "deployment" / "secrets" / "hash_key").read_text() == key


def test_the_containers_demo_has_the_studies_of_make_demo() -> None:
    told = CONFIG.format(
        public_url=PUBLIC_URL, account_sid=ACCOUNT_SID, service_sid=SERVICE_SID,
        redcap_url="http://simulators:8900/api/", sleep_sender="+16505550177",
    )  # fmt: skip
    ours, theirs = load_config(DEMO / "config.toml"), tomllib.loads(told)
    for name, project in theirs["projects"].items():
        stored = ours.projects[name].model_dump(exclude={"redcap_token"})
        assert {key: stored[key] for key in project if key != "redcap_token"} == {
            key: value for key, value in project.items() if key != "redcap_token"
        }
    assert set(ours.projects) == set(theirs["projects"])
    tokens = {"twilio/main": AUTH_TOKEN, "redcap/asthma": ASTHMA_TOKEN, "redcap/sleep": SLEEP_TOKEN}
    assert {name: (DEMO / "secrets" / name).read_text().strip() for name in tokens} == tokens
