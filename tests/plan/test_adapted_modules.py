"""Which layers a plan adapts: those that take part in the loss, and nothing that a recipe names by mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM

from hfadapt.adapters import Context, adapted_modules
from hfadapt.adapters.lora import KIND as LORA
from hfadapt.core.errors import RequestError
from hfadapt.models.facts import load_config, model_facts
from hfadapt.plan.make import make_plan
from hfadapt.plan.memory.predict import Workload, adapted_layers, trained_parameters
from hfadapt.plan.modules import adaptable
from hfadapt.recipe.schema import LockedAdapter, Recipe

SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"intermediate_size": 64},
    "llama": {"intermediate_size": 64, "num_key_value_heads": 2},
    "gpt2": {},
    "ibert": {"intermediate_size": 64},
    "big_bird": {"intermediate_size": 64},
    "esm": {"intermediate_size": 64, "mask_token_id": 1, "position_embedding_type": "rotary"},
    "bart": {
        "d_model": 32,
        **{
            f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 64))
        },
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    },
    "mamba": {"state_size": 8},
    "mixtral": {"intermediate_size": 64, "num_key_value_heads": 2, "num_local_experts": 2},
    "deepseek_v3": {
        **{"intermediate_size": 64, "moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_routed_experts": 4},
        **{"n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
    },
}
GROUPED = {**SIZES, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2}
SEEING = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONFIGS |= {
    "gemma3": {"text_config": GROUPED, "vision_config": {**SEEING, "image_size": 28, "patch_size": 14}},
    "gemma4": {"text_config": GROUPED, "vision_config": {**SEEING, "head_dim": 8}},
    "gemma3n_text": {
        **{"intermediate_size": [64, 64], "num_key_value_heads": 2, "head_dim": 8, "laurel_rank": 4},
        **{"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 8, "altup_num_inputs": 2},
        **{"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
        "activation_sparsity_pattern": [0.0, 0.0],
    },
    "llama4_text": {**GROUPED, "intermediate_size_mlp": 64},
}
CLASSES, LM = "text-classification", "causal-lm"


def folder(tmp_path: Path, kind: str) -> str:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **SIZES, **CONFIGS[kind]}))
    return str(tmp_path)


ONE_STEP = {"quant": "none", "train": {"checkpointing": False}}
"""Leaves one kind of step to be traced for a plan."""


def recipe(model: str, task: str, **more: Any) -> Recipe:
    fields = {"name": "r", "model": model, "task": task, "domains": {"d": {"source": "d.csv"}}, **more}
    return Recipe.model_validate(fields)


@pytest.mark.parametrize(("kind", "task"), [("bert", CLASSES), ("llama", LM), ("llama", CLASSES), ("gpt2", LM)])
def test_all_are_adapted_where_all_take_part(tmp_path, kind, task):
    assert adaptable(model_facts(folder(tmp_path, kind), task)).names == ("all-linear",)


@pytest.mark.parametrize(
    ("kind", "task", "without", "names"),
    [
        ("big_bird", CLASSES, {"pooler"}, {"query", "key", "value", "dense"}),
        ("esm", CLASSES, {"regression"}, {"query", "key", "value", "dense"}),
        pytest.param("mamba", LM, {"dt_proj", "out_proj"}, {"in_proj", "x_proj"}, marks=pytest.mark.slow),
        (
            "bart",
            LM,
            {f"encoder_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")},
            {"fc1", "fc2", *(f"self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj"))},
        ),
        ("mixtral", LM, {"experts"}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("mixtral", CLASSES, {"experts"}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_what_takes_no_part_is_left_out(tmp_path, kind, task, without, names):
    found = adaptable(facts := model_facts(folder(tmp_path, kind), task))
    assert set(found.names) == names
    assert {name for name, _ in found.left_out} == without
    plan = make_plan(recipe(facts.model, task, **ONE_STEP)).cells[0]
    assert set(plan.value("adapter.modules")) == names
    reason = next(each.reason for each in plan.decisions if each.field == "adapter.modules")
    assert all(name in reason for name in without)


def test_names_that_peft_takes_for_experts_are_left_out(tmp_path):
    """The first layer and the shared expert are of linear layers, but these have the names of the experts."""
    found = adaptable(model_facts(folder(tmp_path, "deepseek_v3"), LM))
    assert not {"gate_proj", "up_proj", "down_proj"} & {name.rpartition(".")[2] for name in found.names}
    assert {"q_a_proj", "kv_b_proj", "o_proj"} <= set(found.names)
    assert {"gate_proj", "up_proj", "down_proj", "experts"} <= {name for name, _ in found.left_out}


@pytest.mark.parametrize(
    ("kind", "names", "without"),
    [
        ("gemma3", {f"language_model.layers.*.self_attn.{part}_proj" for part in "qkv"}, {"out_proj", "fc1"}),
        # What holds a linear layer is called as one of the language model.
        ("gemma4", {f"language_model.layers.*.self_attn.{part}_proj" for part in "qkvo"}, {"linear"}),
        ("gemma3n_text", {"altup_projections.*", "q_proj"}, {"correction_coefs"}),
        ("llama4_text", {"q_proj", "o_proj"}, {"router"}),
    ],
)
def test_layers_of_a_language_model_are_told_from_others(tmp_path, kind, names, without):
    """Those that see pictures have the same names; some layers are called by a number alone, and some are routers."""
    found = adaptable(facts := model_facts(folder(tmp_path, kind), LM))
    assert names <= {*found.names}
    assert without <= {name for name, _ in found.left_out}
    planned = Workload(length_tokens=8, rank=4, modules=found.names, dtype="float32")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(facts.model))
    settings = LockedAdapter(method="lora", rank=4, alpha=4, dropout=0.0, modules=found.names)
    adapted = LORA.attach(model, settings, Context((), (), "CAUSAL_LM", facts.model))
    layers = [path for path, module in adapted.named_modules() if isinstance(module, LoraLayer)]
    assert len(layers) == adapted_layers(facts, planned)
    assert not any("vision" in path or "feed_forward.router" in path for path in layers)
    assert trained_parameters(facts, planned) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_a_model_without_linear_layers_is_trained_whole(tmp_path):
    """I-BERT has layers of its own kind, which adapters cannot stand beside."""
    found = adaptable(facts := model_facts(folder(tmp_path, "ibert"), CLASSES))
    assert (found.names, found.reason) == ((), "no layer can have an adapter beside it")
    assert make_plan(recipe(facts.model, CLASSES, **ONE_STEP)).cells[0].value("adapter.method") == "full"
    with pytest.raises(RequestError) as caught:
        make_plan(recipe(facts.model, CLASSES, adapter={"method": "lora"}, **ONE_STEP))
    assert "no layer can have an adapter beside it" in str(caught.value)
    assert "full, head" in str(caught.value)


def test_of_the_last_layers_those_alone(tmp_path):
    """Where endings hold the number of a layer, peft is given paths."""
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"q": nn.Linear(2, 2)}) for _ in range(12))})
    settings = LockedAdapter(method="lora", rank=4, alpha=4, dropout=0.0, modules=("layers.*.q",), layers=2)
    context = Context((), (), None, "", layers=12, layers_name="layers")
    model = nn.ModuleDict({"body": model})
    assert adapted_modules(settings, context, model) == {"target_modules": ["body.layers.10.q", "body.layers.11.q"]}


def test_longer_endings_are_counted(tmp_path):
    facts = model_facts(folder(tmp_path, "bart"), LM)

    def count(*modules: str) -> int:
        return adapted_layers(facts, Workload(length_tokens=8, rank=4, modules=modules))

    assert count("all-linear") == 20
    assert count("q_proj") == 4
    assert count("self_attn.q_proj") == 2


@pytest.mark.parametrize(
    ("kind", "task", "asked", "words"),
    [
        ("bert", CLASSES, ["qurey"], "did you mean 'query'?"),
        ("bert", CLASSES, ["query", "valeu"], "did you mean 'value'?"),
        ("bert", CLASSES, ["zzzz"], "leave adapter.modules: auto"),
        ("big_bird", CLASSES, ["pooler"], "take no part in the loss"),
        ("bart", LM, ["q_proj"], "self_attn.q_proj"),
        ("bart", LM, ["all-linear"], "self_attn.q_proj"),
        ("mamba", LM, ["in_proj", "dt_proj"], "x_proj"),
        ("mixtral", LM, ["all-linear"], "experts"),
        ("mixtral", LM, ["w1"], "has no such layers"),
    ],
)
def test_a_name_that_cannot_be_adapted_is_refused(tmp_path, kind, task, asked, words):
    with pytest.raises(RequestError) as error:
        make_plan(recipe(folder(tmp_path, kind), task, adapter={"modules": asked}))
    assert "adapter.modules" in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [("bert", ["attention.self.query", "value"]), ("bert", ["word_embeddings"]), ("bart", ["self_attn.q_proj"])],
)
def test_names_that_there_are_may_be_asked_for(tmp_path, kind, asked):
    task = LM if kind == "bart" else CLASSES
    plan = make_plan(recipe(folder(tmp_path, kind), task, adapter={"modules": asked}, **ONE_STEP))
    assert list(plan.cells[0].value("adapter.modules")) == asked


def test_planning_prints_no_traceback(tmp_path, caplog, capfd):
    for kind in ("mixtral", "deepseek_v3"):
        make_plan(recipe(folder(tmp_path, kind), LM))
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())
