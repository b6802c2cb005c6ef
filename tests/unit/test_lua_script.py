"""Lua scripts: their keys and arguments by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shared.ledger.lua_script import SCRIPTS, LuaScript, load_source
from tests.processes import ROOT

FILES = sorted(
    path for folder in (SCRIPTS, ROOT / "worker/redcap/scripts") for path in folder.glob("*.lua")
    if path.stem != "prelude"
)  # fmt: skip


def script(folder: Path, text: str) -> Path:
    path = folder / "example.lua"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestEveryScript:
    def test_it_uses_each_key_and_argument_by_its_name(self, path: Path) -> None:
        source = load_source(path)
        used = re.findall(r"\w+", source.text)
        names = [*source.key_names, *source.argument_names]
        assert [name for name in names if used.count(name) < 2] == []
        assert len(names) == len(set(names))

    def test_it_reads_nothing_by_position(self, path: Path) -> None:
        assert re.findall(r"(?:KEYS|ARGV)\[", path.read_text()) == []


class TestNames:
    EXAMPLE = """-- Adds.
local total,  -- a string
  log
  = unpack(KEYS)
local number, unit = arguments(2)

redis.call('RPUSH', log, unit)
for each in rest(1) do redis.call('RPUSH', log, each) end
return redis.call('INCRBY', total, number)
"""

    def test_values_reach_the_script_in_any_order(self, redis: Any, tmp_path: Path) -> None:
        script(tmp_path, self.EXAMPLE)
        add = LuaScript(redis, "example", folder=tmp_path)
        keys = {"log": "l", "total": "t"}
        assert add(keys=keys, args={"unit": "kg", "number": 3}, rest=["a", "b"]) == 3
        assert redis.lrange("l", 0, -1) == ["kg", "a", "b"]

    @pytest.mark.parametrize("args", [{}, {"number": 3}, {"number": 3, "unit": "kg", "colour": "red"}])
    def test_a_missing_or_unknown_name_is_an_error(
        self, redis: Any, tmp_path: Path, args: dict[str, str | int]
    ) -> None:
        script(tmp_path, self.EXAMPLE)
        add = LuaScript(redis, "example", folder=tmp_path)
        with pytest.raises(ValueError, match=r"unit|colour"):
            add(keys={"log": "l", "total": "t"}, args=args)
        assert redis.keys() == []

    def test_a_wrong_name_is_an_error(self, redis: Any, tmp_path: Path) -> None:
        script(tmp_path, self.EXAMPLE)
        add = LuaScript(redis, "example", folder=tmp_path)
        with pytest.raises(KeyError, match="unit"):
            add(keys={"log": "l", "total": "t"}, args={"number": 3, "units": "kg"})

    @pytest.mark.parametrize(
        "text", ["return 1", "local a = unpack(KEYS)", "local a = unpack(KEYS)\nlocal b, c = arguments(3)"]
    )
    def test_a_script_without_names_is_an_error(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(ValueError, match=r"example\.lua"):
            load_source(script(tmp_path, text))

    def test_lines_keep_their_numbers(self, tmp_path: Path) -> None:
        source = load_source(script(tmp_path, self.EXAMPLE))
        prelude = (SCRIPTS / "prelude.lua").read_text()
        assert source.text.count("\n") == prelude.count("\n") + self.EXAMPLE.count("\n")
        assert "--" not in source.text
