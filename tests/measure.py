"""`make measure`: how large and how plain the code is, in one table; counted the same way each time.

Code lines are lines with a token that is neither comment nor docstring. Complexity is McCabe's, by decision points of
the syntax tree: 1, and 1 more for each branch, loop, handler, condition, comprehension and boolean operator.
"""

from __future__ import annotations

import ast
import io
import statistics
import subprocess
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("shared", "web", "worker")
_SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.IfExp,
    ast.ExceptHandler,
    ast.comprehension,
    ast.match_case,
    ast.With,
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(*folders: str) -> list[Path]:
    """The tracked Python files of folders."""
    names = subprocess.run(
        ["git", "ls-files", *(f"{folder}/*.py" for folder in folders)],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    return [ROOT / name for name in names]


def docstring_lines(tree: ast.AST) -> set[int]:
    """The lines of all docstrings."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def code_lines(path: Path) -> int:
    """Lines with code."""
    text = path.read_text()
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _SKIPPED:
            used.update(range(token.start[0], token.end[0] + 1))
    return len(used - docstring_lines(ast.parse(text)))


def functions(paths: Iterable[Path]) -> Iterator[Function]:
    """All functions and methods."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node


def complexity(function: Function) -> int:
    """McCabe's number."""
    found = 1
    for node in ast.walk(function):
        found += isinstance(node, _BRANCHES) and not isinstance(node, ast.With)
        found += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        found += len(node.ifs) if isinstance(node, ast.comprehension) else 0
    return found


def main() -> None:
    """Print the table."""
    lines = {package: sum(map(code_lines, files(package))) for package in PACKAGES}
    product = files(*PACKAGES)
    lengths = sorted((each.end_lineno or each.lineno) - each.lineno + 1 for each in functions(product))
    points = [complexity(each) for each in functions(product)]
    tests = sum(map(code_lines, files("tests")))
    rows = Counter({f"code lines, {package}": number for package, number in lines.items()})
    for name, value in rows.items():
        print(f"{name:32} {value:>8,}")
    print(f"{'code lines, all':32} {sum(lines.values()):>8,}")
    print(f"{'files':32} {len(product):>8,}")
    print(f"{'functions':32} {len(lengths):>8,}")
    print(f"{'function length, median':32} {statistics.median(lengths):>8.0f}")
    print(f"{'function length, p90':32} {lengths[int(len(lengths) * 0.9)]:>8}")
    print(f"{'function length, longest':32} {lengths[-1]:>8}")
    print(f"{'functions over 50 lines':32} {sum(length > 50 for length in lengths):>8}")
    print(f"{'complexity, mean':32} {statistics.mean(points):>8.2f}")
    print(f"{'complexity, highest':32} {max(points):>8}")
    print(f"{'test lines per product line':32} {tests / sum(lines.values()):>8.1f}")


if __name__ == "__main__":
    main()
