"""`run` in Python returns though a cell failed: the run says so, shows it, and can be made to raise."""

import pytest
from tiny import labelled, recipe_fields, write_recipe, write_rows

from hfadapt import Run, load_recipe, run
from hfadapt.core.errors import RunError


def test_cells_that_failed_are_named_shown_and_raised(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(60))
    asked = {"resamples": 100, "security": False, "transfer": False, "gates": {"accuracy": 2.0}}
    fields = recipe_fields(models / "encoder", "text-classification", train__max_steps=2, evaluate=asked)
    write_recipe(tmp_path / "tiny.yaml", fields)
    recipe = load_recipe(tmp_path / "tiny.yaml")
    place = {"recipe_folder": tmp_path, "folder": tmp_path / "runs/tiny"}
    found = run(recipe, **place)
    assert [(cell.domain, cell.status) for cell in found.failed] == [("one", "failed")]
    assert "1 of 1 cells failed: one on this-machine" in str(found)
    assert "1 of 1 cells failed" in found._repr_html_()
    with pytest.raises(RunError) as caught:
        found.raise_for_failures()
    [problem] = caught.value.problems
    assert problem.place == "one on this-machine"
    assert problem.what == found.failed[0].error
    loose = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"gates": {"accuracy": -2.0}})})
    done = run(loose, **place)
    assert done.failed == ()
    assert "cells failed" not in str(done)
    assert done.raise_for_failures() is done


def test_a_folder_without_a_run_is_told_so(tmp_path):
    with pytest.raises(RunError, match="there is no run in this folder"):
        str(Run(tmp_path / "nowhere"))
