"""The containers of one test run: their own project, ports, images and volume, touching no others."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from shared.redis_rights import CONSOLE_RIGHTS
from tests.processes import ROOT, free_port, wait_until
from tests.simulators.redcap import fictional_phone, fictional_phone_as_typed
from tests.simulators.redcap.__main__ import ASTHMA_TOKEN, SLEEP_TOKEN
from tests.simulators.twilio import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    PUBLIC_URL,
    SENDER,
    SERVICE_SID,
    Account,
    Texted,
    TwilioSimulator,
)

PLATFORM = ("redis", "web", "worker", "beat", "flower", "console")
BASE, SCALE, TLS = "docker-compose.yml", "docker-compose.scale.yml", "docker-compose.tls.yml"
# Simulators beside the containers of a deployment, in place of REDCap, Twilio and the mail server.
SIMULATORS = "tests/compose/simulators.yml"
ASTHMA = "Asthma diary"


def a_clone(root: Path, *, umask: int = 0o022) -> Path:
    """A copy of this project's files as `git clone` makes it under a umask; answers its folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (source := ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, root / name)
            (root / name).chmod((0o777 if source.stat().st_mode & 0o100 else 0o666) & ~umask)
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        folder.chmod(0o777 & ~umask)
    return root


def without_a_deployment() -> dict[str, str]:
    """The caller's environment, with nothing of a deployment or demo of their own."""
    others = ("OPTOUT_", "COMPOSE_", "DEMO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(others)}


def said(
    *command: str, cwd: Path, env: dict[str, str], check: bool = True, seconds: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a command; a failure shows what it said."""
    done = subprocess.run(
        command, env=env, cwd=cwd, capture_output=True, text=True, timeout=seconds,
        stdin=subprocess.DEVNULL, check=False, errors="replace",
    )  # fmt: skip
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def remove_images(prefix: str) -> None:
    """Remove the images of a test run."""
    env = dict(os.environ)
    images = said("docker", "image", "ls", "--quiet", f"{prefix}-*", cwd=ROOT, env=env).stdout.split()
    if images:
        said("docker", "image", "rm", "--force", *images, cwd=ROOT, env=env, check=False)


def a_certificate(folder: Path) -> None:
    """A self-made certificate for the public host."""
    folder.mkdir()
    host = PUBLIC_URL.removeprefix("https://")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={host}",
         "-addext", f"subjectAltName=DNS:{host}", "-keyout", "privkey.pem", "-out", "fullchain.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


@dataclass
class Stack:
    """A deployment in a clone of its own: the demo's studies, free ports, a certificate, a Twilio that texts."""

    folder: Path
    project: str = field(default_factory=lambda: f"optout-test-{secrets.token_hex(3)}")
    extra: dict[str, str] = field(default_factory=dict)
    next_record: int = 1000

    def __post_init__(self) -> None:
        self.root = a_clone(self.folder / "clone", umask=0o077)
        self.deployment = self.folder / "deployment"
        shutil.copytree(ROOT / "deploy" / "demo", self.deployment, ignore=shutil.ignore_patterns(".gitkeep"))
        self.flower_login = ("operator", secrets.token_hex(16))
        self.console_login = ("operator", secrets.token_hex(16))
        self._make_secrets()
        a_certificate(self.deployment / "tls")
        # As `make deployment` makes it: nobody but its owner may read it, and that is not root.
        uid, gid = (12345, 12346) if os.getuid() == 0 else (os.getuid(), os.getgid())
        for path in (self.deployment, *self.deployment.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
            os.chown(path, uid, gid)
        for name in ("redis_auth.conf", "redis_console.conf"):
            (self.deployment / "secrets" / name).chmod(0o640)
        names = (
            "OPTOUT_WEB",
            "OPTOUT_TLS",
            "OPTOUT_FLOWER",
            "OPTOUT_CONSOLE",
            "DEMO_REDCAP",
            "DEMO_TWILIO",
            "DEMO_MAIL",
        )
        self.ports = {name: free_port() for name in names}
        self.web_url = f"http://127.0.0.1:{self.ports['OPTOUT_WEB']}"
        self.flower_url = f"http://127.0.0.1:{self.ports['OPTOUT_FLOWER']}"
        self.console_url = f"http://127.0.0.1:{self.ports['OPTOUT_CONSOLE']}"
        self.redcap_url = f"http://127.0.0.1:{self.ports['DEMO_REDCAP']}"
        account = Account(sid=ACCOUNT_SID, auth_token=AUTH_TOKEN)
        self.twilio = TwilioSimulator([account], public_url=PUBLIC_URL, deliver_to=self.web_url)
        self.twilio.add_service(sid=SERVICE_SID, senders=[SENDER])
        settings = {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_FILE": f"{BASE}:{SIMULATORS}",
            "OPTOUT_DEPLOYMENT": str(self.deployment),
            "OPTOUT_UID": str(uid),
            "OPTOUT_GID": str(gid),
            "OPTOUT_IMAGE": self.project,
            "OPTOUT_TLS_ADDRESS": "127.0.0.1",
        } | {f"{name}_PORT": str(port) for name, port in self.ports.items()}
        self.env_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def _make_secrets(self) -> None:
        """Its own in place of the demo's, with which no process of a deployment starts."""
        password, console = secrets.token_hex(16), secrets.token_hex(16)
        for name, text in {
            "redis_auth.conf": f"requirepass {password}",
            "redis_console.conf": f"user console on {CONSOLE_RIGHTS} >{console}",
            "console_redis_url": f"redis://console:{console}@redis:6379/0",
            "console_login": ":".join(self.console_login),
            "redis_url": f"redis://:{password}@redis:6379/0",
            "hash_key": secrets.token_hex(32),
            "flower_login": ":".join(self.flower_login),
            "redcap/asthma": ASTHMA_TOKEN,
            "redcap/sleep": SLEEP_TOKEN,
            "twilio/main": AUTH_TOKEN,
        }.items():
            (self.deployment / "secrets" / name).write_text(f"{text}\n")

    @property
    def env_file(self) -> Path:
        """`.env`, which names the deployment."""
        return self.root / ".env"

    @property
    def env(self) -> dict[str, str]:
        """The environment of docker compose; everything else is in `.env`."""
        return without_a_deployment() | self.extra

    # -- what an operator types

    def run(
        self, *command: str, check: bool = True, seconds: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone; a failure shows what it said."""
        return said(*command, cwd=self.root, env=self.env, check=check, seconds=seconds)

    def compose(self, *args: str, check: bool = True) -> str:
        """`docker compose ARGS`; answers what it printed."""
        return self.run("docker", "compose", *args, check=check).stdout

    def up(self) -> None:
        """Bring up the platform and the simulators, built and healthy. On failure the logs tell why."""
        try:
            self.run("make", "up")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--tail', '50', check=False)}") from None

    def optout(self, *args: str) -> str:
        """`optout ARGS` in a worker's container."""
        return self.compose("exec", "-T", "worker", "optout", *args)

    def events(self) -> dict[str, str]:
        """The ledger: event id and project to state."""
        told = json.loads(self.optout("events", "--json"))
        return {f"{event['event_id']} {event['project']}": event["state"] for event in told}

    def containers(self, service: str) -> list[dict[str, Any]]:
        """`docker inspect` of a service's running containers."""
        ids = self.compose("ps", "--quiet", service).split()
        described: list[dict[str, Any]] = (
            json.loads(self.run("docker", "inspect", *ids).stdout) if ids else []
        )
        return described

    def remove(self) -> None:
        """Containers, networks, volume and images of this run."""
        self.compose(
            "--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "20", check=False
        )
        remove_images(self.project)

    @contextmanager
    def with_files(self, *files: str) -> Iterator[None]:
        """With overlays for a while."""
        before = self.env_file.read_text()
        named = ":".join([*files, SIMULATORS])
        self.env_file.write_text(f"{before}COMPOSE_FILE={named}\n")
        try:
            yield
        finally:
            self.env_file.write_text(before)

    # -- the world outside

    def enrol(self, count: int) -> list[str]:
        """New participants of the asthma study; answers their record ids."""
        records = [str(self.next_record + offset) for offset in range(count)]
        self.next_record += count
        for record in records:
            order = {
                "project": ASTHMA,
                "record": record,
                "values": {"mobile": fictional_phone_as_typed(int(record))},
            }
            requests.post(f"{self.redcap_url}/_sim/records", json=order, timeout=10).raise_for_status()
        return records

    def text(self, record: str, body: str = "STOP") -> Texted:
        """The record's participant texts; Twilio tries again as its documentation says."""
        return self.twilio.text(
            from_=fictional_phone(int(record)), body=body, service=SERVICE_SID, advanced_opt_out=True
        )

    def text_start(self, record: str) -> None:
        """The participant texts START, through the Twilio that the worker then asks for the time of this message."""
        order = {"from": fictional_phone(int(record)), "body": "START", "service": SERVICE_SID}
        url = f"http://127.0.0.1:{self.ports['DEMO_TWILIO']}/_sim/text"
        answer = requests.post(url, json=order | {"advanced_opt_out": True}, timeout=30)
        assert (answer.status_code, answer.json()["status"]) == (200, 200), answer.text

    def opted_out(self) -> set[str]:
        """The records whose opt-out field is filled."""
        rows = requests.get(f"{self.redcap_url}/_sim/records", params={"project": ASTHMA}, timeout=30).json()
        return {row["record"] for row in rows if row["values"].get("sms_opt_out_at")}

    def expect_opted_out(self, records: Sequence[str], *, seconds: float = 150) -> None:
        """Wait until all of them show it: at once, or when sweep found what a fault left behind."""
        wanted = set(records)
        try:
            wait_until(lambda: wanted <= self.opted_out(), seconds=seconds, what="all are opted out")
        except TimeoutError:
            missing = sorted(wanted - self.opted_out())
            raise AssertionError(
                f"{len(missing)} of {len(wanted)} are missing: {missing[:9]}\n"
                + self.compose("logs", "--tail", "60", "worker", "web", check=False)
            ) from None

    @contextmanager
    def burst(self, count: int) -> Iterator[list[str]]:
        """Many participants text STOP while the block runs; afterwards every one was answered 200, and is saved."""
        records = self.enrol(count)
        with ThreadPoolExecutor(8) as pool:
            sent: list[Future[Texted]] = [pool.submit(self.text, record) for record in records]
            yield records
            answers = [future.result().status for future in sent]
        assert answers == [200] * count
        self.expect_opted_out(records)

    def unfinished(self) -> float:
        """How many events have not ended, in all projects, as monitoring sees it."""
        lines = requests.get(f"{self.web_url}/metrics", timeout=10).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("optout_unfinished_events{"))
