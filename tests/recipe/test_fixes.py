"""Fixes of the fault table that say exactly what to write are followed, and work."""

from __future__ import annotations

import re
from pathlib import Path

from recipe_faults import FAULTS
from test_reading import folder, problems_of, write  # noqa: F401

from hfadapt.core.errors import Problem, RecipeError
from hfadapt.recipe.reading import load_recipe

VALUE = r"(?:\{[^{}]*\}|\[[^\[\]]*\]|'[^']*'|[^,{}\n]*)"
"""As it stands behind `key: ` in a line of the table."""


def followed(text: str, line: int, problem: Problem) -> tuple[str, list[str]] | None:
    """The recipe, and settings for the command line, after a fix that says exactly what to write; None for others."""
    fix, lines = str(problem.fix), text.splitlines()
    at, got = [*lines, ""][line - 1], str(problem.got).strip("'")

    def put(pattern: str, new: str) -> tuple[str, list[str]]:
        changed, count = re.subn(pattern, lambda _: new, at, count=1)
        assert count, f"{fix}: nothing to change in {at}"
        return "\n".join([*lines[: line - 1], changed, *lines[line:]]) + "\n", []

    if " Or: " in fix or "..." in fix or "`, or `" in fix:
        return None  # the user has to choose
    if found := re.match(r"did you mean '([^']+)'\?", fix):
        return put(re.escape(got), found[1])
    if found := re.match(r"did you mean `([^`.]+)`\?", fix):
        return put(re.escape(got.partition(":")[0]), found[1])
    if found := re.match(r"add `([^`]+)`", fix):
        return f"{text}{found[1]}\n", []
    if found := re.match(r"(?:write|put it in quotes:) `(([\w.]+): [^`]+)`", fix):
        # `source` may have to become `sources`.
        return put(rf"\b{found[2].removesuffix('s')}s?: *{VALUE}|(?<=\b){found[2]}: *$", found[1])
    if found := re.match(r"set ([\w.]+): ([\w-]+)", fix):
        return text, [f"{found[1]}={found[2]}"]
    if found := re.match(r"delete `([\w.]+)`", fix):
        return put(rf",? *\b{found[1].rpartition('.')[2]}: *{VALUE}", "")
    if found := re.match(r"correct it, or leave `([\w.]+)` out", fix):
        return put(rf"\b{found[1]}: *{VALUE}", "")
    if found := re.match(r"(?:call it '|rename (?:one|it), such as )([\w.-]+)", fix):
        return put(re.escape(at.strip().partition(":")[0]), found[1])
    return None


def test_every_fix_that_says_what_to_write_works(tmp_path: Path) -> None:
    """Followed to the letter, it does away with the problem and makes no other at that place."""
    worked, wrong = 0, []
    for name, (text, line, _) in FAULTS.items():
        if isinstance(text, bytes):
            continue
        [problem] = problems_of(write(tmp_path, text))
        if (after := followed(text, line, problem)) is None:
            continue
        try:
            load_recipe(write(tmp_path, after[0]), after[1])
            worked += 1
        except RecipeError as error:
            wrong.append(f"{name}: {problem.fix}\n{after}\n{error}")
    assert not wrong, "\n\n".join(wrong)
    assert worked > 60
