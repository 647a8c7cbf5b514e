"""Architectures with tiny random weights, from the plan to a card, or refused before training with the reason.

Nothing in hfadapt goes by their names; the few that run in the usual suite are one of each kind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Done, command, labelled, make_tokenizer, pairs, write_recipe, write_rows
from tokenizers.processors import TemplateProcessing

from hfadapt.records.evidence import DriftRecord
from hfadapt.run_folder import Cell

CLASSES, LM = "text-classification", "causal-lm"
SIZES: dict[str, Any] = {
    **{"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 64, "max_position_embeddings": 128},
}
GROUPED = {"num_key_value_heads": 2}
SIDES = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"state_size": 8, "expand": 2, "conv_kernel": 4, "time_step_rank": 4}
DEEPSEEK = {
    **{"first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
    **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16, "num_hidden_groups": 1},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "mpnet": {},
    "ernie": {},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    "big_bird": {"attention_type": "original_full"},
    "esm": {"mask_token_id": 3, "position_embedding_type": "rotary"},
    "longformer": {"attention_window": 8},
    "funnel": {"block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "num_decoder_layers": 0},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
    "modernbert": {},
    "eurobert": GROUPED,
    "convbert": {"embedding_size": 32, "head_ratio": 2},
    "squeezebert": {"embedding_size": 32},
    "ibert": {},
    "canine": {},
    "roformer": {"embedding_size": 32},
    "nystromformer": {"segment_means_seq_len": 64, "num_landmarks": 4},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 32, "num_feedforward_networks": 1},
    "bart": {"d_model": 32, **SIDES},
    "t5": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "num_decoder_layers": 2,
        "decoder_start_token_id": 0,
    },
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8},
    "phi3": GROUPED,
    "cohere": GROUPED,
    "smollm3": GROUPED,
    "granite": GROUPED,
    "starcoder2": GROUPED,
    "stablelm": GROUPED,
    "falcon": {"n_head": 4, "n_layer": 2, "new_decoder_architecture": False},
    "gpt2": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "codegen": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "openai-gpt": {"n_positions": 128},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "xglm": {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
    "mixtral": {**GROUPED, **EXPERTS},
    "qwen2_moe": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**GROUPED, **EXPERTS, "head_dim": 8},
    "deepseek_v3": DEEPSEEK,
    "mamba": MAMBA,
    "mamba2": {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "falcon_mamba": MAMBA,
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
}
TEXT = {**SIZES, **GROUPED, "head_dim": 8}
SEEING = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LINEAR_ATTENTION = {
    **{"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
STATES = {f"mamba_{name}": value for name, value in (("n_heads", 8), ("d_head", 8), ("d_state", 8), ("chunk_size", 8))}
RECENT: dict[str, dict[str, Any]] = {
    "gemma3_text": {**TEXT, "sliding_window": 16},
    "gemma3": {"text_config": TEXT, "vision_config": {**SEEING, "image_size": 28, "patch_size": 14}},
    "gemma4_text": TEXT,
    "gemma4": {"text_config": TEXT, "vision_config": {**SEEING, "head_dim": 8}},
    "qwen3_5_text": {**TEXT, **LINEAR_ATTENTION},
    "qwen3_next": {**TEXT, **EXPERTS, **LINEAR_ATTENTION, "shared_expert_intermediate_size": 16},
    "llama4_text": {**TEXT, "num_local_experts": 2, "intermediate_size_mlp": 64},
    "gpt_oss": {**TEXT, **EXPERTS, "sliding_window": 16},
    "phimoe": {**GROUPED, **EXPERTS},
    "deepseek_v2": DEEPSEEK,
    "glm4_moe": {**TEXT, **DEEPSEEK, "num_key_value_heads": 2},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {
        **{**GROUPED, **STATES, "num_local_experts": 0, "shared_intermediate_size": 64},
        "layer_types": ["mamba", "attention"],
    },
    "falcon_h1": {**TEXT, **STATES, "mamba_d_ssm": 64, "mamba_n_groups": 1},
    "nemotron_h": {
        **{**TEXT, "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 8},
        "layers_block_type": ["mamba", "attention"],
    },
    "olmo3": {**GROUPED, "sliding_window": 16},
    "ministral3": TEXT,
}
"""As language models alone."""
USUAL = {("gpt2", LM), ("mixtral", LM), ("mamba", LM), ("bart", CLASSES), ("bart", LM)}
USUAL |= {("roberta", CLASSES), ("xlm-roberta", CLASSES)}
"""One of each kind, in the usual suite; big_bird is trained whole there."""
REFUSED = {
    ("bart", LM): "are not in its weights",
    ("nystromformer", CLASSES): "cannot be run on these rows",
    **{
        (name, CLASSES): "cannot do this task"
        for name in ("cohere", "granite", "codegen", "xglm", "mamba", "mamba2", "falcon_mamba", "rwkv")
    },
}
"""What cannot be learned with a base, and a word of the reason."""

GRID = [
    *((name, fields, CLASSES) for name, fields in {**ENCODERS, **DECODERS}.items()),
    *((name, fields, LM) for name, fields in {**DECODERS, **RECENT, "bart": ENCODERS["bart"]}.items()),
]


def make_base(folder: Path, name: str, fields: dict[str, Any], task: str) -> None:
    """A checkpoint as people have it: decoders with their output layer, encoders without a head."""
    import transformers

    tokenizer = make_tokenizer()
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if name in ("bart", "t5"):
        end = tokenizer.eos_token, tokenizer.eos_token_id
        tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    own = {"funnel": {"num_hidden_layers"}, "xlnet": {"num_hidden_layers", "max_position_embeddings"}}.get(name, set())
    sizes = {key: value for key, value in SIZES.items() if key not in own}
    config = transformers.AutoConfig.for_model(name, **{**sizes, **fields, **ends})
    # A checkpoint says of which class it is; Funnel has two.
    config.architectures = ["FunnelModel"] if name == "funnel" else None
    torch.manual_seed(7)
    auto = transformers.AutoModelForCausalLM if name in DECODERS | RECENT else transformers.AutoModel
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(folder: Path, name: str, fields: dict[str, Any], task: str, drift: bool = False, **adapter: Any) -> Done:
    """`hfadapt run` on a base of this architecture."""
    make_base(folder / "base", name, fields, task)
    return trained(folder, task, drift, **adapter)


def trained(folder: Path, task: str, drift: bool = False, **adapter: Any) -> Done:
    """The same on the base that is there."""
    write_rows(folder / "rows.jsonl", labelled(72) if task == CLASSES else pairs(72))
    recipe = {
        "name": "t",
        "model": "./base",
        "task": task,
        "domains": {"d": "rows.jsonl"},
        "quant": "none",
        "dtype": "float32",
        "train": {"max_steps": 3, "batch_rows": 8, "micro_batch_rows": 8, "checkpointing": False},
        "adapter": adapter,
        "evaluate": {
            **{"security": False, "drift": drift, "transfer": False, "general_text": False},
            **({"generate_rows": 2} if task == "causal-lm" else {}),
            "resamples": 200,
        },
    }
    write_recipe(folder / "r.yaml", recipe)
    return command("run", "r.yaml", folder=folder)


@pytest.mark.parametrize(
    ("name", "fields", "task"),
    [
        pytest.param(*each, id=f"{each[0]}-{each[2]}", marks=() if (each[0], each[2]) in USUAL else pytest.mark.slow)
        for each in GRID
    ],
)
def test_to_a_card_or_refused_before_training(tmp_path, name, fields, task):
    done = run(tmp_path, name, fields, task)
    printed = done.out + done.err
    assert "Traceback" not in printed
    assert "bug in hfadapt" not in printed
    cell = tmp_path / "runs" / "t" / "d" / "this-machine"
    if (words := REFUSED.get((name, task))) is not None:
        assert done.code != 0, printed
        assert words in printed
        assert not (cell / "metrics.jsonl").exists()
        return
    assert done.code == 0, printed[-3000:]
    assert (cell / "README.md").is_file()
    if (cell / "adapter" / "adapter_config.json").exists():  # What has no linear layers is trained whole.
        modules = json.loads((cell / "adapter" / "adapter_config.json").read_text())
        assert not modules.get("target_parameters")


@pytest.mark.parametrize(("name", "task"), [("big_bird", CLASSES)])
def test_of_a_whole_model_what_takes_no_part_stays(tmp_path, name, task):
    """Its pooler gets no gradient."""
    done = run(tmp_path, name, ENCODERS[name], task, method="full")
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize("task", [CLASSES])
def test_a_head_of_which_the_base_brings_a_part(tmp_path, task):
    """As ModernBERT is published: with what predicts hidden words, of which classifiers keep a layer."""
    import transformers

    make_base(tmp_path / "base", "modernbert", ENCODERS["modernbert"], task)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "base")
    torch.manual_seed(7)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "base")
    done = trained(tmp_path, task)
    assert done.code == 0, done.out + done.err


def test_what_a_models_own_code_cannot_run_is_told(tmp_path):
    """CANINE looks at windows of four characters."""
    done = run(tmp_path, "canine", ENCODERS["canine"], CLASSES)
    assert done.code == 0, done.out + done.err
    done = command("predict", "runs/t/d/this-machine", "ab", folder=tmp_path)
    assert done.code == 2
    assert "CanineForSequenceClassification cannot be run on these" in done.err
    assert "bug in hfadapt" not in done.err


def test_a_form_that_no_library_can_run_is_left_out(tmp_path):
    """bitsandbytes multiplies 8 bits with no more than rows of tokens."""
    done = run(tmp_path, "deepseek_v2", RECENT["deepseek_v2"], LM, drift=True)
    assert done.code == 0, done.out + done.err
    found = Cell(tmp_path / "runs/t/d/this-machine").read(DriftRecord)
    assert found.skipped["merged-int8"].startswith("it cannot be run: RuntimeError: The size of tensor")
    assert {"merged-float32", "merged-nf4"} <= {each.name for each in found.variants}


def test_a_step_is_tried_before_training(tmp_path):
    """What a model's own code refuses is said in its words, before step 1."""
    done = run(tmp_path, "nystromformer", ENCODERS["nystromformer"], CLASSES)
    assert done.code == 1
    assert "NystromformerForSequenceClassification cannot be run on these rows" in done.out + done.err
    assert "step 1/" not in done.err
