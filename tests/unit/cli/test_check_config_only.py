"""`optout check --config-only`: every problem by file, key and fix, without Redis and without a network."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shared.config import load_config
from shared.ledger.platform.loaded_configurations import Trouble, publish
from tests.fakes import fake_redis
from worker.cli import main

VALID = """\
public_url = "https://optout.example.edu"
hash_key = "env:TEST_KEY"

[smtp]
url = "env:TEST_SMTP"
sender = "optout-bridge@example.edu"

[twilio.main]
account_sid = "AC000000000000000000000000000000a1"
auth_token = "env:TEST_TOKEN"

[projects.asthma]
redcap_url = "https://redcap.example.edu/api/"
redcap_token = "env:TEST_REDCAP"
twilio = "main"
senders = ["+16505550177"]
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
notify = ["coordinator@example.edu"]
"""
Check = Callable[..., Result]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Write a configuration and run the command; any attempt to connect fails the test."""

    def connected(*_: Any) -> None:
        raise AssertionError("it connected")

    monkeypatch.setattr(socket.socket, "connect", connected)
    monkeypatch.setattr("worker.cli.configure_logging", lambda _level: None)
    monkeypatch.setenv("OPTOUT_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("OPTOUT_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("TEST_KEY", "k" * 40)
    for name in ("TEST_SMTP", "TEST_TOKEN", "TEST_REDCAP"):
        monkeypatch.setenv(name, "smtp://relay.example.edu")

    def run(text: str, *args: str) -> Result:
        (tmp_path / "config.toml").write_text(text)
        return CliRunner().invoke(main, ["check", "--config-only", *args])

    return run


def test_a_valid_file_passes(check: Check) -> None:
    result = check(VALID)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "config.toml is valid" in result.stdout


@pytest.mark.parametrize(
    ("wrong", "right", "key", "fix"),
    [
        ('phone_feild = "mobile"', 'phone_field = "mobile"', "projects.asthma.phone_feild", "phone_field"),
        ('twilio = "mian"', 'twilio = "main"', "projects.asthma.twilio", "main"),
        (
            'public_url = "optout.example.edu"',
            'public_url = "https://optout.example.edu"',
            "public_url",
            "https://",
        ),
        ("[projects.asthma", "[projects.asthma]", "file", "correct that line"),
        ('sender = "nobody"', 'sender = "optout-bridge@example.edu"', "smtp.sender", "sender address"),
    ],
)
def test_a_mistake_is_named_by_file_key_and_fix(
    check: Check, wrong: str, right: str, key: str, fix: str
) -> None:
    text = VALID.replace(right, wrong)
    assert text != VALID
    result = check(text, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ok"]) == (1, False)
    [observed] = [
        each["observed"] for each in report["findings"] if f"config.toml: {key}: " in each["observed"]
    ]
    assert fix in observed


def test_every_mistake_is_named_at_once(check: Check) -> None:
    text = VALID.replace("sender =", "from =").replace("phone_field", "phone_feild")
    report = json.loads(check(text, "--json").stdout)
    named = {each["observed"].split(": ")[1] for each in report["findings"]}
    assert named == {
        "smtp.from", "smtp.sender", "projects.asthma.phone_feild", "projects.asthma.phone_field",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "code"), [("TEST_KEY", 1), ("TEST_TOKEN", 1), ("TEST_REDCAP", 3), ("TEST_SMTP", 3)]
)
def test_a_missing_secret_is_named(
    check: Check, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    """Without one of the first two a process would not start; the others stop a study, or the mails."""
    monkeypatch.delenv(name)
    result = check(VALID, "--json")
    [finding] = json.loads(result.stdout)["findings"]
    assert (result.exit_code, finding["id"]) == (code, "secret-missing")
    assert f"env:{name}" in finding["observed"]


def test_what_would_not_stop_a_process_is_left_to_the_whole_check(check: Check) -> None:
    """Plain http, for one: it is an error, and no reason to keep an old configuration."""
    assert check(VALID.replace("https://", "http://")).exit_code == 0


def test_a_missing_file_is_named_with_the_fix(
    check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPTOUT_CONFIG", str(tmp_path / "none.toml"))
    result = check(VALID)
    assert result.exit_code == 1
    assert "none.toml: file: cannot be read" in result.stdout


def test_an_unknown_project_is_an_error_of_the_command_line(check: Check) -> None:
    assert check(VALID, "--project", "sleep").exit_code == 2
    assert check(VALID, "--project", "asthma").exit_code == 0


class TestLoaded:
    @pytest.fixture
    def redis(self, check: Check, monkeypatch: pytest.MonkeyPatch) -> Any:
        redis = fake_redis()
        monkeypatch.setattr("worker.cli.common.connect", lambda _url: redis)
        assert check(VALID).exit_code == 0
        return redis

    def run(self, *args: str) -> Result:
        return CliRunner().invoke(main, ["check", "--loaded", "--timeout", "1", *args])

    def test_it_passes_as_soon_as_every_process_has_loaded_the_files(self, redis: Any) -> None:
        for kind in ("web", "worker", "beat"):
            publish(redis, f"{kind}|host|7", load_config().digest, now_ms=time.time_ns() // 1_000_000)
        result = self.run()
        assert (result.exit_code, "3 processes have loaded this file" in result.stdout) == (0, True)

    def test_a_process_with_another_configuration_is_named(self, redis: Any) -> None:
        publish(redis, "web|host|7", "0123abcd", now_ms=time.time_ns() // 1_000_000)
        result = self.run("--json")
        [finding] = json.loads(result.stdout)["findings"]
        assert (result.exit_code, finding["id"]) == (1, "configuration-stale")

    def test_a_process_that_found_the_files_invalid_is_named_with_file_and_key(self, redis: Any) -> None:
        trouble = Trouble("/etc/optout/studies/a.toml", "projects.a.phone_feild: unknown key")
        publish(redis, "web|host|7", "0123abcd", now_ms=time.time_ns() // 1_000_000, trouble=trouble)
        result = self.run("--json")
        [finding] = json.loads(result.stdout)["findings"]
        assert (result.exit_code, finding["id"]) == (1, "configuration-invalid")
        assert "studies/a.toml: projects.a.phone_feild" in finding["observed"]

    def test_a_setting_that_needs_a_restart_is_named_and_does_not_fail(self, redis: Any) -> None:
        now_ms, trouble = time.time_ns() // 1_000_000, Trouble(needs_restart=("OPTOUT_REDIS_URL",))
        publish(redis, "web|host|7", load_config().digest, now_ms=now_ms, trouble=trouble)
        result = self.run("--json")
        [finding] = json.loads(result.stdout)["findings"]
        assert (result.exit_code, finding["id"]) == (0, "configuration-needs-restart")
        assert "OPTOUT_REDIS_URL" in finding["observed"]

    def test_where_no_process_runs_it_fails(self, redis: Any) -> None:
        assert self.run().exit_code == 1
