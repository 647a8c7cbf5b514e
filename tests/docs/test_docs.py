"""README.md and docs/: links lead somewhere, code is what hfadapt takes, and what is generated is complete."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pages import NOT_RUN, OUTPUT, PAGES, ROOT, Block, blocks, not_run, words
from tiny import labelled, write_rows

import hfadapt
from hfadapt.cli.app import app
from hfadapt.core import registry
from hfadapt.recipe.places import fields
from hfadapt.recipe.reading import load_recipe

sys.path.insert(0, str(ROOT / "docs"))
import make_site as site

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
BASES: tuple[dict[str, Any], ...] = (
    {"model": "sample:minilm-l6", "task": "text-classification", "domains": {"tweets": {"source": "rows.jsonl"}}},
    {"model": "sample:smollm2-135m", "task": "causal-lm", "domains": {"tweets": {"source": "rows.jsonl"}}},
    {"model": "sample:minilm-l6", "task": "embedding", "domains": {"tweets": {"source": "rows.jsonl"}}},
    {"model": "sample:dinov2-small", "task": "image-classification", "domains": {"mnist": "sample:digits/mnist"}},
)
"""Recipes to which a block with a few settings can be added."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    site.build(out)
    return out


def anchors(text: str) -> set[str]:
    """What headings are called in links, as Markdown and GitHub do."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    for match in LINK.finditer(re.sub(r"`[^`\n]*`", "", text)):
        target, _, anchor = (match[1] or match[2]).partition("#")
        if target.startswith(("http:", "https:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{page.name}: {target}#{anchor}"


def test_every_page_has_a_place_in_the_site(built: Path):
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = set(re.findall(r"[\w/-]+\.md", json.dumps(nav)))
    assert named == {path.relative_to(built).as_posix() for path in built.rglob("*.md")}


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[2:] if f"docs/{page.name}" not in readme and page.name != "recipes.md"] == []


def test_the_reference_is_complete(built: Path):
    text = (built / "reference/recipe.md").read_text()
    assert [place for place in fields() if f"### `{place}`\n" not in text] == []
    commands = (built / "reference/commands.md").read_text()
    assert [name for name in typer.main.get_command(app).commands if f"## hfadapt {name}" not in commands] == []
    python = (built / "reference/python.md").read_text()
    assert [name for name in hfadapt._HOME if f"## {name}\n" not in python and f"## class {name}\n" not in python] == []


def test_generated_parts_are_put_in(built: Path):
    pages = {path.name: path.read_text() for path in built.rglob("*.md")}
    assert [name for name, text in pages.items() if site.PART.search(text)] == []
    seconds = json.loads((ROOT / "benchmarks/frozen_cache.json").read_text())
    assert seconds
    assert site.table("frozen_cache") in pages["choosing.md"]
    assert site.table("frozen_cache") in pages["training.md"]
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert f"## {path.stem}\n" in pages["recipes.md"]
    for name in registry.names("adapters"):
        assert f"| {name} |" in pages["choosing.md"]


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.name)
def test_a_block_is_run_or_says_why_not(block: Block):
    assert block.reason is None or block.reason.strip()
    assert block.reason is not None or block.language in (*OUTPUT, "yaml", "python", "console"), block.language


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.name)
def test_yaml_is_a_recipe(block: Block, tmp_path: Path):
    for name in ("rows.jsonl", "more.txt", "texts.txt", "tickets.csv"):
        if name.endswith("jsonl"):
            write_rows(tmp_path / name, labelled(20))
        else:
            (tmp_path / name).write_text("body,mood\nWords of it,good\nOther words,bad\n")
    said = yaml.safe_load(block.text)
    faults = []
    for base in BASES:
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**base, **said}))
        try:
            load_recipe(tmp_path / "r.yaml")
        except hfadapt.HfadaptError as error:
            faults.append(str(error))
        else:
            return
    pytest.fail("\n".join(faults))


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.name)
def test_python_has_the_names_that_it_imports(block: Block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def parse(arguments: list[str]) -> None:
    """Reads a command line as hfadapt does, and does nothing."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("hfadapt", list(arguments))
    while hasattr(command, "commands"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(
    ("block", "command"),
    [
        pytest.param(block, command, id=f"{block.name} {command[:40]}")
        for block in blocks("console")
        for command in block.commands()
    ],
)
def test_a_command_is_one(block: Block, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    first, *rest = words(command)
    if "hfadapt" in (first, *rest):
        arguments = [first, *rest][[first, *rest].index("hfadapt") + 1 :]
        parse(arguments)
        path = ROOT / next((word for word in arguments if word.startswith("recipes/")), "none")
        if path.is_file():
            shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
            load_recipe(path, [word for word in rest if re.match(r"[\w.]+=", word)])
    elif first == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif first in ("python", "accelerate"):
        assert (ROOT / next(word for word in rest if word.endswith(".py"))).is_file()
    else:
        assert first == "curl", f"{block.name}: {command}"
        assert rest[0].startswith("localhost:8000/")


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_every_exception_is_still_needed(pattern: str):
    assert any(not_run(line) == NOT_RUN[pattern] for block in blocks("console") for line in block.commands())


@pytest.mark.parametrize(
    "arguments",
    [["evaluat", "recipes/sentiment.yaml"], ["run"], ["run", "r.yaml", "--nothing"], ["card", "chek", "x"]],
)
def test_a_command_that_is_none_is_seen(arguments: list[str]):
    with pytest.raises(Exception, match=r"No such|Missing"):
        parse(arguments)
