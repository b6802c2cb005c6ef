"""A configuration that is edited while containers run: validated first, then applied, and seen by all processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.compose.stack import Stack
from tests.processes import wait_until

pytestmark = pytest.mark.timeout(900)

SERVICES = ("web", "worker", "beat", "flower", "console")


def edit(stack: Stack, old: str, new: str) -> None:
    """As most editors save: a new file takes the old one's name."""
    path = stack.deployment / "config.toml"
    text = path.read_text()
    assert old in text
    part = Path(f"{path}.part")
    part.write_text(text.replace(old, new))
    part.chmod(0o600)
    os.chown(part, path.stat().st_uid, path.stat().st_gid)
    part.replace(path)


def ids(stack: Stack) -> set[str]:
    return {container["Id"] for service in SERVICES for container in stack.containers(service)}


def stale(stack: Stack) -> set[str]:
    """The kinds of processes that `optout check` reports to run with another configuration."""
    done = stack.run("./optout", "check", "--json", "--timeout", "20", check=False)
    findings = json.loads(done.stdout)["findings"]
    return {each["observed"].split()[0] for each in findings if each["id"] == "configuration-stale"}


def reaches_redcap(stack: Stack) -> None:
    [record] = stack.enrol(1)
    assert stack.text(record).status == 200
    stack.expect_opted_out([record])


@pytest.mark.parametrize("service", SERVICES[:3])
def test_the_mounted_folder_shows_the_configuration_and_no_secret(stack: Stack, service: str) -> None:
    listed = stack.compose("exec", "-T", service, "sh", "-c", "cd /etc/optout && find . -type f 2>&1 || true")
    assert "./config.toml" in listed.splitlines()
    assert "./secrets/" not in listed
    assert "./tls/" not in listed


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('phone_field = "mobile"', 'phone_feild = "mobile"', "projects.asthma.phone_feild: unknown key"),
        ("[projects.sleep]", "[projects.sleep", "file: is not TOML"),
        ("file:/run/secrets/redcap/sleep", "file:/run/secrets/redcap/none", "redcap_token"),
    ],
)
def test_a_mistake_is_not_applied_and_the_studies_go_on(stack: Stack, old: str, new: str, named: str) -> None:
    before = ids(stack)
    edit(stack, old, new)
    try:
        for command in ("apply", "upgrade"):
            done = stack.run("make", command, check=False)
            assert done.returncode != 0
            assert named in done.stderr
        assert ids(stack) == before
        reaches_redcap(stack)
    finally:
        edit(stack, new, old)


def test_an_edit_is_taken_without_replacing_a_container(stack: Stack) -> None:
    wait_until(lambda: stale(stack) == set(), seconds=90, what="all processes have loaded the file")
    before = ids(stack)
    edit(stack, 'opt_out_keywords = ["ALTO"]', 'opt_out_keywords = ["ALTO", "BASTA"]')
    stack.run("make", "apply")
    assert stale(stack) == set()
    assert ids(stack) == before
    reaches_redcap(stack)


def test_a_study_s_file_that_is_added_and_removed_is_taken_without_replacing_a_container(
    stack: Stack,
) -> None:
    before, studies = ids(stack), stack.deployment / "studies"
    owner = (stack.deployment / "config.toml").stat()
    studies.mkdir(exist_ok=True)
    os.chown(studies, owner.st_uid, owner.st_gid)
    if "include" not in (stack.deployment / "config.toml").read_text():
        edit(stack, "public_url", 'include = "studies/*.toml"\npublic_url')
    table = (stack.deployment / "config.toml").read_text().split("[projects.sleep]")[1].split("\n[")[0]
    path = studies / "another.toml"
    path.write_text(f"[projects.another]{table}\n")
    os.chown(path, owner.st_uid, owner.st_gid)
    stack.run("make", "apply")
    assert "another" in stack.run("./optout", "top", "--json").stdout
    path.unlink()
    stack.run("make", "apply")
    assert stale(stack) == set()
    assert ids(stack) == before


def test_make_up_applies_an_edit_too_and_changes_nothing_without_one(stack: Stack) -> None:
    edit(stack, '"ALTO", "BASTA"', '"ALTO"')
    before = ids(stack)
    stack.run("make", "up")
    assert not {container["Id"] for name in SERVICES[:3] for container in stack.containers(name)} & before
    wait_until(lambda: stale(stack) == set(), seconds=90, what="all processes have loaded the file")
    applied = stack.env_file.read_text()
    stack.run("make", "up")
    assert stack.env_file.read_text() == applied


def test_an_edit_that_changes_no_value_is_none(stack: Stack) -> None:
    edit(stack, "[projects.sleep]", "# a comment\n[projects.sleep]")
    assert stale(stack) == set()


def test_the_command_line_works_where_no_worker_runs(stack: Stack) -> None:
    stack.compose("stop", "worker")
    assert "is valid" in stack.run("./optout", "check", "--config-only").stdout
    stack.compose("start", "worker")


def test_without_a_secret_that_web_needs_nothing_is_started_and_the_secret_is_named(stack: Stack) -> None:
    token_file = stack.deployment / "secrets" / "twilio" / "main"
    token = token_file.read_text()
    before = ids(stack)
    try:
        token_file.write_text("")
        done = stack.run("make", "up", check=False)
        assert done.returncode != 0
        assert "auth_token: file:/run/secrets/twilio/main is empty" in done.stderr
        assert "Nothing was changed" in done.stderr
        assert ids(stack) == before
    finally:
        token_file.write_text(token)
