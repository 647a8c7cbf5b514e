"""The plan: every `auto` answered with a reason, nothing impossible planned, the same learning on every target."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hfadapt.core.errors import RequestError
from hfadapt.core.show import as_text
from hfadapt.hardware import catalogue
from hfadapt.plan.make import lock, make_plan
from hfadapt.recipe.schema import AUTO, Lock, Recipe
from hfadapt.records.plan import CellPlan, Plan
from hfadapt.records.stages import DataRecord, Lengths

FIELDS = {
    *("quant", "dtype", "adapter.method", "adapter.rank", "adapter.alpha", "adapter.dropout", "adapter.modules"),
    *("data.max_length", "data.packing", "train.epochs", "train.learning_rate", "train.schedule", "train.warmup_ratio"),
    *("train.batch_rows", "train.micro_batch_rows", "train.weight_decay", "train.evaluate_every_steps"),
    *("train.checkpoint_every_steps", "train.optimizer", "train.checkpointing", "evaluate.metrics"),
    *("evaluate.batch_rows", "train.together", "train.resident_layers", "train.shard"),
    *("adapter.layers", "train.fast.compile", "train.fast.frozen_cache"),
}
TRAINING = [name for name in catalogue.names()[1:] if catalogue.target(name).trains]
UNFUSED = {"fast": False}
"""Of `train`: there is nothing to compile, so that a plan for a GPU asks for half as many traces."""
SAME_EVERYWHERE = ("data.max_length", "train.batch_rows", "train.epochs", "train.learning_rate", "adapter.rank")


def write_config(folder: Path, **more: Any) -> str:
    config = {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        **more,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shape of Llama-3.1-8B."""
    return write_config(
        tmp_path_factory.mktemp("large"),
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


def recipe(model: str, **more: Any) -> Recipe:
    fields = {"name": "r", "model": model, "task": "causal-lm", "domains": {"d": {"source": "rows.jsonl"}}, **more}
    return Recipe.model_validate(fields)


def cell(model: str, target: str, known: Mapping[str, DataRecord] | None = None, **more: Any) -> CellPlan:
    return make_plan(recipe(model, targets=[target], **more), data=known).cells[0]


def record(longest: int, rows: int = 1000) -> DataRecord:
    lengths = Lengths(rows=rows, tokens=40 * rows, mean=40.0, median=38, p95=80, longest=longest)
    return DataRecord(
        domain="d",
        form="completion",
        sources=(),
        rows_in=rows,
        rows_kept=rows,
        dropped={},
        splits={"train": rows},
        lengths={"train": lengths},
        fingerprint="f",
        seconds=0.1,
    )


@pytest.fixture(scope="module")
def everywhere(small: str) -> Plan:
    return make_plan(recipe(small, targets=list(catalogue.names()[1:])))


@pytest.mark.parametrize(
    ("more", "rate"),
    [
        ({"train": {"max_steps": 80}}, 1.5e-3),
        ({"train": {"max_steps": 120}}, 1e-3),
        ({"train": {"max_steps": 5000}}, 1e-3),
        ({"train": {"epochs": 1, "batch_rows": 64}}, 2e-3),  # of 2,000 rows, which are assumed
        ({"train": {"max_steps": 60}, "task": "token-classification"}, 1e-3),
        ({"train": {"max_steps": 240}, "task": "token-classification"}, 5e-4),
        ({"train": {"max_steps": 60, "learning_rate": 3e-4}}, 3e-4),
        ({"train": {"max_steps": 60}, "adapter": {"method": "full"}}, 5e-4),
        ({"train": {"max_steps": 60}, "task": "embedding"}, 2e-4),
        ({"train": {"max_steps": 60}, "task": "causal-lm"}, 5e-4),
    ],
)
def test_few_steps_of_an_encoder_take_a_higher_learning_rate(small: str, more: dict[str, Any], rate: float) -> None:
    more = {"task": "text-classification", **more, "train": {**more["train"], **UNFUSED}}
    (found,) = make_plan(recipe(small, targets=["t4"], **more)).cells
    (made,) = (each for each in found.decisions if each.field == "train.learning_rate")
    assert made.value == pytest.approx(rate)
    if not made.asked:
        usual = {"text-classification": 1e-3, "token-classification": 5e-4}
        assert ("steps" in made.reason) == (made.value > usual.get(more["task"], 1.0))


def test_every_auto_is_answered_with_a_reason(everywhere: Plan) -> None:
    for one in everywhere.cells:
        assert {decision.field for decision in one.decisions} >= FIELDS
        assert all(decision.reason and not decision.asked for decision in one.decisions if decision.field in FIELDS)


def test_what_is_learned_does_not_depend_on_the_target(everywhere: Plan) -> None:
    for field in SAME_EVERYWHERE:
        assert len({one.value(field) for one in everywhere.cells}) == 1, field
    for one in everywhere.cells:
        assert one.value("train.batch_rows") % (one.value("train.micro_batch_rows") * one.value("processes")) == 0


def test_no_unsupported_dtype_or_quant_is_planned(everywhere: Plan) -> None:
    for one in everywhere.cells:
        trainer = catalogue.target(one.trains_on)
        assert one.value("dtype") in trainer.dtypes
        assert one.value("quant") in trainer.quants
        if one.target in ("t4", "v100-16gb"):
            assert one.value("dtype") != "bfloat16"


def test_every_training_target_gets_a_plan(everywhere: Plan) -> None:
    assert {one.target for one in everywhere.cells if one.trains_on == one.target} == set(TRAINING)
    assert all(one.fits for one in everywhere.cells)


def test_a_target_that_only_serves_trains_here(everywhere: Plan) -> None:
    phone = next(one for one in everywhere.cells if one.target == "android-8gb")
    assert phone.trains_on == "this-machine"
    assert "gguf" in phone.warnings[0]


def test_a_form_that_export_refuses_is_not_promised(small: str, tmp_path: Path) -> None:
    phone = make_plan(recipe(small, targets=["android-8gb"])).cells[0]
    assert not any("writes nothing of this model" in said for said in phone.warnings)
    windows = make_plan(recipe(write_config(tmp_path, sliding_window=64), targets=["browser-4gb"])).cells[0]
    assert "writes nothing of this model that runs there (web: " in windows.warnings[0]
    encoder = make_plan(recipe("sample:minilm-l6", targets=["android-8gb"], task="text-classification")).cells[0]
    assert {each.format for each in encoder.exports} == {"litert", "onnx"}
    assert "exported (litert, onnx)" in encoder.warnings[0]


def test_several_devices_share_the_batch(everywhere: Plan) -> None:
    eight = next(one for one in everywhere.cells if one.target == "8x-h100")
    assert eight.value("processes") == 8
    assert eight.value("train.micro_batch_rows") == 2


def test_an_8b_model_is_quantised_only_where_it_must_be(large: str) -> None:
    plan = make_plan(recipe(large, targets=["rtx-3060", "h100"], train=UNFUSED), data={"d": record(250)})
    card, server = plan.cells
    assert server.value("quant") == "none"
    assert server.value("dtype") == "bfloat16"
    assert card.value("quant") in ("nf4", "int8")
    assert card.fits
    rejected = {r.value: r.reason for r in next(d for d in card.decisions if d.field == "quant").rejected}
    assert "the weights alone" in rejected["none"]


def test_what_does_not_fit_gets_three_plans_that_would(small: str) -> None:
    asked = {"micro_batch_rows": 2048, "batch_rows": 2048, "checkpointing": False}
    plan = make_plan(recipe(small, targets=["cpu-8gb"], train=asked, data={"max_length": 2048}))
    found = plan.cells[0]
    assert not found.fits
    assert len(found.alternatives) == 3
    assert all(other.gives_up for other in found.alternatives)
    assert all(0 < other.predicted_peak_bytes <= found.budget_bytes for other in found.alternatives)
    assert "DOES NOT FIT" in str(plan)
    assert found.shortage.startswith("does not fit: predicted peak")
    text = as_text(plan.blocks(), 80)
    assert all(
        f"{name}=" in text and other.gives_up.split(";")[0].split(",")[0] in text
        for other in found.alternatives
        for name in other.changes
    )


def test_the_weights_of_an_8b_model_are_sixteen_gigabytes(large: str) -> None:
    train = next(p for p in cell(large, "h100", {"d": record(250)}, train=UNFUSED).memory if p.phase == "train")
    assert train.parts["weights"] == pytest.approx(8.03e9 * 2, rel=0.01)


def test_measured_lengths_replace_assumptions(small: str) -> None:
    assumed, known = cell(small, "l4"), cell(small, "l4", {"d": record(93)})
    assert "assumed" in assumed.data_basis
    assert "1,000" in known.data_basis
    assert known.value("data.max_length") == 96
    assert known.peak.total_bytes < assumed.peak.total_bytes
    assert known.predicted_seconds is not None
    assert known.value("train.evaluate_every_steps") == 1000 // 16 // 4


def test_rows_beyond_the_model_are_cut_and_the_plan_says_so(small: str) -> None:
    found = cell(small, "h100", {"d": record(9000)})
    assert found.value("data.max_length") == 2048
    assert "cut" in next(d for d in found.decisions if d.field == "data.max_length").reason


def test_what_was_set_stays_set(small: str) -> None:
    found = cell(
        small,
        "cpu-16gb",
        quant="nf4",
        train={"learning_rate": 1e-3, "batch_rows": 12, "checkpointing": True},
        adapter={"rank": 8, "method": "rslora"},
        data={"max_length": 64},
    )
    asked = {d.field: d.value for d in found.decisions if d.asked}
    assert asked == {
        "quant": "nf4",
        "train.learning_rate": 1e-3,
        "train.batch_rows": 12,
        "train.checkpointing": True,
        "adapter.rank": 8,
        "adapter.method": "rslora",
        "data.max_length": 64,
    }
    assert found.value("adapter.alpha") == 16


def test_the_lock_has_no_auto_and_plans_to_itself(small: str) -> None:
    asked = recipe(small, targets=["l4", "t4"])
    plan = make_plan(asked, data={"d": record(93)})
    locked = lock(asked, plan.cells[1])
    assert isinstance(locked, Lock)
    assert (locked.domain, locked.target, locked.dtype) == ("d", "t4", "float16")
    left = [key for key, value in locked.train.model_dump().items() if value == AUTO]
    assert not left
    again = make_plan(locked, data={"d": record(93)}).cells[0]
    assert lock(locked, again) == locked


def test_impossible_requests_are_refused_all_at_once(small: str) -> None:
    with pytest.raises(RequestError) as caught:
        make_plan(recipe(small, targets=["t4", "apple-m2-16gb"], dtype="bfloat16", quant="nf4"))
    places = [(problem.place, problem.what) for problem in caught.value.problems]
    assert ("dtype", "t4 has no bfloat16") in places
    assert any(place == "quant" and "apple-m2-16gb" in what for place, what in places)
    with pytest.raises(RequestError, match="DoRA"):
        make_plan(recipe(small, targets=["l4"], quant="int8", adapter={"method": "dora"}))


def test_labels_make_accuracy_a_metric(small: str) -> None:
    template = {"prompt": "{text}", "completion": " {label}"}
    assert cell(small, "l4", template=template).value("evaluate.metrics")[0] == "label_accuracy"
    assert cell(small, "l4").value("evaluate.metrics") == ("perplexity", "exact_match", "rouge_l", "chrf", "bleu")
    gated = {"generate_rows": 0, "gates": {"loss": 0.0, "general_text": -0.5}}
    assert cell(small, "l4", evaluate=gated).value("evaluate.metrics") == ("perplexity", "loss")


@pytest.mark.parametrize(("target", "dtype"), [("cpu-16gb", "float32"), ("cpu-amx-64gb", "bfloat16")])
def test_beside_a_quantised_base_is_the_dtype_of_the_products(small: str, target: str, dtype: str) -> None:
    assert cell(small, target, quant="nf4").value("dtype") == dtype


def test_a_faster_card_is_predicted_faster(everywhere: Plan) -> None:
    rate = {one.target: one.predicted_tokens_per_second or 0.0 for one in everywhere.cells}
    assert rate["h100"] > rate["a100-80gb"] > rate["l4"] > rate["cpu-16gb"] > 0


def test_products_on_tiles_are_predicted_faster_and_smaller_where_they_run(
    small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = catalogue.target("cpu-16gb")
    tiles = plain.model_copy(update={"features": ("amx_bf16",)})

    def planned(target: catalogue.Target, **more: Any) -> CellPlan:
        with monkeypatch.context() as patch:
            patch.setattr(catalogue, "target", lambda name: target)
            return cell(small, "cpu-16gb", dtype="bfloat16", **more)

    def training(plan: CellPlan) -> int:
        return next(phase.total_bytes for phase in plan.memory if phase.phase == "train")

    fast, slow = planned(tiles), planned(plain)
    assert (fast.predicted_tokens_per_second or 0) > (slow.predicted_tokens_per_second or 0) > 0
    assert training(fast) < training(slow)
    same = [planned(target, train={"fast": False}) for target in (tiles, plain)]
    assert same[0].predicted_tokens_per_second == same[1].predicted_tokens_per_second
    assert training(same[0]) == training(same[1])
    # peft's own layers leave only attention to the tiles.
    dora = [planned(target, adapter={"method": "dora"}) for target in (tiles, plain)]
    assert dora[0].predicted_tokens_per_second == pytest.approx(dora[1].predicted_tokens_per_second, rel=0.01)


@pytest.mark.parametrize(
    ("target", "more", "worth"),
    [
        ("l4", {"train": {"max_steps": 100_000}}, True),
        ("l4", {"train": {"max_steps": 5}}, False),
        ("l4", {"train": {"max_steps": 100_000, "fast": False}}, False),
        ("cpu-16gb", {"train": {"max_steps": 100_000}}, False),
        ("cpu-16gb", {"train": {"max_steps": 100_000}, "adapter": {"dropout": 0.1}}, False),
        ("l4", {"train": {"max_steps": 100_000, "fast": {"norms": False, "gates": False, "rotary": False}}}, False),
        ("apple-m2-16gb", {"train": {"max_steps": 100_000}}, False),
    ],
)
def test_torch_compile_is_planned_where_it_saves_more_than_it_takes(
    small: str, target: str, more: dict[str, Any], worth: bool
) -> None:
    planned = cell(small, target, **more)
    assert planned.value("train.fast.compile") is worth
    assert lock(recipe(small, targets=[target], **more), planned).train.fast.compile is worth
    if worth:
        without = cell(small, target, **{**more, "train": {**more["train"], "fast": {"compile": False}}})
        assert (planned.predicted_tokens_per_second or 0) > (without.predicted_tokens_per_second or 0)
        assert (planned.predicted_seconds or 0) < (without.predicted_seconds or 0)


def test_compiling_is_counted_in_the_predicted_time(small: str) -> None:
    """Asked for where it does not pay, it costs what it takes."""
    asked, left = (
        cell(small, "l4", train={"max_steps": 5, "fast": {"compile": compile}}).predicted_seconds or 0
        for compile in (True, False)
    )
    assert asked > left + 10


def test_processes_on_a_cpu_share_its_memory(small: str) -> None:
    alone = make_plan(recipe(small, targets=["cpu-16gb"]))
    pair = make_plan(recipe(small, targets=["cpu-16gb"]), processes=2)
    assert pair.cells[0].budget_bytes == pytest.approx(alone.cells[0].budget_bytes / 2, abs=2)
    assert pair.cells[0].value("train.batch_rows") == alone.cells[0].value("train.batch_rows")


def test_importing_the_plan_does_not_import_torch() -> None:
    code = "import sys, hfadapt.plan.make; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_float32_base_in_4_bits_is_unpacked_to_what_the_target_has(small: str) -> None:
    from hfadapt.plan.search import product_dtype

    assert product_dtype(catalogue.target("t4"), True, "nf4", "float32") == "float32"
    assert product_dtype(catalogue.target("l4"), True, "nf4", "float32") == "bfloat16"
    assert product_dtype(catalogue.target("t4"), True, "nf4", "float16") == "float16"
    assert product_dtype(catalogue.target("cpu-16gb"), True, "nf4", "float32") == "float32"
    assert product_dtype(catalogue.target("cpu-arm-16gb"), True, "nf4", "float32") == "bfloat16"
    planned = cell(small, "t4", quant="nf4", dtype="float32", train=UNFUSED)
    assert (planned.value("dtype"), planned.fits) == ("float32", True)


def test_recomputing_is_never_planned_where_the_model_cannot(tmp_path: Path) -> None:
    model = write_config(tmp_path / "albert", model_type="albert", embedding_size=64, intermediate_size=1024)
    fields = {"task": "text-classification", "train": {"batch_rows": 512}, "data": {"max_length": 512}}
    plan = make_plan(recipe(model, targets=["cpu-8gb", "t4"], **fields))
    assert not any(one.value("train.checkpointing") for one in plan.cells)
    with pytest.raises(RequestError, match="no activation checkpointing"):
        make_plan(recipe(model, **{**fields, "train": {"checkpointing": True}}, targets=["t4"]))


@pytest.mark.parametrize(
    ("adapter", "epochs", "kept"),
    [
        ({"layers": 1}, 3, True),
        ({"layers": 3}, 2, True),
        ({"layers": 1}, 1, False),
        ({"layers": 4}, 3, False),
        ({}, 3, False),
        ({"method": "head"}, 3, True),
        ({"method": "full"}, 3, False),
    ],
)
def test_outputs_of_frozen_layers_are_kept_where_they_are_met_again(
    small: str, adapter: dict[str, Any], epochs: int, kept: bool
) -> None:
    known = {"d": record(100, rows=640)}
    found = cell(small, "h100", known, adapter=adapter, train={"epochs": epochs})
    assert found.value("train.fast.frozen_cache") is kept
    fields = {"epochs": epochs, "fast": {"frozen_cache": not kept}}
    other = cell(small, "h100", known, adapter=adapter, train=fields)
    assert other.value("train.fast.frozen_cache") is not kept
    assert found.predicted_seconds is not None
    assert other.predicted_seconds is not None
    if not kept:
        said = next(d.reason for d in other.decisions if d.field == "train.fast.frozen_cache")
        assert "without effect" in said or "nothing to keep" in said
    if kept:
        assert found.predicted_seconds < other.predicted_seconds, "it saves time"
        reason = next(d.reason for d in found.decisions if d.field == "train.fast.frozen_cache")
        assert f"used {epochs} times" in reason


def test_fewer_adapted_layers_take_less_time_and_memory(small: str) -> None:
    known = {"d": record(100, rows=640)}
    cells = [cell(small, "h100", known, adapter={"layers": count}) for count in (1, 2, 4)]
    assert [one.value("adapter.layers") for one in cells] == [1, 2, 4]
    assert cells[-1].value("adapter.layers") == cell(small, "h100").value("adapter.layers")
    seconds = [one.predicted_seconds or 0.0 for one in cells]
    peaks = [max(phase.total_bytes for phase in one.memory) for one in cells]
    assert seconds == sorted(seconds)
    assert peaks == sorted(peaks)


def test_layers_that_the_model_does_not_have_are_refused(small: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has 4 layers") as caught:
        cell(small, "h100", adapter={"layers": 5})
    assert "1 to 4" in str(caught.value)
    both = write_config(tmp_path / "bart", model_type="bart", d_model=64, encoder_layers=2, decoder_layers=2)
    with pytest.raises(RequestError, match="not one list of layers"):
        make_plan(recipe(both, task="text-classification", targets=["h100"], adapter={"layers": 1}))


@pytest.mark.parametrize(
    ("rows", "asked", "epochs"), [(200, {}, 8), (5000, {}, 2), (16, {}, 10), (200, {"epochs": 1}, 1)]
)
def test_few_pictures_are_met_more_often(tmp_path: Path, rows: int, asked: dict[str, Any], epochs: int) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "image_size": 32}
    model = write_config(tmp_path / "vit", **{**sizes, "model_type": "vit", "intermediate_size": 64})
    known = {"d": record(16, rows).model_copy(update={"form": "pictured", "labels": ("a", "b")})}
    found = cell(model, "h100", known, task="image-classification", train=asked)
    assert found.value("train.epochs") == epochs


@pytest.mark.parametrize(("rows", "epochs"), [(100, 10), (500, 4), (1000, 2), (5000, 2)])
def test_few_labelled_texts_are_met_more_often(small: str, rows: int, epochs: int) -> None:
    known = {"d": record(16, rows).model_copy(update={"form": "labelled", "labels": ("a", "b")})}
    assert cell(small, "h100", known, task="text-classification").value("train.epochs") == epochs


def test_layers_in_fused_kernels_get_no_adapter(tmp_path: Path) -> None:
    model = write_config(tmp_path / "mamba", model_type="mamba", state_size=8, hidden_size=64, num_hidden_layers=2)
    found = cell(model, "h100", quant="none", data={"max_length": 16}, train={"checkpointing": False, "fast": False})
    assert "out_proj" not in found.value("adapter.modules")
    assert "in_proj" in found.value("adapter.modules")
    with pytest.raises(RequestError, match="fused kernel"):
        cell(model, "h100", adapter={"modules": ["out_proj"]})


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 200])
def test_no_line_of_a_plan_exceeds_the_width(everywhere: Plan, width: int) -> None:
    for why in (False, True):
        assert max(map(len, as_text(everywhere.blocks(why), width).splitlines())) <= width


