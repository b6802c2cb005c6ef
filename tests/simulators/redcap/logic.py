"""filterLogic: comparisons of fields with `and`, `or` and brackets, as in REDCap's branching logic."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.simulators.redcap.answers import ApiError
from tests.simulators.redcap.project import Project, checkbox_column

Lookup = Callable[[str | None, str], str]  # event (None: that of the row), column -> value
Test = Callable[[Lookup], bool]
Operand = Callable[[Lookup], str]

_TOKEN = re.compile(
    r"""\s*(?:(?P<field>\[[^\]]*\])|(?P<text>'[^']*'|"[^"]*")|(?P<number>-?\d+(?:\.\d+)?)"""
    r"""|(?P<operator><>|!=|<=|>=|=|<|>)|(?P<bracket>[()])|(?P<word>\w+))""",
    re.VERBOSE,
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def parse_logic(text: str, project: Project) -> Test:
    """Turns the logic into a test of one row; what it cannot read is an error, never "all rows"."""
    parser = _Parser(list(_tokens(text)), project)
    test = parser.either()
    if parser.kind != "end":
        raise _bad_logic()
    return test


def _bad_logic() -> ApiError:
    return ApiError(400, 'The value of the parameter "filterLogic" is not valid')


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise _bad_logic()
        yield str(match.lastgroup), match.group(match.lastgroup or 0)
        position = match.end()


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]], project: Project) -> None:
        self._tokens = [*tokens, ("end", "")]
        self._project = project

    @property
    def kind(self) -> str:
        return self._tokens[0][0]

    def _next(self) -> str:
        return self._tokens.pop(0)[1]

    def _takes(self, word: str) -> bool:
        found = self._tokens[0][1].lower() == word and self.kind in {"word", "bracket"}
        if found:
            self._next()
        return found

    def either(self) -> Test:
        tests = [self._both()]
        while self._takes("or"):
            tests.append(self._both())
        return lambda lookup: any(test(lookup) for test in tests)

    def _both(self) -> Test:
        tests = [self._single()]
        while self._takes("and"):
            tests.append(self._single())
        return lambda lookup: all(test(lookup) for test in tests)

    def _single(self) -> Test:
        if self._takes("("):
            test = self.either()
            if not self._takes(")"):
                raise _bad_logic()
            return test
        left = self._operand()
        if self.kind != "operator":
            raise _bad_logic()
        compare = _COMPARE[self._next()]
        right = self._operand()
        return lambda lookup: _compare(compare, left(lookup), right(lookup))

    def _operand(self) -> Operand:
        if self.kind == "field":
            return self._field()
        if self.kind not in {"text", "number"}:
            raise _bad_logic()
        value = self._next().strip("'\"")
        return lambda lookup: value

    def _field(self) -> Operand:
        event: str | None = None
        name = self._next()[1:-1]
        if self.kind == "field":
            event, name = name, self._next()[1:-1]
        column = re.sub(r"^(\w+)\(([^)]*)\)$", lambda found: checkbox_column(*found.groups()), name)
        if column not in self._project.columns:
            raise _bad_logic()
        return lambda lookup: lookup(event, column)


def _compare(compare: Callable[[Any, Any], bool], left: str, right: str) -> bool:
    try:
        return compare(float(left), float(right))
    except ValueError:
        return compare(left, right)
