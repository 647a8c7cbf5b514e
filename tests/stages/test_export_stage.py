"""A target that only serves: its cell is done when an export has passed within the budget."""

from __future__ import annotations

import json

import pytest
import yaml
from tiny import command, labelled, pairs, recipe_fields, write_recipe, write_rows

from hfadapt.core import registry
from hfadapt.core.errors import RunError
from hfadapt.core.show import show_bytes
from hfadapt.models.facts import model_facts
from hfadapt.recipe.budgets import Budget
from hfadapt.records.published import DeviceRecord
from hfadapt.run_folder import Cell
from hfadapt.stages.export import require_room

PHONE = "android-8gb"


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    made = tmp_path_factory.mktemp("phone")
    write_rows(made / "pairs.jsonl", pairs(60))
    return made


def write(folder, models, name, budget):
    fields = recipe_fields(models / "lm", "causal-lm", {"one": {"source": "pairs.jsonl"}}, dtype="float32")
    fields |= {"name": name, "targets": ["this-machine", {PHONE: budget}]}
    fields["evaluate"] = {"resamples": 100, "security": False, "transfer": False, "general_text": False, "drift": True}
    fields["evaluate"]["drift_limits"] = {"kl_nats": 9, "points": 99}
    return write_recipe(folder / f"{name}.yaml", fields)


def test_the_cell_is_done_with_its_export(models, folder):
    write(folder, models, "fits", {"bytes": "5MB"})
    done = command("run", "fits.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    cell = Cell(folder / "runs/fits/one" / PHONE)
    found = cell.read(DeviceRecord)
    assert found.format == "gguf"
    assert found.bytes == (cell.folder / "exported/model.gguf").stat().st_size
    assert found.bytes <= found.most_bytes == 5_000_000
    # All weights are read once for a token.
    assert found.estimated_seconds == pytest.approx(found.bytes / 25.6e9)
    assert found.proved
    assert "On the device" in done.out
    assert not Cell(folder / "runs/fits/one/this-machine").has(DeviceRecord)
    card = (cell.folder / "README.md").read_text()
    assert "On the device" in card
    assert f"{found.bytes:,}" in card
    answer = command("predict", cell.folder / "exported", "a lovely film", "--json", folder=folder)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)
    again = command("run", "fits.yaml", folder=folder)
    assert again.code == 0
    assert "exporting for" not in again.out + again.err


@pytest.mark.slow
def test_a_browser_gets_a_classifier_that_its_runtime_was_asked(models, folder):
    write_rows(folder / "labelled.jsonl", labelled(120))
    fields = recipe_fields(models / "encoder", domains={"one": {"source": "labelled.jsonl"}}, dtype="float32")
    fields |= {"name": "browser", "targets": ["browser-4gb"], "export": {"limits": {"points": 50, "kl_nats": 9}}}
    fields["evaluate"] = {"resamples": 100, "security": False, "transfer": False, "drift": False}
    write_recipe(folder / "browser.yaml", fields)
    done = command("run", "browser.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    found = Cell(folder / "runs/browser/one/browser-4gb").read(DeviceRecord)
    assert (found.format, found.form) == ("onnx", "int8-dynamic")
    assert found.runtime.startswith("onnxruntime ")
    assert found.seconds > 0
    assert found.estimated_seconds is None
    assert found.points_low <= found.points <= found.points_high


def test_a_smaller_form_is_written_where_the_preferred_one_is_beyond_the_budget(models, folder):
    """As the plan has promised, which finds that one of all forms fits."""
    path = write(folder, models, "smaller", {"bytes": "200kB", "latency": "1ms"})
    recipe = yaml.safe_load(path.read_text()) | {"export": {"limits": {"points": 100, "kl_nats": 9, "agreement": 0}}}
    write_recipe(path, recipe)
    done = command("run", "smaller.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    found = Cell(folder / "runs/smaller/one" / PHONE).read(DeviceRecord)
    assert found.form == "merged-q8_0"
    assert found.bytes <= 200_000
    assert f"hfadapt predict runs/smaller/one/{PHONE}/exported" in done.out


def test_an_export_beyond_the_budget_fails_the_cell(models, folder):
    path = write(folder, models, "large", {"bytes": "200kB"})
    write_recipe(path, yaml.safe_load(path.read_text()) | {"export": {"storage": "merged-float32"}})
    done = command("run", "large.yaml", folder=folder)
    assert done.code != 0
    assert "larger than android-8gb allows" in done.out + done.err
    # The table has the targets for which nothing left, too.
    assert "none: no form" in done.out[done.out.index("On the device") :]
    assert Cell(folder / "runs/large/one/this-machine").evaluation.metrics
    # A student that was promised and failed leaves a model of which no form fits: that is known before one is written.
    cell, facts = Cell(folder / "runs/large/one" / PHONE), model_facts(str(models / "lm"), "causal-lm")
    anything = cell.lock.export.model_copy(update={"storage": None})
    cell.save_lock(cell.lock.model_copy(update={"budgets": {PHONE: Budget(bytes=20_000)}, "export": anything}))
    with pytest.raises(RunError) as caught:
        require_room(Cell(cell.folder), "gguf", facts, failed=True)
    least = min(each.bytes for each in registry.format("gguf").estimates(facts))
    for words in (
        "no student was made",
        f"of gguf the nearest form is merged-q4_0, about {show_bytes(least)}; nothing was written",
    ):
        assert words in str(caught.value)
    cell.save_lock(cell.lock.model_copy(update={"budgets": {PHONE: Budget(bytes=200_000)}}))
    require_room(Cell(cell.folder), "gguf", facts, failed=False)
