"""A student that a budget decides: the plan promises none that cannot be, and says how many tokens fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hfadapt.models.smaller import cut_config, width_of
from hfadapt.plan.make import make_plan
from hfadapt.plan.student import SHARES, cut_facts, said, seconds, weighed
from hfadapt.recipe.schema import Recipe
from hfadapt.records.plan import CellPlan

TARGET = "browser-4gb"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """8 M parameters, of which half are vectors of tokens."""
    folder: Path = tmp_path_factory.mktemp("encoder")
    sizes = {"vocab_size": 16000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 5}
    config = {"model_type": "bert", "num_attention_heads": 4, "max_position_embeddings": 64, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def recipe(model: str, budget: int, student: Any = "auto") -> Recipe:
    return Recipe.model_validate(
        {
            "name": "r",
            "model": model,
            "task": "text-classification",
            "domains": {"d": {"source": "d.csv"}},
            "targets": [TARGET],
            "budgets": {TARGET: {"bytes": budget, "latency": "100s"}},
            "export": {"format": "onnx", "storage": "float32"},
            "student": student,
        }
    )


def plan(model: str, budget: int, student: Any = "auto") -> tuple[CellPlan, str]:
    cell = make_plan(recipe(model, budget, student)).cells[0]
    return cell, next((said for said in cell.warnings if "no export of the adapted model fits" in said), "")


def test_what_fits_as_it_is_needs_no_student(encoder: str) -> None:
    cell, said = plan(encoder, 60_000_000)
    assert cell.fits
    assert not said


@pytest.mark.parametrize(
    ("budget", "student", "fits", "words"),
    [
        (25_000_000, "auto", True, "a student is cut out of it that does"),
        (12_000_000, "auto", True, "there is room for about"),
        (12_000_000, {"layers": "auto", "ffn": "auto"}, False, "no student either: with 1 layer and 12%"),
        (25_000_000, {"layers": 5, "vocabulary": "auto"}, True, "with 5 layers and 100%"),
        (1_000_000, "auto", False, "no student either"),
    ],
)
def test_a_student_is_promised_where_one_can_be(
    encoder: str, budget: int, student: Any, fits: bool, words: str
) -> None:
    cell, said = plan(encoder, budget, student)
    assert words in said
    assert cell.fits == fits


def test_another_base_is_weighed_itself(encoder: str, tmp_path: Path) -> None:
    tiny = json.loads(Path(encoder, "config.json").read_text()) | {"vocab_size": 2000, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(tiny))
    assert plan(encoder, 12_000_000, {"base": str(tmp_path)})[0].fits
    assert not plan(encoder, 12_000_000, {"base": encoder})[0].fits


def test_room_for_tokens_is_counted(encoder: str) -> None:
    """One token more than a part in 32 beyond what is said does not fit; what is said does."""
    from hfadapt.hardware import catalogue
    from hfadapt.models.facts import model_facts

    budget = 12_000_000
    said = plan(encoder, budget)[1]
    room = int(said.split("room for about ")[1].split(" ")[0].replace(",", ""))
    facts = model_facts(encoder, "text-classification", 2)

    def fits(tokens: int) -> bool:
        return weighed(recipe(encoder, budget), catalogue.target(TARGET), facts, 64, 1, SHARES[-1], tokens)[0].fits

    assert fits(room)
    assert not fits(room + facts.vocab_size // 32)


def test_facts_of_a_cut_model_are_those_of_its_config(encoder: str) -> None:
    from hfadapt.models.facts import load_config, model_facts

    whole = model_facts(encoder, "text-classification", 3)
    cut = cut_facts(json.dumps(whole.config), "text-classification", 3, 2, 0.5, 5000)
    config = load_config(encoder)
    cut_config(config, 2, 512)
    assert (cut.layers, cut.vocab_size, cut.config["intermediate_size"]) == (2, 5000, width_of(config))
    vectors = (16000 - 5000) * 256
    layer = 4 * (256 * 256 + 256) + 2 * 256 * 1024 + 1024 + 256 + 4 * 256
    units = 512 * (2 * 256 + 1)
    assert whole.parameters - cut.parameters == vectors + 3 * layer + 2 * units


def test_what_its_training_takes_is_planned(encoder: str) -> None:
    """Tries are a quarter each; a larger peak than there is memory is said."""
    one = plan(encoder, 25_000_000, {"layers": 2})[0]
    words = next(each for each in one.warnings if "training the student" in each)
    assert "as long once more where rounding" in words
    assert "more than the" not in words
    assert "more than the 1 B there are" in said(one.model_copy(update={"budget_bytes": 1}), 1, again=False)
    known = one.model_copy(update={"predicted_seconds": 8.0})
    assert seconds(known, 1, again=False) == 8.0
    assert seconds(known, 3, again=True) == 8.0 * (1 + 0.75 + 2)
    assert seconds(one, 1, again=False) is None
