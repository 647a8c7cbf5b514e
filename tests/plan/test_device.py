"""What of a model would run on a device that only serves."""

from __future__ import annotations

import pytest
from tiny import recipe_fields, write_recipe

from hfadapt.core.errors import RecipeError, RequestError
from hfadapt.formats import Estimate
from hfadapt.hardware import catalogue
from hfadapt.models.facts import model_facts
from hfadapt.plan import device
from hfadapt.plan.device import answer_seconds, multiply_adds, served
from hfadapt.plan.make import make_plan
from hfadapt.recipe.budgets import Budget
from hfadapt.recipe.reading import load_recipe, save_recipe
from hfadapt.recipe.schema import Recipe

PHONE = "android-8gb"


def test_multiply_adds_are_those_of_products_and_convolutions():
    facts = model_facts("sample:efficientnet-lite0", "image-classification", 1000)
    # Published: 407 million at 224 pixels; gates that are always open are not counted there.
    assert multiply_adds(facts, 49) == pytest.approx(407e6, rel=0.06)
    encoder = model_facts("sample:minilm-l6", "text-classification", 3)
    # Weights of six layers for each token, the pooler for one, scores and means of attention over all pairs of tokens.
    by_hand = 64 * (encoder.linear_parameters - 384 * 384 + 6 * 2 * 64 * 384) + 384 * 384 + 384 * 3
    assert multiply_adds(encoder, 64) == pytest.approx(by_hand, rel=0.001)


def test_time_is_a_line_through_published_figures():
    target = catalogue.target(PHONE)
    facts = model_facts("sample:efficientnet-lite0", "image-classification", 1000)
    for arithmetic, published in (("float32", 0.012), ("int8", 0.0065)):
        assert answer_seconds(target, Estimate("", 1, arithmetic), facts, 49) == pytest.approx(published, rel=0.1)


@pytest.mark.parametrize(
    ("budget", "words", "fits"),
    [
        (Budget(bytes=10**9, latency=10.0), "fits", True),
        (Budget(bytes=1000), "DOES NOT FIT", False),
        (Budget(bytes=10**9, latency=1e-9), "TOO SLOW", False),
    ],
)
def test_a_budget_decides(models, budget, words, fits):
    facts = model_facts(str(models / "lm"), "causal-lm")
    found = served(catalogue.target(PHONE), budget, facts, 32)
    assert [each.form for each in found][:3] == ["merged-q8_0", "merged-q4_k_m", "merged-q4_0"]
    assert {each.format for each in found} == {"gguf", "onnx"}
    assert all(each.verdict.startswith(words) for each in found)
    assert {each.fits for each in found} == {fits}
    assert all(bool(each.shrink) != fits for each in found)


def test_only_what_would_help_is_told(models):
    facts = model_facts("sample:minilm-l6", "text-classification", 3)
    small, large = served(catalogue.target(PHONE), Budget(bytes=1000), facts, 32)[:2]
    assert (small.form, large.form) == ("int8-dynamic", "float32")
    assert "fewer bits" not in small.shrink
    assert "fewer bits" in large.shrink
    small, large = served(catalogue.target(PHONE), Budget(latency=1e-6), facts, 32)[:2]
    assert "fewer bits" not in small.shrink
    assert "data.max_length" in small.shrink
    assert "fewer bits" in large.shrink
    writes = served(catalogue.target(PHONE), Budget(latency=1e-9), model_facts(str(models / "lm"), "causal-lm"), 32)
    assert "of its bytes would do" in writes[0].shrink


def test_an_estimate_near_its_limit_is_no_verdict(models):
    facts = model_facts(str(models / "lm"), "causal-lm")
    seconds = served(catalogue.target(PHONE), None, facts, 32)[0].seconds
    near = served(catalogue.target(PHONE), Budget(latency=seconds * device.BEYOND * 0.9), facts, 32)[0]
    assert near.verdict.startswith("may fit")
    assert near.fits


def recipe(models, folder, targets):
    fields = recipe_fields(models / "lm", "causal-lm", {"a": {"source": "a.jsonl"}}, targets=targets)
    (folder / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 8)
    write_recipe(folder / "r.yaml", fields)
    return folder / "r.yaml"


def test_a_budget_stands_beside_its_target(models, tmp_path):
    read = load_recipe(recipe(models, tmp_path, [{PHONE: {"bytes": "1.5 kB", "latency": "20ms"}}, "t4"]))
    assert read.targets == (PHONE, "t4")
    assert read.budgets == {PHONE: Budget(bytes=1500, latency=0.02)}
    assert load_recipe(save_recipe(read, tmp_path / "again.yaml")).budgets == read.budgets
    plan = make_plan(read)
    phone, card = plan.cells
    assert not phone.fits
    assert phone.shortage.startswith("no form of the export would fit")
    assert "DOES NOT FIT" in str(plan)
    assert "×2" in str(plan)
    assert card.exports == ()


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([{PHONE: {"bytes": "30 apples"}}], "30MB"),
        ([{PHONE: {"latency": "20"}}], "20ms"),
        ([{PHONE: {"size": "30MB"}}], "unknown key `size`"),
        ([{"t4": {"bytes": "30MB"}}], "only targets that do not train"),
        ([{"phone": {"bytes": "30MB"}}], "target"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(models, tmp_path, targets, said):
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe(models, tmp_path, targets))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("model", "task", "target", "export", "said"),
    [
        ("encoder", "text-classification", "browser-4gb", {"storage": "int8-dynamic"}, ""),
        ("lm", "causal-lm", PHONE, {"storage": "merged-q4_1"}, ""),
        ("encoder", "text-classification", "this-machine", {"format": "gguf", "storage": "q4"}, ""),
        ("encoder", "text-classification", "browser-4gb", {"format": "gguf"}, "GGUF is for language models"),
        ("lm", "causal-lm", PHONE, {"format": "litert"}, f"so that {PHONE} gets gguf"),
        (
            "encoder",
            "text-classification",
            "browser-4gb",
            {"format": "onnx", "storage": "q4_k_m"},
            "int8-dynamic, float32",
        ),
        ("encoder", "text-classification", "browser-4gb", {"storage": "int8"}, "have no such form"),
    ],
)
def test_what_cannot_be_written_is_refused_before_training(models, model, task, target, export, said):
    fields = recipe_fields(models / model, task, targets=[target], export=export)
    try:
        make_plan(Recipe.model_validate(fields))
        found = ""
    except RequestError as error:
        found = str(error)
    assert said in found
    assert bool(found) == bool(said)
