"""Files stay within 500 lines and functions within 80, unless a reason stands beside them.

The reason is a comment `# long: why`: of a function in its signature, of a file above its first line of code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("hfadapt", "tests", "benchmarks", "recipes")
FILE_LINES, FUNCTION_LINES = 500, 80
REASON = re.compile(r"#.*\blong: \w+")


def paths() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def too_long(text: str) -> Iterator[tuple[str, int]]:
    """(function or nothing for the file, lines) of what is too long without a reason, nested functions included."""
    lines, tree = text.splitlines(), ast.parse(text)
    code = [node.lineno for node in tree.body if not isinstance(node, ast.Expr)]
    if len(lines) > FILE_LINES and not any(map(REASON.search, lines[: code[0] - 1 if code else None])):
        yield "", len(lines)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
            count = node.end_lineno - node.lineno + 1
            if count > FUNCTION_LINES and not any(map(REASON.search, lines[node.lineno - 1 : node.body[0].lineno - 1])):
                yield node.name, count


def test_files_and_functions_are_short_or_say_why() -> None:
    places = {
        f"{path.relative_to(ROOT).as_posix()}{': ' * bool(name)}{name}": lines
        for path in paths()
        for name, lines in too_long(path.read_text(encoding="utf-8"))
    }
    assert len(paths()) > 200
    assert not places


def function(lines: int, head: str = "def f():") -> str:
    return head + "\n" + "    x = 1\n" * (lines - 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (function(80), []),
        (function(81), [("f", 81)]),
        (function(81, "async def f():"), [("f", 81)]),
        (function(81, "def f():  # long: one table"), []),
        (function(81, "def f():  # noqa: PLR0913 - long: one table"), []),
        (function(81, "def f():  # long:"), [("f", 81)]),
        (function(81).replace("x = 1", "x = 1  # long: not in the signature"), [("f", 81)]),
        ("class A:\n    def f(self):\n" + "        x = 1\n" * 80, [("f", 81)]),
        ("def f():\n    def g():\n" + "        x = 1\n" * 79, [("f", 81)]),
        ("x = 1\n" * 500, []),
        ("x = 1\n" * 501, [("", 501)]),
        ('"""A table."""\n\n# long: one table\n' + "x = 1\n" * 501, []),
        ('"""A table."""\n\nx = 1\n# long: one table\n' + "x = 1\n" * 501, [("", 505)]),
    ],
)
def test_what_is_too_long_is_seen(text: str, found: list[tuple[str, int]]) -> None:
    assert list(too_long(text)) == found
