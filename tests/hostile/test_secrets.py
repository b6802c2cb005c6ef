"""No token, password or key in any representation, error text, output, log, page or process list."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests
from redis import Redis

from shared.config import Config, parse_config
from shared.domain.addresses import PhoneHasher
from shared.errors import ConfigError, OptOutError
from shared.messaging.celery_config import make_celery
from shared.messaging.publisher import make_publisher
from shared.redis_client import connect
from tests.builders import SECRETS, config, document, inbound_form, project_table
from tests.fakes import RecordingPublisher, at_once, fake_redis
from tests.integration.privacy import Finding, Needles, log_texts, redis_texts, web_texts
from tests.processes import ROOT, Platform, Process, wait_until
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import ACCOUNT_SID, PUBLIC_URL, SERVICE_SID, sign_form
from web.app import build_services
from worker.mail.smtp import Mailer
from worker.services import Services
from worker.twilio.client import rest_client
from worker.twilio.message_log import open_message_log

REDIS_PASSWORD = "redis-pass/word+1"
REDIS_PASSWORD_QUOTED = "redis-pass%2Fword%2B1"
SMTP_PASSWORD = "smtp-pass@word#2"
SMTP_PASSWORD_QUOTED = "smtp-pass%40word%232"
AUTH_TOKEN = "5ec4e7a07e0123456789abcdef012345"
REDCAP_TOKEN = "9F8E7D6C5B4A39281706F5E4D3C2B1A0"
HASH_KEY = "the-key-under-which-numbers-are-hashed"
SECRET = Needles.of(
    phones=[],
    texts={
        "password": [REDIS_PASSWORD, REDIS_PASSWORD_QUOTED, SMTP_PASSWORD, SMTP_PASSWORD_QUOTED],
        "token": [AUTH_TOKEN, REDCAP_TOKEN],
        "key": [HASH_KEY],
    },
)


def found(texts: Mapping[str, str]) -> list[Finding]:
    return [finding for place, text in texts.items() for finding in SECRET.found_in(place, text)]


def test_the_search_finds_what_it_looks_for() -> None:
    assert (
        len(found({"a": f"x{HASH_KEY}", "b": f"redis://:{REDIS_PASSWORD_QUOTED}@h/0", "c": "nothing"})) >= 2
    )


class TestObjects:
    @pytest.fixture(autouse=True)
    def resolved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = {
            "OPTOUT_HASH_KEY": HASH_KEY, "OPTOUT_SMTP_URL": f"smtp://user:{SMTP_PASSWORD_QUOTED}@127.0.0.1:1",
            "OPTOUT_REDIS_URL": f"redis://:{REDIS_PASSWORD_QUOTED}@127.0.0.1:1/0",
            "TEST_AUTH_TOKEN": AUTH_TOKEN, "TEST_REDCAP_TOKEN": REDCAP_TOKEN,
        }  # fmt: skip
        assert set(SECRETS) <= set(values)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    def objects(self) -> Iterator[Any]:
        """Everything that has a secret, or has something that has one."""
        checked = config()
        client = connect(f"redis://:{REDIS_PASSWORD_QUOTED}@127.0.0.1:1/0")
        services = Services(config=checked, redis=client, publish=make_publisher())
        account = checked.twilio["main"]
        assert services.mailer is not None
        project = services.project("asthma")
        yield from (
            checked,
            *checked.twilio.values(),
            *checked.projects.values(),
            checked.smtp,
            checked.hash_key,
        )
        yield from (account.auth_token, checked.model_dump(), checked.projects["asthma"].redcap_token)
        web = build_services(checked, client, RecordingPublisher(), schedule=at_once)
        yield from (web, web.verifier, web.router, web.ledger, web.publish)
        yield from (services, services.hasher, services.mailer, services.ledger, services.publish)
        yield from (project, vars(project).get("_client"), services.index("asthma"))
        yield from (
            client,
            client.connection_pool,
            make_celery(f"redis://:{REDIS_PASSWORD_QUOTED}@127.0.0.1:1/0"),
        )
        rest = rest_client(account)
        yield from (rest, rest.http_client, rest.api, rest.messages)
        yield open_message_log("asthma", checked.projects["asthma"], account, services.hasher)
        yield from (
            PhoneHasher(HASH_KEY),
            Mailer(f"smtp://user:{SMTP_PASSWORD_QUOTED}@127.0.0.1:1", "a@example.edu"),
        )

    def test_no_representation_shows_a_secret(self) -> None:
        shown = {f"{number} {type(each).__name__}": f"{each!r} {each} {[each]}" for number, each in
                 enumerate(self.objects())}  # fmt: skip
        assert len(shown) > 25
        assert found(shown) == []

    def test_no_failure_of_a_gateway_shows_a_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPTOUT_TWILIO_API_URL", "http://127.0.0.1:1")
        monkeypatch.setattr("worker.redcap.client.tenacity.nap.time.sleep", lambda _seconds: None)
        checked = config({"asthma": project_table(redcap_url="https://redcap.invalid/api/")})
        services = Services(config=checked, redis=fake_redis(), publish=RecordingPublisher())
        client = connect(f"redis://:{REDIS_PASSWORD_QUOTED}@127.0.0.1:1/0")
        mailer = services.mailer
        assert mailer is not None
        texts = {
            "redcap": failure(lambda: list(services.project("asthma").read_all())),
            "twilio": failure(
                lambda: open_message_log(
                    "asthma", checked.projects["asthma"], checked.twilio["main"], services.hasher
                ).senders()
            ),
            "smtp": failure(mailer.check),
            "redis": failure(client.ping),
        }
        assert found(texts) == []


def failure(call: Any) -> str:
    """Everything that an error says, its causes included."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  whatever it is, it must be silent
        call()
    told, error = [], caught.value
    while error is not None:
        told.append(f"{error!r} {error} {error.args}")
        # What is raised "from None" is not shown with what it came from.
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)  # type: ignore[assignment]
    return "\n".join(told)


