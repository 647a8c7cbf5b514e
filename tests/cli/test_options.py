"""Options: each is looked at; addresses where folders are wanted are refused before anything starts."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tiny import command, labelled, write_rows

from hfadapt import load_recipe, run
from hfadapt.cli.app import app
from hfadapt.core.errors import RequestError
from hfadapt.run_folder import find_cell, local_folder

FOLDERS = {"FOLDER", "RUN", "CELL", "CELL_OR_RUN", "EXPORTED"}
"""What stands for a folder in the help."""
NEEDED = {"FOLDER": "here", "RUN": "here", "CELL": "here", "CELL_OR_RUN": "here", "EXPORTED": "here"}
RECIPE = "name: a\nmodel: m\ntask: text-classification\ndomains: {one: {source: one.jsonl}}\n"


def lines() -> list[Any]:
    """Of every command, each line with an address in the place of one of its folders."""
    found = []

    def walk(group: Any, words: tuple[str, ...]) -> None:
        for name, each in group.commands.items():
            if hasattr(each, "commands"):
                walk(each, (*words, name))
                continue
            for asked in each.params:
                if asked.metavar in FOLDERS:
                    line = [*words, name]
                    for other in each.params:
                        value = "s3://bucket/runs" if other is asked else NEEDED.get(other.metavar or "", "recipe.yaml")
                        if other is asked or other.required:
                            line += [value] if other.param_type_name == "argument" else [other.opts[0], value]
                    found.append(pytest.param(line, id=" ".join([*words, name, asked.opts[0]])))

    walk(typer.main.get_command(app), ())
    return found


def test_every_command_is_looked_at() -> None:
    named = {each.id for each in lines()}
    runs = {f"{verb} --runs" for verb in ("run", "plan", "prepare", "train", "evaluate")}
    others = {"report run", "predict run", "serve run", "ui run", "export cell", "export --to", "publish path"}
    assert runs | others | {"card build cell", "card check cell", "publish --to"} <= named, named


@pytest.mark.parametrize("line", lines())
def test_an_address_is_refused(line: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = command(*line, folder=tmp_path)
    assert done.code == 2
    assert done.err.startswith("s3://bucket/runs: an address is no folder")
    assert "mount" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("gs://bucket/runs", "gcsfuse"),
        ("hf://datasets/me/runs", "hfadapt publish"),
        ("https://host/runs", "mount"),
        ("abfss://box@host/runs", "mount"),
        ("file:///data/my runs", "'/data/my runs'"),
    ],
)
def test_what_works_instead_is_said(said: str, fix: str) -> None:
    with pytest.raises(RequestError, match="an address is no folder") as caught:
        local_folder(said)
    assert fix in str(caught.value)


@pytest.mark.parametrize("said", ["runs", "/data/runs", "./s3:/runs", "C:/runs", "a:b/runs", "runs/of:/me"])
def test_folders_are_folders(said: str) -> None:
    assert local_folder(said) == Path(said)


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write_rows(tmp_path / "one.jsonl", labelled(4))
    with pytest.raises(RequestError, match="an address is no folder"):
        run(load_recipe(tmp_path / "recipe.yaml"), folder=Path("s3://bucket/runs"))
    with pytest.raises(RequestError, match="an address is no folder"):
        find_cell(Path("gs://bucket/runs"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "recipe.yaml"]


def callbacks(group: Any) -> Iterator[Any]:
    """The function of every command, as it was written."""
    for each in group.registered_commands:
        yield inspect.unwrap(each.callback)
    for inner in group.registered_groups:
        yield from callbacks(inner.typer_instance)


@pytest.mark.parametrize("function", callbacks(app), ids=lambda function: function.__name__)
def test_every_option_is_looked_at(function: Any) -> None:
    (written,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    used = {node.id for part in written.body for node in ast.walk(part) if isinstance(node, ast.Name)}
    assert {*inspect.signature(function).parameters} <= used
