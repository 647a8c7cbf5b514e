"""The JSON Schema of recipes: made from the classes that read them, and never stricter than the reader."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from tiny import command

from hfadapt.core import registry
from hfadapt.core.errors import RecipeError
from hfadapt.hardware import catalogue
from hfadapt.recipe.explain import example
from hfadapt.recipe.json_schema import recipe_schema
from hfadapt.recipe.places import NAME, Field, fields
from hfadapt.recipe.reading import load_recipe, save_recipe
from hfadapt.recipe.schema import Recipe
from hfadapt.recipe.words import base, choices, validate
from hfadapt.recipe.yaml_lines import Tree, read_into

ROOT = Path(__file__).parents[2]
SCHEMA = recipe_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
PLAIN = {"model": "sample:minilm-l6", "task": "text-classification", "domains": {"one": {"source": "a.csv"}}}
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


DISTINCT = [
    *{(id(field.info), place.rpartition(".")[2]): place for place, field in reversed(fields().items())}.values()
]
"""One place of each field: several sections may be of one class."""


def values(text: str) -> Any:
    return read_into(Tree("recipe"), text)


def faults(recipe: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in VALIDATOR.iter_errors(recipe)]


def blocks() -> Iterator[tuple[str, str]]:
    """YAML blocks of the documentation, each with its place; what other packages add is not installed."""
    pages = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "extending.md"]
    for path in (ROOT / "README.md", *pages):
        for number, text in enumerate(
            re.findall(r"^```yaml\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
        ):
            yield f"{path.name}-{number}", text


def test_it_is_a_schema_of_draft_2020_12():
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_are_valid(path: Path):
    assert faults(values(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in blocks()])
def test_recipes_of_the_documentation_are_valid(text: str):
    """A part of a recipe is one where the rest is as usual."""
    assert faults({**PLAIN, **values(text)}) == []


def test_a_saved_recipe_is_valid_and_so_is_a_lock(tmp_path: Path):
    recipe = load_recipe(ROOT / "recipes/sentiment.yaml")
    assert faults(values(save_recipe(recipe, tmp_path / "r.yaml", full=True).read_text(encoding="utf-8"))) == []
    assert faults({**PLAIN, "base": {"made_by": "student", "folder": "student"}}) == []


# --- what it says of each field --------------------------------------------------------------------------------------


def test_every_field_is_described():
    for place, field in fields().items():
        assert field.info.description, place
    for each in (SCHEMA, *SCHEMA["$defs"].values()):
        for name, info in each["properties"].items():
            assert len(info["description"]) > 8, name
            assert info["title"], name


@pytest.mark.parametrize("place", fields())
def test_who_answers_auto_is_said(place: str):
    info = fields()[place].info
    takes = "auto" in choices(info.annotation) or info.default == "auto"
    assert ("\nAuto: " in info.description) >= takes


@pytest.mark.parametrize("place", DISTINCT)
def test_the_example_of_a_field_can_be_set(place: str, tmp_path: Path):
    """As the explanation shows it: what else is asked for is no fault of its value."""
    written = example(fields()[place])
    if not written:
        return
    recipe = put(place, values(written))
    assert faults(recipe) == []
    assert not refused(recipe) or by_a_rule(recipe), written


def test_names_are_those_of_the_registry():
    named = SCHEMA["properties"]
    assert named["task"]["enum"] == list(registry.names("tasks"))
    assert named["quant"]["enum"] == ["auto", *registry.names("quants")]
    assert named["targets"]["items"]["anyOf"][0]["enum"] == list(catalogue.names())
    assert SCHEMA["$defs"]["Adapter"]["properties"]["method"]["enum"] == ["auto", *registry.names("adapters")]


def test_names_of_another_package_are_in_it():
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests/extras/installed")))
    done = subprocess.run(
        [sys.executable, "-m", "hfadapt", "schema"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert "ordinal-classification" in found["properties"]["task"]["enum"]
    assert "nf4-double" in found["properties"]["quant"]["enum"]
    assert "grade" in found["$defs"]["Columns"]["properties"]


def test_the_command_prints_and_writes_it(tmp_path: Path):
    printed = command("schema").out
    assert json.loads(printed) == SCHEMA
    assert command("schema", "--out", "s/recipe.json", folder=tmp_path).code == 0
    assert (tmp_path / "s/recipe.json").read_text(encoding="utf-8") == printed


# --- beside the reader -----------------------------------------------------------------------------------------------

ANYTHING = (
    *(None, True, False, 0, 1, -1, 0.5, 3, 1.5, 10**9, "", "auto", "find", "no-such-name", "0.5", "yes", "30MB", "10m"),
    *([], ["x"], [3], [None], {}, {"nothing-of-that-name": 1}, [[1]], [{"x": 1}], {"source": "a"}, "a b", "1e400x"),
)


def needed(field: Field | None) -> dict[str, Any]:
    """What an entry of a list of sections has to have."""
    assert field is not None
    below = [each for place, each in fields().items() if place.rpartition(".")[0] == field.place]
    return {each.place.rpartition(".")[2]: values(example(each)) for each in below if each.info.is_required()}


def put(place: str, value: Any) -> dict[str, Any]:
    """The plain recipe with one field set."""
    recipe: dict[str, Any] = copy.deepcopy(PLAIN)
    inner: Any = recipe
    *keys, last = place.split(".")
    for end, key in enumerate(keys, start=1):
        at = "android-8gb" if key == NAME and keys[0] == "budgets" else "one" if key == NAME else key
        field = fields().get(".".join(keys[:end]))
        listed = field is not None and get_origin(base(field.info.annotation)) is tuple
        inner = inner.setdefault(at, [needed(field)] if listed else {})
        inner = inner[0] if listed else inner
    inner["one" if last == NAME else last] = value
    return recipe


def refused(recipe: Any) -> bool:
    """Whether a field of it has a value that the reader does not take, whatever the others are."""
    tree = Tree("recipe")
    tree.values = {"name": "recipe", **copy.deepcopy(recipe)}
    validate(tree, Recipe)
    return bool(tree.found)


def by_a_rule(recipe: Any) -> bool:
    """Whether only a rule about several fields of a section refuses it, which no schema has."""
    try:
        Recipe.model_validate({"name": "recipe", **copy.deepcopy(recipe)})
    except ValidationError as error:
        return all(
            each["type"] == "value_error" and not re.search("must be one of|a number with", each["msg"])
            for each in error.errors()
        )
    return False


@pytest.mark.parametrize("place", DISTINCT)
def test_it_refuses_what_the_reader_refuses_and_nothing_else(place: str):
    quoted = {"0.5", "yes"}  # Their limits are left to the reader.
    for value in ANYTHING:
        recipe = put(place, value)
        wrong = refused(recipe)
        if not (wrong and (by_a_rule(recipe) or value in quoted if isinstance(value, str) else by_a_rule(recipe))):
            assert VALIDATOR.is_valid(recipe) != wrong, (value, faults(recipe))


@pytest.mark.parametrize("place", ["", "train", "data.clean", "domains.one", "student", "evaluate.drift_limits"])
def test_a_field_that_there_is_not_is_refused(place: str):
    recipe: Any = copy.deepcopy(PLAIN)
    inner = recipe
    for key in filter(None, place.split(".")):
        inner = inner.setdefault(key, {})
    inner["no_such_field"] = 1
    assert refused(recipe)
    assert faults(recipe)


@pytest.mark.parametrize(
    ("targets", "right"),
    [
        ([{"android-8gb": {"bytes": "30MB", "latency": "20ms"}}], True),
        (["this-machine", {"browser-4gb": {"bytes": 1000}}], True),
        ([{"android-8gb": {"bytes": "30 apples"}}], False),
        ([{"t4": {"bytes": "30MB"}}], False),
        ([{"android-8gb": {}, "browser-4gb": {}}], False),
        ("t4", False),
        (["t44"], False),
    ],
)
def test_targets_with_a_budget_beside_them(targets: Any, right: bool, tmp_path: Path):
    recipe = {**PLAIN, "domains": {"one": {"source": "sample:vader/tweets"}}, "targets": targets}
    assert (not faults(recipe)) == right
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    if right:
        load_recipe(path)
    else:
        with pytest.raises(RecipeError):
            load_recipe(path)


WORDS = ("model", "task", "domains", "train", "epochs", "auto", "lora", "t4", "source", "yes", "off", "1e-4", "0x10")
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(-2, 2), st.sampled_from(WORDS), st.text(max_size=6)
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(WORDS), inner, max_size=2)),
    max_leaves=4,
)


@st.composite
def changed_recipes(draw: st.DrawFn) -> Any:
    """A recipe of the repository in which something is left out, added or put in the place of something else."""
    recipe = values(draw(st.sampled_from([path.read_text(encoding="utf-8") for path in RECIPES])))
    for _ in range(draw(st.integers(1, 3))):
        inner = recipe
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(inner[key], (dict, list)) and draw(st.booleans()):
                inner = inner[key]
                continue
            how = draw(st.sampled_from(("put", "put", "drop", "add")))
            if how == "put":
                inner[key] = draw(TREES)
            elif how == "drop":
                del inner[key]
            elif isinstance(inner, dict):
                inner[draw(st.sampled_from(WORDS))] = draw(TREES)
            break
    return recipe


@given(recipe=changed_recipes())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_it_refuses_of_changed_recipes_the_reader_refuses_too(recipe: Any, tmp_path: Path):
    if VALIDATOR.is_valid(recipe):
        return
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    with pytest.raises(RecipeError):
        load_recipe(path)
