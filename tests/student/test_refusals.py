"""What a recipe's student cannot be is told before a plan, from configs and what lies on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import recipe_fields

from hfadapt.core.errors import RequestError
from hfadapt.recipe.schema import Recipe
from hfadapt.student.refusals import require_possible


def refusal(model: Path | str, task: str, student: Any) -> str:
    """What is said of a student; empty where it can be."""
    try:
        require_possible(Recipe.model_validate(recipe_fields(model, task, student=student)))
    except RequestError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("task", "student", "said"),
    [
        ("text-classification", {"layers": 1, "ffn": 0.5, "vocabulary": 0.5, "activation": "relu6"}, ""),
        ("text-classification", {"int8": True}, ""),
        ("text-classification", {"layers": 3}, "student.layers: so many layers cannot be kept"),
        ("text-classification", {"layers": 3}, "1 to 2"),
        ("text-classification", {}, "as large as the adapted model"),
        ("text-classification", {"layers": 2, "ffn": 1.0}, "fix:     say what is to go, such as student: {layers: 1"),
        ("text-classification", "auto", "nothing says how small"),
        ("text-classification", {"layers": 1, "on_policy": True}, "writes no answers of its own"),
        ("token-classification", {"layers": 1, "texts": "more.txt"}, "make no rows to learn"),
        ("text-classification", {"base": "BASE", "ffn": 0.5}, "or cut out of the adapted one"),
    ],
)
def test_it_is_told_from_recipe_and_config(models: Path, task: str, student: Any, said: str) -> None:
    if isinstance(student, dict) and "base" in student:
        student = student | {"base": str(models / "mlm")}
    found = refusal(models / "encoder", task, student)
    assert said in found
    assert bool(found) == bool(said)


def test_what_stands_in_the_fix_can_be_done(models: Path) -> None:
    assert "student: {layers: 1, ffn: 0.75}" in refusal(models / "encoder", "text-classification", "auto")
    assert not refusal(models / "encoder", "text-classification", {"layers": 1, "ffn": 0.75})


def test_all_that_speaks_against_it_is_told_at_once(models: Path) -> None:
    found = refusal(models / "encoder", "text-classification", {"layers": 9, "on_policy": True})
    assert "student.layers" in found
    assert "student.on_policy" in found


def test_a_net_of_stages_has_no_layers_to_choose_from(tmp_path: Path) -> None:
    from transformers import ConvNextConfig

    ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1], num_labels=2).save_pretrained(tmp_path)
    task = "image-classification"
    assert "stages of several sizes" in refusal(tmp_path, task, {"layers": 2})
    found = refusal(tmp_path, task, {"ffn": 0.5, "vocabulary": "data"})
    assert "does not say the width" in found
    assert "the base has no tokens" in found
    assert not refusal(tmp_path, task, {"activation": "relu6"})


def test_another_model_has_to_cut_texts_as_the_adapted_one(models: Path, tmp_path: Path) -> None:
    assert not refusal(models / "lm", "causal-lm", {"base": str(models / "lm-untied")})
    assert "cannot write one token" in refusal(models / "lm", "causal-lm", {"base": str(models / "encoder")})
    other = shutil.copytree(models / "lm-untied", tmp_path / "other")
    rules = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    known = rules["model"]["vocab"]
    one, two = sorted(known, key=known.__getitem__)[-2:]
    known[one], known[two] = known[two], known[one]
    (other / "tokenizer.json").write_text(json.dumps(rules), encoding="utf-8")
    assert "cuts texts into other tokens" in refusal(models / "lm", "causal-lm", {"base": str(other)})
