"""Which transformers architectures the plan understands, and how true it is for some that nothing was fitted on.

    python benchmarks/architectures.py             trace a step of every architecture in the list, print what was found
    python benchmarks/architectures.py --measure   train some of them, keep architectures.json, print the error table
    python benchmarks/architectures.py --table     the error table of the kept results with today's predictor

Models are made from configs with random weights. No measured point is ever used for fitting.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import memory_grid

RESULTS = Path(__file__).with_suffix(".json")

SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "head_dim": 16}
GPT = {"vocab_size": 512, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 1024}
EXPERTS = {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT = {
    **SMALL,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
}
T5 = {"vocab_size": 512, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 4, "num_heads": 4}


def each(names: Sequence[str], fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The same fields for several model types."""
    return dict.fromkeys(names, fields)


LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    **each(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "granite"), GROUPED
    ),
    **each(("cohere", "cohere2", "glm", "glm4", "starcoder2", "ministral", "helium", "ernie4_5"), GROUPED),
    **each(("phi", "gpt_neox", "olmo", "olmo2", "olmo3", "persimmon", "biogpt"), SMALL),
    **each(("gpt2", "gpt_bigcode", "openai-gpt"), GPT),
    **each(("gptj", "codegen"), {**GPT, "rotary_dim": 8}),
    "gpt_neo": {"vocab_size": 512, "hidden_size": 64, "num_layers": 4, "num_heads": 4}
    | {"attention_types": [[["global", "local"], 2]]},
    "opt": {**SMALL, "ffn_dim": 128, "word_embed_proj_dim": 64},
    "bloom": {"vocab_size": 512, "hidden_size": 64, "n_layer": 4, "n_head": 4},
    "falcon": {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4},
    "mpt": {"vocab_size": 512, "d_model": 64, "n_layers": 4, "n_heads": 4},
    "nemotron": {**SMALL, "num_key_value_heads": 2},
    "stablelm": {**SMALL, "num_key_value_heads": 4},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "gpt_oss": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {**GROUPED, "num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_moe": EXPERTS,
    "olmoe": EXPERTS,
    "deepseek_v2": LATENT,
    "deepseek_v3": {**LATENT, "n_group": 1, "topk_group": 1},
    "lfm2": {**GROUPED, "full_attn_idxs": [1, 3]},
    "mamba": {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 4, "state_size": 8},
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    **each(("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "modernbert", "ernie", "megatron-bert"), SMALL),
    **each(("nystromformer", "big_bird", "data2vec-text", "convbert", "layoutlm", "fnet"), SMALL),
    **each(("electra", "albert", "roformer"), {**SMALL, "embedding_size": 64}),
    "distilbert": {"vocab_size": 512, "dim": 64, "hidden_dim": 128, "n_layers": 4, "n_heads": 4},
    "deberta": {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "deberta-v2": {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 32}
    | {"share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "rembert": {**SMALL, "input_embedding_size": 32, "output_embedding_size": 32},
    "mobilebert": {**SMALL, "embedding_size": 32, "intra_bottleneck_size": 32},
    "squeezebert": {**SMALL, "embedding_size": 64},
    "xlm": {"vocab_size": 512, "emb_dim": 64, "n_layers": 4, "n_heads": 4},
    "t5": {**T5, "decoder_start_token_id": 0},
    "mt5": T5,
    "bart": {"vocab_size": 512, "d_model": 64, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 128}
    | {"decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{name: LANGUAGE_MODELS[name] for name in ("llama", "gpt2", "qwen3", "gemma2", "opt", "mixtral", "falcon")},
}

DECODER = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
}
ENCODER = {**DECODER, "intermediate_size": 2048, "max_position_embeddings": 520}


def point(
    model: str, task: str, config: dict[str, Any], quant: str = "none", rows: int = 4, checkpointing: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One configuration to measure: the point, and what is said about its model."""
    dtype = "bfloat16" if task == "causal-lm" else "float32"
    about = {"task": task, "dtype": dtype, "config": {"model_type": model, **config}}
    asked = {"quant": quant, "checkpointing": checkpointing, "rows": rows, "tokens": 256, "fitted": False}
    return {"model": model, **asked}, about


LM, CLASSIFY = "causal-lm", "text-classification"
MEASURED = (
    point("mistral", LM, {**DECODER, "num_key_value_heads": 2}),
    point("gpt2", LM, {"vocab_size": 32000, "n_embd": 512, "n_layer": 8, "n_head": 8}),
    point("gpt_neox", LM, DECODER, rows=2),
    point("opt", LM, {**DECODER, "ffn_dim": 2048, "word_embed_proj_dim": 512}, quant="int8"),
    point("gemma2", LM, {**DECODER, "num_key_value_heads": 4, "head_dim": 64}, quant="nf4"),
    point("qwen2", LM, {**DECODER, "num_key_value_heads": 4}, rows=8, checkpointing=True),
    point("phi3", LM, {**DECODER, "num_key_value_heads": 4}, quant="nf4", checkpointing=True, rows=8),
    point("olmo2", LM, DECODER),
    point("bloom", LM, {"vocab_size": 32000, "hidden_size": 512, "n_layer": 8, "n_head": 8}),
    point(
        "mixtral",
        LM,
        {**DECODER, "intermediate_size": 512, "num_hidden_layers": 4, "num_local_experts": 4, "num_key_value_heads": 4},
    ),
    point("roberta", CLASSIFY, ENCODER),
    point("electra", CLASSIFY, {**ENCODER, "embedding_size": 128}, quant="nf4"),
    point(
        "deberta-v2",
        CLASSIFY,
        {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 256}
        | {"share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    point("albert", CLASSIFY, {**ENCODER, "embedding_size": 128}),
    point("mpnet", CLASSIFY, ENCODER, quant="int8"),
)


def trace_all(only: list[str]) -> int:
    """Prints a line for each architecture, task and storage; the number of those that could not be traced."""
    from transformers import AutoConfig

    from hfadapt.core import registry
    from hfadapt.models.facts import build, describe
    from hfadapt.plan.memory import predict

    failed = 0
    for task, table in ((LM, LANGUAGE_MODELS), (CLASSIFY, CLASSIFIERS)):
        kind = registry.task(task)
        for model, fields in table.items():
            if only and model not in only:
                continue
            config = AutoConfig.for_model(model, **fields)
            for key, value in kind.model_options(memory_grid.LABELS).items():
                setattr(config, key, value)
            facts = describe(build(config, kind.auto_class, model), model, task, 3, config)
            words = []
            for quant in ("none", "nf4"):
                dtype = "bfloat16" if task == LM else "float32"
                work = predict.Workload(quant=quant, dtype=dtype, matmul_dtype="bfloat16")
                started = time.perf_counter()
                traced = predict.is_traced(facts, work)
                failed += not traced
                words.append(f"{quant} {'traced' if traced else 'NOT TRACED'} {time.perf_counter() - started:.1f} s")
            layers = f"{facts.layers} layers, pattern {facts.pattern}"
            print(f"{task:20} {model:14} {layers:30} {'; '.join(words)}", flush=True)
    print(f"{failed} not traced")
    return failed


def measure_all(only: list[str]) -> None:
    """Measures every point that is not kept yet."""
    from hfadapt.hardware.versions import versions

    results: dict[str, Any] = {"device": "cpu", "tiles": memory_grid.on_tiles("cpu")}
    results |= {"versions": versions("cpu").model_dump(), "points": []}
    if RESULTS.exists():
        kept = json.loads(RESULTS.read_text())
        if kept["points"] and kept["tiles"] != results["tiles"]:
            sys.exit(f"{RESULTS} was measured {'on' if kept['tiles'] else 'without'} tiles, this machine differs")
        results["points"] = kept["points"]
    for asked, about in MEASURED:
        if (only and asked["model"] not in only) or any(asked == kept["point"] for kept in results["points"]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            memory_grid.make_model(Path(folder), about)
            answer = memory_grid.run_point(asked, about, Path(folder))
        if answer.returncode != 0:
            print(f"failed: {asked}\n{answer.stderr[-2000:]}", file=sys.stderr, flush=True)
            continue
        results["points"].append({"point": asked, "about": about, **json.loads(answer.stdout.splitlines()[-1])})
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{asked['model']}: {results['points'][-1]['peaks']}", flush=True)


def main() -> None:
    """Traces, or measures and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="only these architectures")
    options = parser.parse_args()
    if not (options.measure or options.table):
        sys.exit(1 if trace_all(options.only) else 0)
    if options.measure:
        measure_all(options.only)
    memory_grid.print_table(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
