"""The example in the docstring of every public name, run on tiny models."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

import hfadapt

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where sentiment.yaml has been run."""
    place = tmp_path_factory.mktemp("examples")
    domains = {name: {"source": f"{name}.jsonl"} for name in ("tweets", "movies")}
    for seed, name in enumerate(domains):
        write_rows(place / f"{name}.jsonl", labelled(80, seed=seed))
    fields = recipe_fields(models / "encoder", domains=domains, name="sentiment", evaluate__security=False)
    write_recipe(place / "sentiment.yaml", fields)
    done = command("run", "sentiment.yaml", folder=place)
    assert done.code == 0, done.err
    return place


@pytest.mark.parametrize("name", sorted(set(hfadapt.__all__) - {"__version__"}))
def test_the_example_of_a_public_name_does_what_it_says(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    text = getattr(hfadapt, name).__doc__
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert test.examples, f"{name} has no example"
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert not result.failed, "".join(said)
