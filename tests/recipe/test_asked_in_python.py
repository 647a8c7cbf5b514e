"""What a notebook hands over: paths as text, one name in the place of several, a recipe as a dict."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from tiny import labelled, write_rows

import hfadapt
from hfadapt import Cell, RecipeError, Run, check_recipe, load_recipe, make_plan, run, save_recipe
from hfadapt.core.errors import RequestError


def told(models, **more):
    domain = {"source": "d.jsonl"}
    fields = {"model": str(models / "encoder"), "task": "text-classification", "domains": {"d": domain, "e": domain}}
    return {**fields, "train": {"max_steps": 2}, **more}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with rows that is not the working directory."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    write_rows(tmp_path / "here/d.jsonl", labelled(60))
    return tmp_path / "here"


def test_a_recipe_is_a_dict_too(models, place, monkeypatch):
    monkeypatch.chdir(place)
    asked = load_recipe(told(models), {"train.epochs": 1, "targets": ["this-machine"], "data.test": 0.2})
    assert (asked.name, asked.train.epochs, asked.data.test, asked.folder) == ("recipe", 1.0, 0.2, None)
    save_recipe(asked, place / "r.yaml")
    again = load_recipe(place / "r.yaml")
    assert again == asked
    assert again.folder == place


def test_what_is_wrong_in_a_dict_is_told_by_its_keys(models, place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(RecipeError) as found:
        load_recipe(told(models, task="text-clasification", train={"epochs": -1}))
    assert [problem.place for problem in found.value.problems] == ["task", "train.epochs"]
    with pytest.raises(RecipeError, match="`model` is missing"):
        load_recipe({"task": "text-classification"})
    with pytest.raises(RecipeError, match="cannot stand in a recipe"):
        load_recipe(told(models, train={"epochs": object()}))


def test_one_name_is_one_and_not_its_letters(models, place):
    save_recipe(load_recipe({**told(models), "domains": {n: str(place / "d.jsonl") for n in "de"}}), place / "r.yaml")
    asked = load_recipe(str(place / "r.yaml"), "train.epochs=1", domains="e", targets="cpu-8gb")
    assert (asked.train.epochs, asked.cells()) == (1.0, [("e", "cpu-8gb")])
    assert asked.choose("d").chosen == ("d",)
    with pytest.raises(RequestError, match="got:     'nobody'"):
        asked.choose("nobody")


def test_a_recipe_that_lies_elsewhere_finds_its_data(models, place):
    """Without `recipe_folder`: what loads is what runs."""
    (place / "r.yaml").write_text(str(told(models)))
    asked = load_recipe(place / "r.yaml")
    done = run(asked, folder="run", until="plan")
    assert done.failed == ()
    assert Path("run/d/this-machine/plan.json").is_file()
    assert check_recipe(str(place / "r.yaml"), domains="d").records[0].domain == "d"
    assert {cell.domain for cell in make_plan(str(place / "r.yaml")).cells} == {"d", "e"}
    assert Run("run").cell("d", "this-machine") == Cell("run/d/this-machine") == Cell(Path("run/d/this-machine"))


def test_whatever_takes_a_path_takes_text():
    seen = 0
    for name in hfadapt.__all__:
        made = getattr(hfadapt, name)
        if not inspect.isfunction(made):
            continue
        for part in inspect.signature(made).parameters.values():
            if "Path" in part.annotation:
                seen += 1
                assert "str" in part.annotation, f"{name}({part})"
    assert seen > 5