def test_a_plan_is_compact_and_tells_all_when_asked(everywhere: Plan) -> None:
    short, full = as_text(everywhere.blocks(), 100), as_text(everywhere.why().blocks(), 100)
    assert short.index("fits") < short.index("data.max_length")
    for detail in ("not true:", "peak in main memory", "Predicted memory"):
        assert detail in full
        assert detail not in short
    for decision in everywhere.cells[0].decisions:
        assert f"{decision.field}=" in full
        assert decision.field.rpartition(".")[2] in short


def test_what_cells_share_is_shown_once(small: str) -> None:
    domains = {name: {"source": f"{name}.jsonl"} for name in ("a", "b", "c")}
    plan = make_plan(recipe(small, domains=domains, targets=["l4"]))
    text = as_text(plan.blocks(), 100)
    assert text.count("data.max_length") == text.count("fits  ") == 1
    assert "a, b, c  fits" in text
    other = make_plan(recipe(small, domains=domains, targets=["l4"]), data={"b": record(93)})
    text = as_text(other.blocks(), 100)
    assert re.search(r"data.max_length +512 +a, c .*\n +96 +b", text), text
    several = as_text(make_plan(recipe(small, domains=domains, targets=["l4", "t4"])).blocks(), 100)
    assert re.search(r"^dtype +bfloat16 +l4 .*\n +float16 +t4 ", several, re.MULTILINE), several


def test_what_was_set_is_marked(small: str) -> None:
    text = as_text(make_plan(recipe(small, quant="nf4", targets=["l4"], adapter={"rank": 8})).blocks(), 100)
    assert "quant=nf4*" in text
    assert "rank=8*" in text
    assert "* set in the recipe" in text
    assert "alpha=16," in text


def test_everything_in_the_plan_is_in_its_json(everywhere: Plan) -> None:
    again = Plan.model_validate_json(everywhere.model_dump_json())
    assert again.model_dump_json() == everywhere.model_dump_json()
    h100 = next(one for one in again.cells if one.target == "h100")
    assert h100.merge is not None
    assert h100.merge.host_bytes > h100.memory[1].host_bytes > 0
