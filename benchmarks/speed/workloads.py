"""What is measured: workloads, tools with their settings, and the environments they need. Data only.

The effective batch is the same for every tool of a workload, whatever its micro-batch. `order` is `same` where a tool
is fed hfadapt's batches of similar length, row by row, so that its losses can be compared step by step, and `own`
where the tool shuffles or packs by itself, as its users have it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TWEETS = {"tweets": {"source": "sample:vader/tweets"}}
PROMPT = "Text: {text}\nSentiment (negative, neutral or positive):"


@dataclass(frozen=True)
class Workload:
    """Rows, model and training settings that all tools share.

    Args:
        recipe: The hfadapt recipe that prepares rows and plan. `LONG` as a source is the generated file of long rows.
        batch_rows: The effective batch.
        rows: Training rows, a multiple of `batch_rows`, so that every step has a full batch.
        random_config: Architecture to fill with random weights, instead of a model that exists.
        device: What it is made for.
    """

    recipe: dict[str, Any]
    batch_rows: int
    rows: int
    validation: int
    test: int
    epochs: int
    learning_rate: float
    tools: tuple[str, ...]
    random_config: dict[str, Any] | None = None
    device: str = "cpu"
    what: str = ""


def _llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, tied: bool, vocabulary: int) -> dict:
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


LONG = {"texts": {"source": "LONG"}}
GPU_TOOLS = ("hfadapt", "trl-nf4", "trl-nf4-packed", "unsloth", "axolotl", "axolotl-packed")
LONG_RECIPE = {"task": "causal-lm", "domains": LONG, "data": {"max_length": 2048}}

WORKLOADS: dict[str, Workload] = {
    "smollm2-tweets": Workload(
        recipe={
            "model": "sample:smollm2-135m",
            "task": "causal-lm",
            "domains": TWEETS,
            "template": {"prompt": PROMPT, "completion": " {label}"},
        },
        batch_rows=32,
        rows=800,
        validation=100,
        test=400,
        epochs=1,
        learning_rate=5e-4,
        tools=("hfadapt", "trl-nf4", "trl-bf16", "trl-packed", "hf-default", "hf-32", "litgpt", "llamafactory"),
        what="SmolLM2-135M, 800 tweets as prompt → completion",
    ),
    "smollm2-long": Workload(
        recipe={"model": "sample:smollm2-135m", **LONG_RECIPE},
        batch_rows=8,
        rows=32,
        validation=4,
        test=8,
        epochs=1,
        learning_rate=5e-4,
        tools=("hfadapt", "trl-nf4", "trl-bf16", "trl-packed", "hf-default", "litgpt", "llamafactory"),
        what="SmolLM2-135M, 32 texts of 512 to 2,048 tokens, every token a label",
    ),
    "minilm-tweets": Workload(
        recipe={"model": "sample:minilm-l6", "task": "text-classification", "domains": TWEETS},
        batch_rows=32,
        rows=2496,
        validation=200,
        test=400,
        epochs=2,
        learning_rate=5e-4,
        tools=("hfadapt", "hf-default", "hf-32", "hf-grouped", "hf-grouped-bf16"),
        what="MiniLM-L6, 2,496 tweets in 3 classes, 2 epochs",
    ),
    "llama-1b": Workload(
        recipe={"model": "RANDOM", "quant": "nf4", **LONG_RECIPE},
        batch_rows=8,
        rows=256,
        validation=8,
        test=16,
        epochs=1,
        learning_rate=2e-4,
        tools=GPU_TOOLS,
        random_config=_llama(2048, 8192, 16, 32, 8, True, 128256),
        device="cuda",
        what="1B Llama architecture, random weights, nf4, texts of 512 to 2,048 tokens",
    ),
    "llama-8b": Workload(
        recipe={"model": "RANDOM", "quant": "nf4", **LONG_RECIPE},
        batch_rows=8,
        rows=128,
        validation=8,
        test=8,
        epochs=1,
        learning_rate=2e-4,
        tools=GPU_TOOLS,
        random_config=_llama(4096, 14336, 32, 32, 8, False, 128256),
        device="cuda",
        what="8B Llama architecture, random weights, nf4, texts of 512 to 2,048 tokens",
    ),
    "tiny": Workload(
        recipe={"model": "RANDOM", **LONG_RECIPE, "data": {"max_length": 256}},
        batch_rows=4,
        rows=16,
        validation=4,
        test=4,
        epochs=1,
        learning_rate=1e-3,
        tools=("hfadapt", "hf-default"),
        random_config=_llama(64, 128, 2, 4, 2, True, 49152),
        device="none",
        what="A toy that tries the harness itself",
    ),
}


@dataclass(frozen=True)
class Tool:
    """One tool with one setting.

    Args:
        runner: File beside this one that trains with it.
        environment: Key of `ENVIRONMENTS`.
        options: For the runner; `micro` is capped at the workload's effective batch.
        default: Whether these are the tool's own defaults (apart from what all share), not its best settings.
        note: For the table's legend.
    """

    runner: str
    environment: str
    options: dict[str, Any] = field(default_factory=dict)
    default: bool = False
    note: str = ""


TOOLS: dict[str, Tool] = {
    "hfadapt": Tool("run_hfadapt.py", "hfadapt", {"order": "same"}, True, "as the plan decides"),
    "trl-nf4": Tool(
        "run_trl.py",
        "trl",
        {"quant": "nf4", "dtype": "float32", "micro": 8, "order": "own"},
        True,
        "TRL as `trl sft --use_peft --load_in_4bit` has it: batch 8, gradient checkpointing, bf16 autocast",
    ),
    "trl-bf16": Tool(
        "run_trl.py",
        "trl",
        {"dtype": "bfloat16", "micro": 32, "order": "same", "checkpointing": False},
        note="TRL, bf16 base, batch 32, no checkpointing, rows of similar length together",
    ),
    "trl-packed": Tool(
        "run_trl.py",
        "trl",
        {"dtype": "bfloat16", "packing": 512, "order": "own", "checkpointing": False},
        note="TRL, bf16 base, packed to 512 tokens or the longest row (bfd, padding-free), no checkpointing",
    ),
    "trl-32": Tool(
        "run_trl.py",
        "trl",
        {"dtype": "float32", "autocast": False, "micro": 32, "order": "same", "checkpointing": False},
        note="TRL, float32 base, batch 32, no checkpointing, rows of similar length together",
    ),
    "trl-packed-32": Tool(
        "run_trl.py",
        "trl",
        {"dtype": "float32", "autocast": False, "packing": 512, "order": "own", "checkpointing": False},
        note="TRL, float32 base, packed to 512 tokens or the longest row (bfd, padding-free), no checkpointing",
    ),
    "trl-bf16-checkpointed": Tool(
        "run_trl.py",
        "trl",
        {"dtype": "bfloat16", "micro": 32, "order": "same"},
        note="TRL, bf16 base, batch 32, gradient checkpointing, rows of similar length together",
    ),
    "trl-packed-1024": Tool(
        "run_trl.py",
        "trl",
        {"dtype": "bfloat16", "packing": 1024, "order": "own", "checkpointing": False},
        note="TRL, bf16 base, packed to 1,024 tokens",
    ),
    "hf-default": Tool(
        "run_hf.py",
        "hf",
        {"dtype": "float32", "micro": 8, "order": "own"},
        True,
        "HF Trainer + peft, float32, batch 8, its own shuffle",
    ),
    "hf-32": Tool(
        "run_hf.py",
        "hf",
        {"dtype": "float32", "micro": 32, "order": "own"},
        note="HF Trainer + peft, float32, batch 32, its own shuffle",
    ),
    "hf-grouped": Tool(
        "run_hf.py",
        "hf",
        {"dtype": "float32", "micro": 32, "order": "same"},
        note="HF Trainer + peft, float32, batch 32, rows of similar length together",
    ),
    "hf-grouped-bf16": Tool(
        "run_hf.py",
        "hf",
        {"dtype": "float32", "autocast": True, "micro": 32, "order": "same"},
        note="the same under bf16 autocast",
    ),
    "hf-bf16": Tool(
        "run_hf.py",
        "hf",
        {"dtype": "bfloat16", "autocast": True, "micro": 32, "order": "same"},
        note="HF Trainer + peft, bf16 base, batch 32, rows of similar length together",
    ),
    "llamafactory": Tool(
        "run_llamafactory.py",
        "llamafactory",
        {"dtype": "bfloat16", "micro": 32, "order": "same"},
        note="LLaMA-Factory, bf16 base, batch 32",
    ),
    "litgpt": Tool(
        "run_litgpt.py",
        "litgpt",
        {"dtype": "bfloat16", "micro": 32, "order": "same"},
        note="LitGPT, bf16-true, batch 32",
    ),
    "trl-nf4-packed": Tool(
        "run_trl.py",
        "trl",
        {"quant": "nf4", "dtype": "bfloat16", "packing": 2048, "order": "own", "checkpointing": False},
        note="TRL, nf4 base, packed to 2,048 tokens (bfd, padding-free), no checkpointing",
    ),
    "unsloth": Tool(
        "run_unsloth.py",
        "unsloth",
        {"quant": "nf4", "dtype": "bfloat16", "micro": 8, "order": "own"},
        True,
        "unsloth's FastLanguageModel with TRL's trainer, its own checkpointing and padding-free batches",
    ),
    "axolotl": Tool(
        "run_axolotl.py",
        "axolotl",
        {"quant": "nf4", "dtype": "bfloat16", "micro": 8, "order": "own", "checkpointing": True},
        True,
        "axolotl, nf4 base, batch 8, gradient checkpointing as in its QLoRA examples, LoRA kernels as it turns them on",
    ),
    "axolotl-packed": Tool(
        "run_axolotl.py",
        "axolotl",
        {"quant": "nf4", "dtype": "bfloat16", "packing": True, "order": "own", "checkpointing": False},
        note="axolotl, nf4 base, packed to one line per effective batch, LoRA and Liger kernels, no checkpointing",
    ),
}

_HF = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "safetensors")

ENVIRONMENTS: dict[str, dict[str, Any]] = {
    # `constraints`: whether constraints.txt of this repository pins the versions; `remove`: taken out again, on a CPU.
    "hfadapt": {"packages": ("-e", "."), "constraints": True},
    "hf": {"packages": _HF, "constraints": True},
    "trl": {"packages": (*_HF, "trl==1.16.0"), "constraints": True},
    "litgpt": {"packages": ("torch==2.13.0", "litgpt==0.5.13"), "constraints": False},
    "llamafactory": {
        "packages": ("torch==2.13.0", "llamafactory==0.9.5"),
        "constraints": False,
        # Builds that do not fit a CPU's torch, for images and sound: importing them ends the process.
        "remove": ("torchvision", "torchaudio"),
    },
    "unsloth": {"packages": ("unsloth==2026.10.9",), "constraints": False},
    "axolotl": {"packages": ("torch==2.13.0", "axolotl==0.19.0"), "constraints": False},
}

LORA = {"method": "lora", "rank": 16, "alpha": 32.0, "dropout": 0.0, "modules": ["all-linear"]}
SEEDS = (17, 18, 19)
