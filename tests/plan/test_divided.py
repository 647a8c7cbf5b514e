"""Plans of a base whose layers are divided over the processes: when, why, and how much memory each of them needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_make import write_config

from hfadapt.core.errors import RequestError
from hfadapt.core.show import as_text
from hfadapt.models.facts import model_facts
from hfadapt.plan.make import lock, make_plan
from hfadapt.plan.memory.predict import Workload, gathered_bytes, held_bytes, predict, weight_bytes
from hfadapt.recipe.schema import Recipe
from hfadapt.records.plan import CellPlan

LLAMA_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
SHORT = {"train": {"batch_rows": 8, "fast": False}, "data": {"max_length": 64}}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_config(tmp_path_factory.mktemp("large"), **LLAMA_8B)


def planned(model: str, processes: int, **fields: Any) -> CellPlan:
    given = {"name": "divided", "model": model, "task": "causal-lm", "domains": {"one": {"source": "one.jsonl"}}}
    train = {**SHORT["train"], **fields.pop("train", {})}
    recipe = Recipe.model_validate({**given, "data": SHORT["data"], "train": train, **fields})
    return make_plan(recipe, processes=processes).cells[0]


def asked(model: str, **fields: Any) -> str:
    """What is said of a recipe that asks for it."""
    with pytest.raises(RequestError) as caught:
        planned(model, 2, train={"shard": True}, **fields)
    return str(caught.value)


def test_a_process_holds_its_share_of_the_layers(large: str) -> None:
    facts = model_facts(large, "causal-lm")
    for quant, bits in (("none", 16), ("nf4", 4)):
        whole = Workload(quant=quant, dtype="bfloat16")
        half = whole.model_copy(update={"shards": 2})
        saved = weight_bytes(facts, whole) - held_bytes(facts, half)
        assert saved == facts.linear_parameters * bits // 8 // 2
        assert held_bytes(facts, whole) == weight_bytes(facts, whole)
        assert gathered_bytes(facts, whole) == 0 < gathered_bytes(facts, half) < weight_bytes(facts, whole) // 4


def test_loading_one_in_another_dtype_holds_all_of_it() -> None:
    """SmolLM2-135M from bfloat16 to float32 over two processes: 886 MB were seen, and 899 in the evaluation."""
    facts = model_facts("sample:smollm2-135m", "causal-lm")
    work = Workload(dtype="float32", micro_batch_rows=2, length_tokens=64, labelled_tokens=8, shards=2)
    load, train, evaluate, _ = predict(facts, work)
    assert load.total_bytes == pytest.approx(886e6, rel=0.1)
    assert evaluate.total_bytes == pytest.approx(899e6, rel=0.1)
    assert train.total_bytes < load.total_bytes
    same = predict(facts.model_copy(update={"stored_dtype": "float32"}), work)[0]
    assert same.total_bytes < 0.8 * load.total_bytes


def test_where_layers_are_most_of_it_two_need_at_most_six_tenths(large: str) -> None:
    """Of many layers: three are whole at once, and the embeddings and the output layer of the 8B always."""
    facts = model_facts(large, "causal-lm").model_copy(update={"vocab_size": 32000})
    other = (128256 - 32000) * facts.hidden_size
    sizes = {"parameters": facts.parameters - 2 * other, "embedding_parameters": facts.embedding_parameters - other}
    facts = facts.model_copy(update={**sizes, "head_parameters": facts.head_parameters - other})
    linears = tuple(each.model_copy(update={"count": each.count * 2}) for each in facts.linears)
    more = {"layers": 64, "linears": linears, "parameters": facts.parameters + facts.linear_parameters}
    facts = facts.model_copy(update=more)
    work = Workload(quant="none", dtype="bfloat16", matmul_dtype="bfloat16", micro_batch_rows=1, length_tokens=64)
    work = work.model_copy(update={"labelled_tokens": 8, "evaluate_rows": 1, "device": "gpu", "rank": 8, "fast": False})
    whole, half = (predict(facts, work.model_copy(update={"shards": shards})) for shards in (1, 2))
    peaks = [max(phase.total_bytes for phase in phases) for phases in (whole, half)]
    assert 0.5 < peaks[1] / peaks[0] <= 0.6


def test_it_is_divided_only_where_it_does_not_fit_whole(large: str, tmp_path: Path) -> None:
    fields = {"targets": ("rtx-3060",), "dtype": "bfloat16", "quant": "none"}
    alone, four = planned(large, 1, **fields), planned(large, 4, **fields)
    assert not alone.fits
    assert not alone.value("train.shard")
    assert four.fits
    decision = four.decision("train.shard")
    assert decision.value
    assert "4 processes holds" in decision.reason
    assert [each.value for each in decision.rejected] == ["False"]
    assert "train.shard" in as_text(four_plan(large, fields))
    small = write_config(tmp_path / "small", hidden_size=64, intermediate_size=128)
    assert planned(small, 4, **fields).decision("train.shard").reason == "the base fits whole into each process"


def four_plan(model: str, fields: dict[str, Any]) -> Any:
    recipe = {"name": "divided", "model": model, "task": "causal-lm", "domains": {"one": {"source": "one.jsonl"}}}
    return make_plan(Recipe.model_validate({**recipe, **SHORT, **fields}), processes=4).blocks()


def test_quantised_whole_goes_before_divided(large: str) -> None:
    found = planned(large, 2, targets=("rtx-3060",))
    assert found.fits
    assert not found.value("train.shard")


def test_what_was_asked_for_is_done(tmp_path: Path) -> None:
    model = write_config(tmp_path / "small")
    one, two = (planned(model, count, train={"shard": True}) for count in (1, 2))
    assert "without effect in one process" in one.decision("train.shard").reason
    assert two.value("train.resident_layers") == 0
    never = planned(model, 2, train={"shard": False})
    assert two.peak.total_bytes != never.peak.total_bytes
    recipe = Recipe(name="a", model=model, task="causal-lm", domains={"one": {"source": "one.jsonl"}})
    assert lock(recipe, two).train.shard is True


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"quant": "int8"}, "its layers keep scales with their weights"),
        ({"adapter": {"method": "full"}}, "its layers are trained"),
        ({"adapter": {"method": "pissa"}, "quant": "none"}, "reads whole weights"),
    ],
)
def test_what_stands_against_it_is_said(tmp_path: Path, fields: dict[str, Any], why: str) -> None:
    said = asked(write_config(tmp_path / "small"), **fields)
    assert "the base cannot be divided over processes" in said
    assert why in said
    assert "train.shard" in said
