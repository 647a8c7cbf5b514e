"""A name of a task, method, quant, format … is compared in its own file alone: others ask what it can do."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest

from hfadapt.core import registry

COLUMNS_TOO = {"schemas": ("form", "schema"), "modalities": ("modality",)}
"""Kinds whose names are names of columns, too, or plain words: what a comparison with one of the kind speaks of."""

OTHER_THINGS = {
    ("none", "label_kind"): "rows without labels",
    ("tokens", "label_kind"): "a label for each token",
    ("none", "kind == 'none'"): "lm-eval's word for no filter",
    ("none", "_TIES"): "what people write where no answer is the better one",
    ("preference", "_WINNER"): "a name of columns",
    ("adapter", "RELATIONS"): "the Hub's word for a relation to the base",
    ("eva", "HARMLESS_STARTS"): "peft's word for a start",
    ("lora", "OTHER_TOOLS"): "what users write where another word is meant",
    ("lora", "kind == 'lora'"): "a word of LLaMA-Factory",
    ("full", "kind == 'full'"): "a word of LLaMA-Factory",
    ("none", "names == ['none']"): "the word of transformers for no tracker",
    ("adapter", "TOGETHER"): "a field of axolotl",
    ("pretrain", "str(kind).partition"): "a form of axolotl's data",
    ("prepare", "__all__"): "a function",
    ("evaluate", "PACKAGES"): "a package",
    ("evaluate", "name not in ('evaluate', 'student')"): "a section of the recipe",
    ("student", "name not in ('evaluate', 'student')"): "a section of the recipe",
    ("train", "keys[:depth + 1]"): "a section of the recipe",
    ("train", "_WEIGHTS"): "a key of messages",
    ("train", "COMMON_NAMES"): "a word that is no secret",
    **{
        ("train", part): "a split of the data"
        for part in ("SPLITS", "PRIORITY", "SPLIT_NAMES", "row.split", "splits.values()", "part == ", ".lengths")
    },
    **{
        (phase, part): "a phase whose memory is predicted and measured"
        for phase in ("train", "evaluate")
        for part in ("phase", "PHASES", "CPU_CONSTANT_BYTES", "CPU_HEAP_RATIO")
    },
}
"""Words that are also other things: (word, what stands in the comparison) with the reason."""


def words(node: ast.expr | None, held: dict[str, ast.expr]) -> Iterator[tuple[int, str]]:
    """Strings that a value is compared with: a literal, a collection of literals, or a module's name for either."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        for each in node.elts:
            yield from words(each, held)
    elif isinstance(node, ast.Dict):
        for key in node.keys:
            yield from words(key, held)
    elif isinstance(node, ast.Starred):
        yield from words(node.value, held)
    elif isinstance(node, ast.BinOp):
        yield from (*words(node.left, held), *words(node.right, held))
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset", "tuple", "list"):
            for each in node.args:
                yield from words(each, held)
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "split":
            for line, text in words(node.func.value, held):
                yield from ((line, each) for each in text.split())
    elif isinstance(node, ast.Name) and node.id in held:
        others = {name: value for name, value in held.items() if name != node.id}
        yield from words(held[node.id], others)


def compared(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, string, code) of every string that something is compared with, or that is in a module's own table."""
    held: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            held[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            held[node.target.id] = node.value
    for name, value in held.items():
        if isinstance(value, (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Call, ast.BinOp)):
            yield from ((line, word, name) for line, word in words(value, {}))
    for part in ast.walk(tree):
        if isinstance(part, ast.Compare):
            for side in (part.left, *part.comparators):
                yield from ((line, word, ast.unparse(part)) for line, word in words(side, held))
        elif isinstance(part, ast.MatchValue):
            yield from ((line, word, ast.unparse(part)) for line, word in words(part.value, held))


def in_template(text: str) -> Iterator[tuple[int, str, str]]:
    """The same of a Jinja template."""
    for node in jinja2.Environment().parse(text).find_all(jinja2.nodes.Compare):
        for const in node.find_all(jinja2.nodes.Const):
            if isinstance(const.value, str):
                yield const.lineno, const.value, text.splitlines()[const.lineno - 1].strip()


@functools.cache
def found(path: Path) -> list[tuple[int, str, str]]:
    text = path.read_text(encoding="utf-8")
    return list(compared(ast.parse(text)) if path.suffix == ".py" else in_template(text))


def files() -> list[Path]:
    return sorted([*registry.PACKAGE.rglob("*.py"), *registry.PACKAGE.rglob("*.j2")])


def excused(word: str, code: str) -> bool:
    return any(word == name and part in code for name, part in OTHER_THINGS)


def is_own(path: Path, kind: str, name: str) -> bool:
    """Whether a file belongs to the thing of that name."""
    inside = path.relative_to(registry.PACKAGE).parts
    return len(inside) > 1 and inside[0] == kind and Path(inside[1]).stem.replace("_", "-") == name


@pytest.mark.parametrize("kind", registry.KINDS)
def test_names_are_compared_in_their_own_file_alone(kind):
    names, places = registry.names(kind), set()
    for path in files():
        short = path.relative_to(registry.PACKAGE).as_posix()
        for line, word, code in found(path):
            meant = kind not in COLUMNS_TOO or (
                any(part in code for part in COLUMNS_TOO[kind]) and ".parts" not in code
            )
            if word in names and meant and not is_own(path, kind, word) and not excused(word, code):
                places.add(f"{short}:{line} {word}")
    assert not places, "\n".join(sorted(places))


def test_every_exception_is_still_needed():
    seen = [(word, code) for path in files() for _, word, code in found(path)]
    assert [each for each in OTHER_THINGS if not any(each[0] == word and each[1] in code for word, code in seen)] == []


@pytest.mark.parametrize(
    "code",
    [
        "x == 'lora'",
        "'lora' != x",
        "x in ('lora', 'dora')",
        "x not in {'lora'}",
        "x in ['pissa', *('lora',)]",
        "x in frozenset('lora dora'.split())",
        "ABLE = ('lora',)\nx in ABLE",
        "ABLE: tuple[str, ...] = ('lora',)",
        "ABLE = frozenset({'lora'})",
        "RATIO = {'lora': 2}",
        "match x:\n    case 'lora':\n        pass",
        "match x:\n    case 'dora' | 'lora':\n        pass",
    ],
)
def test_a_comparison_is_seen(code):
    assert "lora" in {word for _, word, _ in compared(ast.parse(code))}


def test_a_comparison_in_a_template_is_seen():
    assert "lora" in {word for _, word, _ in in_template("{% if method == 'lora' %}{{ method }}{% endif %}")}


@pytest.mark.parametrize("code", ["use('lora')", "x = 'lora'", "{'method': 'lora'}", "f(method='lora')"])
def test_a_name_that_is_only_used_is_none(code):
    assert "lora" not in {word for _, word, _ in compared(ast.parse(code))}