class TestConfigErrors:
    """Secrets that somebody writes into the file itself are refused, and not repeated."""

    WRONG: Sequence[dict[str, Any]] = (
        {"hash_key": HASH_KEY},
        {"smtp": {"sender": "a@example.edu", "url": f"smtp://user:{SMTP_PASSWORD_QUOTED}@host"}},
        {"smtp": {"sender": "a@example.edu", "password": SMTP_PASSWORD}},
        {"twilio": {"main": {"account_sid": ACCOUNT_SID, "auth_token": AUTH_TOKEN}}},
        {"twilio": {"main": {"account_sid": AUTH_TOKEN, "auth_token": [AUTH_TOKEN, "env:X"]}}},
        {"twilio": {"main": {"account_sid": ACCOUNT_SID, "auth_token": {"secret": AUTH_TOKEN}}}},
        {"public_url": f"https://user:{SMTP_PASSWORD}@optout.example.edu"},
        {"projects": {"asthma": project_table(redcap_token=REDCAP_TOKEN)}},
        {"projects": {"asthma": project_table(redcap_token=[REDCAP_TOKEN])}},
        {"projects": {"asthma": project_table(redcap_url=f"https://u:{SMTP_PASSWORD}@redcap.example.edu/api/")}},
        {"projects": {"asthma": project_table(forward_url=f"https://u:{SMTP_PASSWORD}@redcap.example.edu/")}},
        {"projects": {"asthma": project_table(phone_field=REDCAP_TOKEN)}},
        {"projects": {"asthma": project_table(token=REDCAP_TOKEN)}},
        {"projects": {"asthma": project_table(redcap_token=f"env:{REDCAP_TOKEN}")}},
        {"projects": {"asthma": project_table(redcap_token=f"file:{REDCAP_TOKEN}")}},
        {"twilio": {"main": {"account_sid": ACCOUNT_SID, "auth_token": ["env:X", f"env:a{AUTH_TOKEN[1:]}"]}}},
        {"smtp": {"sender": "a@example.edu", "url": f"env:smtp://user:{SMTP_PASSWORD_QUOTED}@host"}},
    )  # fmt: skip

    @pytest.mark.parametrize("changes", WRONG)
    def test_a_secret_in_the_file_is_not_repeated(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_config(document(**changes))
        assert found({"error": f"{caught.value} {caught.value!r} {caught.value.problems}"}) == []

    @pytest.mark.parametrize(
        "url", [f"smtp:{SMTP_PASSWORD}", f"http://u:{SMTP_PASSWORD_QUOTED}@host", SMTP_PASSWORD]
    )
    def test_an_address_that_is_none_is_not_repeated(self, url: str) -> None:
        with pytest.raises(OptOutError) as caught:
            Mailer(url, "a@example.edu")
        assert found({"error": f"{caught.value} {caught.value!r}"}) == []

    def test_a_checked_configuration_holds_references_only(self) -> None:
        assert isinstance(config(), Config)
        assert "TEST_AUTH_TOKEN" in repr(config())


@pytest.mark.parametrize("entry_point", ["web.wsgi", "worker.celery_app"])
@pytest.mark.parametrize("variable", ["OPTOUT_REDIS_URL", "OPTOUT_BROKER_URL"])
def test_no_process_repeats_a_password_that_was_not_encoded(entry_point: str, variable: str) -> None:
    address = {variable: f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0"}
    done = subprocess.run(
        [sys.executable, "-c", f"import {entry_point}"],
        cwd=ROOT, env=os.environ | {"OPTOUT_CONFIG": "config.example.toml", "OPTOUT_HASH_KEY": HASH_KEY,
                                    "TWILIO_AUTH_TOKEN": AUTH_TOKEN} | address,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{variable}: is not a valid address" in done.stderr
    said = done.stdout + done.stderr
    assert [piece for piece in (*REDIS_PASSWORD.split("/"), "Traceback") if piece in said] == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_worker_whose_hash_key_is_no_text_does_not_start_and_says_why(
    encoding: str, tmp_path: Path
) -> None:
    """Celery logs what a receiver of its signals raises with its repr, and goes on."""
    key = tmp_path / "hash_key"
    key.write_bytes(f"{HASH_KEY}-\u00fc".encode(encoding))
    path = tmp_path / "config.toml"
    path.write_text((ROOT / "config.example.toml").read_text().replace("env:OPTOUT_HASH_KEY", f"file:{key}"))
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-q", "-A", "worker.celery_app", "worker"],
        cwd=ROOT, env=os.environ | {"OPTOUT_CONFIG": str(path), "OPTOUT_REDIS_URL": "redis://127.0.0.1:1/0"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert f"file:{key} is not UTF-8: save it as UTF-8" in done.stderr
    assert [piece for piece in ("hashed", "h\\x00a", "h\0a", "Traceback") if piece in said] == []


def test_a_worker_that_cannot_start_for_another_reason_names_its_type_alone() -> None:
    script = f"""
import worker.celery_app as module
def services():
    raise ValueError({HASH_KEY!r})
module.services = services
module.worker_init.send(sender=None)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env=os.environ | {"OPTOUT_REDIS_URL": "redis://127.0.0.1:1/0"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the worker cannot start: ValueError" in done.stderr
    assert found({"said": done.stdout + done.stderr}) == []


class Locked(Platform):
    """A platform whose Redis wants a password, which everybody gets with its address."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.redis.close()
        self.redis = Redis(port=self.redis_port, password=REDIS_PASSWORD, decode_responses=True)

    def _process(self, name: str, command: Sequence[str]) -> Process:
        self.env["OPTOUT_REDIS_URL"] = f"redis://:{REDIS_PASSWORD_QUOTED}@127.0.0.1:{self.redis_port}/0"
        if name == "redis":
            settings = self.folder / "redis_auth.conf"
            settings.write_text(f'requirepass "{REDIS_PASSWORD}"\n')
            command = [*command, "--include", str(settings)]
        return super()._process(name, command)


class TestProcesses:
    CONFIG = f"""
public_url = "{PUBLIC_URL}"
hash_key = "env:OPTOUT_HASH_KEY"
[smtp]
url = "env:OPTOUT_SMTP_URL"
sender = "optout-bridge@example.edu"
[twilio.main]
account_sid = "{ACCOUNT_SID}"
auth_token = "env:TWILIO_AUTH_TOKEN"
[projects.asthma]
redcap_url = "https://redcap.invalid/api/"
redcap_token = "env:REDCAP_TOKEN"
twilio = "main"
messaging_service_sid = "{SERVICE_SID}"
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
notify = ["coordinator@example.edu"]
"""
    COMMANDS = (
        ("check", "--timeout", "5"), ("check", "--json", "--timeout", "5"), ("events",), ("events", "--json"),
        ("status", "+16505550100"), ("top", "--once"), ("replay", "--failed"), ("setup", "--project", "asthma"),
        ("reconcile", "--dry-run"), ("reconcile", "--json"), ("test-message", "--project", "asthma", "--json"),
        ("forget", "+16505550100", "--yes"), ("--help",), ("--version",),
    )  # fmt: skip

    @pytest.fixture(scope="class")
    @classmethod
    def platform(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
        """Everything outside refuses: no such REDCap, a mail server that wants another password, no Twilio."""
        with ExitStack() as stack:
            smtp = stack.enter_context(SmtpSimulator(user="user", password="another").serve())
            secrets = {
                "OPTOUT_HASH_KEY": HASH_KEY, "TWILIO_AUTH_TOKEN": AUTH_TOKEN, "REDCAP_TOKEN": REDCAP_TOKEN,
                "OPTOUT_SMTP_URL": f"smtp://user:{SMTP_PASSWORD_QUOTED}@127.0.0.1:{smtp.port}",
                "OPTOUT_TWILIO_API_URL": "http://127.0.0.1:1", "FLOWER_UNAUTHENTICATED_API": "true",
            }  # fmt: skip
            folder: Path = tmp_path_factory.mktemp("secrets")
            platform = Locked(folder, cls.CONFIG, secrets, level="DEBUG")
            stack.enter_context(platform)
            platform.start()
            form = inbound_form()
            signature = sign_form(f"{PUBLIC_URL}/twilio/inbound", form, AUTH_TOKEN)
            sent = requests.post(f"{platform.web_url}/twilio/inbound", data=form, timeout=15,
                                 headers={"X-Twilio-Signature": signature})  # fmt: skip
            assert sent.status_code == 200
            wait_until(lambda: "redcap_unreachable" in platform["worker"].text(), what="REDCap was tried")
            yield platform

    def test_no_command_shows_a_secret(self, platform: Locked) -> None:
        outputs = {}
        for command in self.COMMANDS:
            done = platform.run(*command, check=False)
            outputs[" ".join(command)] = done.stdout + done.stderr
        assert all(outputs.values())
        assert "smtp" in outputs["check --timeout 5"]
        assert found(outputs) == []

    def test_no_command_shows_the_password_of_a_store_that_is_away(self, platform: Locked) -> None:
        away = f"redis://:{REDIS_PASSWORD_QUOTED}@127.0.0.1:1/0"
        for command in (("events",), ("check", "--timeout", "5"), ("reconcile",)):
            done = platform.run(*command, check=False, OPTOUT_REDIS_URL=away)
            assert done.returncode in {1, 2}
            assert found({" ".join(command): done.stdout + done.stderr}) == []

    def test_the_process_list_shows_no_secret(self, platform: Locked) -> None:
        lines = {}
        for name, process in platform.processes.items():
            for pid in (process.pid, *process.children()):
                lines[f"{name} {pid}"] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        assert len(lines) > len(platform.processes)
        assert found(lines) == []

    def test_no_page_shows_a_secret(self, platform: Locked) -> None:
        """Flower can show a worker's whole configuration."""
        pages = dict(web_texts(platform))
        for path in ("/workers", "/broker", "/tasks", "/api/workers?refresh=1", "/metrics"):
            pages[path] = requests.get(platform.flower_url + path, timeout=30).text
        workers = requests.get(f"{platform.flower_url}/api/workers", timeout=30).json()
        for worker in workers:
            pages[worker] = requests.get(f"{platform.flower_url}/worker/{worker}", timeout=30).text
        assert any("broker_url" in page for page in pages.values())
        assert found(pages) == []
        assert found(dict(redis_texts(platform.redis))) == []

    def test_no_log_shows_a_secret_even_where_the_store_dies_and_at_debug_level(
        self, platform: Locked
    ) -> None:
        platform["redis"].kill()
        for _ in range(2):
            requests.get(f"{platform.web_url}/readyz", timeout=15)
        wait_until(lambda: "127.0.0.1" in platform["worker"].text(), what="the worker misses its broker")
        wait_until(
            lambda: "Cannot connect" in platform["worker"].text() or "onnection" in platform["worker"].text(),
            what="the worker says so",
        )
        platform.start("redis")
        assert found(dict(log_texts(platform))) == []
