"""Lua scripts whose keys and arguments are given by name.

A script begins with `local event, due = unpack(KEYS)` and `local project, now_ms = arguments(2)`: its names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

from shared.redis_client import RedisClient

SCRIPTS = Path(__file__).parent / "scripts"

Argument = str | int | float
Value = TypeVar("Value")

_COMMENT = re.compile(r"\s*--.*")
_KEYS = re.compile(r"^local ([\w\s,]+?)\s*= unpack\(KEYS\)$", re.MULTILINE)
_ARGUMENTS = re.compile(r"^(?:local ([\w\s,]+?)\s*= )?arguments\((\d+)\)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a script with its prelude, and the names in it."""

    text: str
    key_names: tuple[str, ...]
    argument_names: tuple[str, ...]

    def keys(self, named: Mapping[str, str]) -> list[str]:
        """Return keys in the script's order. Raises KeyError if a name is missing, ValueError if one is unknown."""
        return _in_order(self.key_names, named)

    def arguments(self, named: Mapping[str, Argument]) -> list[Argument]:
        """Return arguments in the script's order, with the same errors."""
        return _in_order(self.argument_names, named)


class LuaScript:
    """One script, for one connection."""

    def __init__(self, redis: RedisClient, name: str, *, folder: Path = SCRIPTS) -> None:
        self.source = load_source(folder / f"{name}.lua")
        self._redis = redis

    @cached_property
    def _registered(self) -> Any:
        return self._redis.register_script(self.source.text)

    @cached_property
    def sha(self) -> str:
        """By which the server knows the script once it has received its text."""
        return str(self._registered.sha)

    def __call__(
        self,
        *,
        keys: Mapping[str, str],
        args: Mapping[str, Argument] | None = None,
        rest: Iterable[Argument] = (),
        client: Any = None,
    ) -> Any:
        """Run it, or add it to the pipeline that is given as `client`. Raises redis.RedisError."""
        values = [*self.source.arguments(args or {}), *rest]
        return self._registered(keys=self.source.keys(keys), args=values, client=client)


@cache
def load_source(path: Path) -> Source:
    """Read a script, without comments and indents, as a transaction may send it; lines keep their numbers."""
    text = _shortened(path.read_text())
    keys = _KEYS.search(text)
    arguments = _ARGUMENTS.search(text)
    if keys is None or arguments is None:
        raise ValueError(f"{path.name}: does not name its keys and arguments")
    names = _names(arguments[1] or "")
    if len(names) != int(arguments[2]):
        raise ValueError(f"{path.name}: names {len(names)} arguments, not {arguments[2]}")
    prelude = _shortened((SCRIPTS / "prelude.lua").read_text())
    return Source(prelude + text, _names(keys[1]), names)


def _shortened(text: str) -> str:
    return "\n".join(_COMMENT.sub("", line).strip() for line in text.split("\n"))


def _names(declared: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", declared))


def _in_order(names: tuple[str, ...], named: Mapping[str, Value]) -> list[Value]:
    if len(named) != len(names):
        unknown = named.keys() - set(names)
        missing = set(names) - named.keys()
        raise ValueError(f"a script has no {sorted(unknown)}, and needs {sorted(missing)}")
    return list(map(named.__getitem__, names))
