"""The configuration of a running process: it follows the files, and keeps the last valid one."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from shared.config import Config, broker_url, config_path, load_config, redis_url
from shared.config.certificates import CA_FILE
from shared.config.files import include_patterns, included_files
from shared.config.secrets import Secret
from shared.errors import ConfigError

CHECK_EVERY_SECONDS = 5.0
# A change counts when the files have stayed the same for this long: an editor or a copy may not be finished.
SETTLE_SECONDS = 0.5
MOST_SETTLINGS = 20
# An invalid file is read again after this long even if it looks the same, as a missing folder may be there now.
RETRY_SECONDS = 30.0

T = TypeVar("T")
_State = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the files are not in force. `text` has a "key: problem, fix" line for each problem of all files."""

    file: str
    text: str


class LiveConfiguration(Generic[T]):
    """What `build` makes of the configuration, made again after each valid change.

    `build` receives the configuration and what it made before (None at the start), and may raise ConfigError.
    `last_valid` returns a configuration for a start with invalid files. Raises ConfigError if there is none.
    """

    def __init__(
        self,
        build: Callable[[Config, T | None], T],
        *,
        last_valid: Callable[[], Config | None] = lambda: None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._build = build
        self._settle_seconds = settle_seconds
        self._main: tuple[str, ...] = ()
        self._patterns: list[str] = []
        self.problem: Problem | None = None
        self.needs_restart: tuple[str, ...] = ()
        self._files = self._files_state()
        self._checked = self._tried = time.monotonic()
        try:
            self.config = load_config()
            self.value = build(self.config, None)
        except ConfigError as error:
            self._start_with(last_valid(), error)
        self._follow_secrets()
        self._fixed = dict(_fixed_settings(self.config))

    def _start_with(self, config: Config | None, error: ConfigError) -> None:
        if config is None:
            raise error
        self.config, self.value = config, self._build(config, None)
        self.problem = _problem(error)

    def current(self) -> T:
        """The value, for a process without a thread that refreshes it: checks the files at most every 5 seconds."""
        if time.monotonic() - self._checked >= CHECK_EVERY_SECONDS:
            self.refresh()
        return self.value

    def refresh(self) -> None:
        """Take a valid change. An invalid one leaves everything as it is, but for `problem`."""
        self._checked = time.monotonic()
        state = self._settled_state()
        retry = self.problem is not None and self._checked - self._tried >= RETRY_SECONDS
        if state == (self._files, self._secrets) and not retry:
            return
        self._tried = self._checked
        self._try_to_load()
        self._files = state[0]
        self._follow_secrets()
        self.needs_restart = tuple(self._changed_settings())

    def _try_to_load(self) -> None:
        try:
            config = load_config()
            self.value = self._build(config, self.value)
        except ConfigError as error:
            self.problem = _problem(error)
        except Exception as error:  # noqa: BLE001  its text may hold anything, and the process goes on
            self.problem = Problem(str(config_path()), f"configuration: {type(error).__name__}")
        else:
            self.config, self.problem = config, None

    def _changed_settings(self) -> Iterator[str]:
        for name, value in _fixed_settings(self.config):
            if self._fixed.get(name, value) != value:
                yield name

    def _settled_state(self) -> tuple[_State, _State]:
        """The state of the files after they have stopped changing, or have changed many times."""
        state = self._state()
        for _ in range(MOST_SETTLINGS):
            if state == (self._files, self._secrets):
                break
            time.sleep(self._settle_seconds)
            before, state = state, self._state()
            if state == before:
                break
        return state

    def _state(self) -> tuple[_State, _State]:
        return self._files_state(), tuple(map(_stat, self._secret_paths))

    def _follow_secrets(self) -> None:
        self._secret_paths = _secret_paths(self.config)
        self._secrets = tuple(map(_stat, self._secret_paths))

    def _files_state(self) -> _State:
        """What differs after a file of the configuration has been changed, replaced, added or removed."""
        path = config_path()
        if (main := _stat(path)) != self._main:
            self._main, self._patterns = main, include_patterns(path) or self._patterns
        included = included_files(path, {"include": self._patterns})
        return (main, *map(_stat, included))


def _problem(error: ConfigError) -> Problem:
    return Problem(error.source.removeprefix("file:"), "\n".join(error.problems))


def _stat(path: Path) -> tuple[str, ...]:
    try:
        found = path.stat()
    except OSError as error:
        return (str(path), str(error.errno))
    return (str(path), str(found.st_ino), str(found.st_ctime_ns), str(found.st_mtime_ns), str(found.st_size))


def _secret_paths(config: Config) -> list[Path]:
    """The files with secrets: a process reads them with the configuration, and again when one of them changes."""
    names = (*(f"{name}_FILE" for name in ("OPTOUT_REDIS_URL", "OPTOUT_BROKER_URL")), CA_FILE)
    settings = (os.environ.get(name) for name in names)
    paths = [secret.path for secret in _secrets(config.model_dump()) if secret.path]
    return [*paths, *(Path(path) for path in settings if path)]


def _secrets(value: Any) -> Iterator[Secret]:
    match value:
        case Secret():
            yield value
        case Mapping():
            for each in value.values():
                yield from _secrets(each)
        case list():
            for each in value:
                yield from _secrets(each)


def _fixed_settings(config: Config) -> Iterator[tuple[str, str]]:
    """What connections and hashes are made with, and a running process cannot change; without what is missing."""
    for name, read in (
        ("OPTOUT_REDIS_URL", redis_url),
        ("OPTOUT_BROKER_URL", broker_url),
        ("hash_key", config.hash_key.resolve),
    ):
        with suppress(ConfigError):
            yield name, read()
