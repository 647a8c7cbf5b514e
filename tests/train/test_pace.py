"""Later cells of a run are told the time at the speed of those that are trained."""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny import recipe_fields

from hfadapt.hardware import catalogue
from hfadapt.hardware.rates import Rates
from hfadapt.hardware.versions import versions
from hfadapt.plan.make import lock, make_plan
from hfadapt.recipe.schema import Recipe
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.train.pace import predicted_seconds


def planned(folder: Path, model: Path) -> list[Cell]:
    """Cells of two domains that are planned and not trained."""
    recipe = Recipe(**recipe_fields(model, domains={"a": "a.jsonl", "b": "b.jsonl"}))
    cells = []
    for each in make_plan(recipe).cells:
        cell = Cell(folder / each.domain / each.target)
        cell.write(make_plan(recipe.choose([each.domain])))
        cell.save_lock(lock(recipe.choose([each.domain]), each))
        cells.append(cell)
    return cells


def trained(cell: Cell, times: float) -> None:
    """As if training had taken so many times longer than planned."""
    plan = cell.plan.cells[0]
    speed, none = plan.predicted_tokens_per_second, dict.fromkeys(("first_loss", "final_loss", "best_validation_loss"))
    counts = ("trainable_parameters", "total_parameters", "quantised_modules", "tokens", "labelled_tokens", "seconds")
    zeros = dict.fromkeys((*counts, "steps", "epochs", "best_step", "load_seconds", "adapter_bytes"), 0)
    record = {"domain": cell.domain, "target": cell.target, "method": "lora", "stopped_early": False, "world_size": 1}
    speeds = {"tokens_per_second": speed / times, "predicted_tokens_per_second": speed}
    cell.write(TrainRecord(**record, **speeds, **zeros, **none, versions=versions("cpu")))


def test_the_second_training_is_told_what_the_first_has_shown(
    models: Path, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = Rates(tflops={"float32": 0.1, "bfloat16": 0.1}, measured_at=time.time(), torch=version("torch"))
    catalogue.keep_rates(catalogue.this_machine(), rates)
    first, second = planned(tmp_path / "run", models / "encoder")
    alone = predicted_seconds([second])
    assert alone == second.plan.cells[0].predicted_seconds
    trained(first, 3.0)
    assert predicted_seconds([second]) == pytest.approx(3 * alone)
    assert predicted_seconds([first, second]) == pytest.approx(2 * alone), "its own earlier training says nothing"
    (first.folder / TrainRecord.FILE).write_text("{")
    assert predicted_seconds([second]) == alone


def test_another_storage_says_nothing(models: Path, tmp_path: Path) -> None:
    first, second = planned(tmp_path / "run", models / "encoder")
    trained(first, 3.0)
    alone = second.plan.cells[0].predicted_seconds
    changed = first.lock.model_copy(update={"dtype": "float16"})
    assert predicted_seconds([second]) == pytest.approx(3 * alone)
    first.save_lock(changed)
    assert predicted_seconds([second]) == alone
