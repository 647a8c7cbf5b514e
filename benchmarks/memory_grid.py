"""Measures peak memory of every phase on a grid of models and settings, and compares it with the prediction.

    python benchmarks/memory_grid.py                   measure the grid, keep memory_grid.json, print the error table
    python benchmarks/memory_grid.py --table           print the table of the kept results with today's predictor
    python benchmarks/memory_grid.py --device cuda     the same grid with torch's allocator statistics, and 1B and 8B

Each point is one child process that goes through hfadapt's own loading, training, scoring and saving on random weights.
On a CPU the peak is the kernel's high-water mark of the resident set (proc(5), clear_refs 5) above what the process
held before it loaded the base; on a GPU it is what torch allocated, with what it reserved beside it.
memory_grid_without_tiles.json is the same grid as measured when training did not run on AMX tiles; `--table --out`
prints its table. It has no merging, which worked another way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_suffix(".json")

MODELS: dict[str, dict[str, Any]] = {
    "llama-60m": {
        "task": "causal-lm",
        "dtype": "bfloat16",
        "config": {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    },
    "bert-40m": {
        "task": "text-classification",
        "dtype": "float32",
        "config": {
            "model_type": "bert",
            "vocab_size": 30522,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "max_position_embeddings": 512,
        },
    },
    "modernbert-100m": {
        "task": "text-classification",
        "dtype": "float32",
        "config": {
            "model_type": "modernbert",
            "vocab_size": 50368,
            "hidden_size": 768,
            "intermediate_size": 1152,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "pad_token_id": 0,
        },
    },
}
OTHER_MODELS: dict[str, dict[str, Any]] = {
    "qwen3-90m": {
        "task": "causal-lm",
        "dtype": "bfloat16",
        "config": {
            "model_type": "qwen3",
            "vocab_size": 50304,
            "hidden_size": 640,
            "intermediate_size": 1920,
            "num_hidden_layers": 10,
            "num_attention_heads": 10,
            "num_key_value_heads": 5,
            "head_dim": 64,
            "max_position_embeddings": 2048,
        },
    },
    "distilbert-60m": {
        "task": "text-classification",
        "dtype": "float32",
        "config": {"model_type": "distilbert", "vocab_size": 30522, "n_layers": 6, "dim": 768, "hidden_dim": 3072},
    },
}
"""Architectures of which no point is fitted."""
GPU_MODELS: dict[str, dict[str, Any]] = {
    "llama-1b": {
        "task": "causal-lm",
        "dtype": "bfloat16",
        "config": {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
        },
    },
    "llama-8b": {
        "task": "causal-lm",
        "dtype": "bfloat16",
        "config": {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    },
}
QUANTS = ("none", "int8", "nf4")
LENGTHS = (64, 128, 256)
ROWS = (2, 8)
LABELLED_TOKENS = 8
TOKEN_IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
LABELS = ("negative", "neutral", "positive")
RANK = 16


def grid(models: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Points in a fixed order: each (model, quant, checkpointing) at all lengths, the batches in turn; then
    with dropout, and with a third of the layers adapted."""
    number = 0
    for model in models:
        for quant in QUANTS:
            for checkpointing in (False, True):
                for i in range(1 if model in OTHER_MODELS else 3):
                    rows, tokens = ROWS[(i + number // 2) % 2], LENGTHS[(i + number) % 3]
                    fitted = model not in OTHER_MODELS and (number + i) % 2 == 0
                    yield {
                        "model": model,
                        "quant": quant,
                        "checkpointing": checkpointing,
                        "rows": rows,
                        "tokens": tokens,
                        "fitted": fitted,
                    }
                number += 1
    for model in models:
        common = {"model": model, "quant": "none", "checkpointing": False, "fitted": False}
        yield {**common, "rows": 8, "tokens": 128, "dropout": 0.1}
    for model in (name for name in models if name in MODELS):
        third = models[model]["config"]["num_hidden_layers"] // 3
        for quant in ("none", "nf4"):
            common = {"model": model, "quant": quant, "checkpointing": False, "fitted": False}
            yield {**common, "rows": 8, "tokens": 128, "layers": third}


# --- one point, in a child process -----------------------------------------------------------------------------------


def make_model(folder: Path, about: dict[str, Any]) -> None:
    """Writes a model with random weights and a small tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, PreTrainedTokenizerFast

    from hfadapt.core import registry

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    task = registry.task(about["task"])
    config = AutoConfig.for_model(**{**about["config"], **TOKEN_IDS})
    config.update(task.model_options(LABELS))
    model = getattr(transformers, task.auto_class).from_config(config)
    model.to(getattr(torch, about["dtype"])).save_pretrained(folder)


def lock_of(point: dict[str, Any], about: dict[str, Any], folder: str) -> Any:
    """The lock that trains this point."""
    from hfadapt.recipe.schema import Lock

    return Lock.model_validate(
        {
            "name": "grid",
            "model": folder,
            "task": about["task"],
            "domains": {"random": {"source": "sample:vader/tweets"}},
            "quant": point["quant"],
            "dtype": about["dtype"],
            "adapter": {
                "method": "lora",
                "rank": RANK,
                "alpha": 2 * RANK,
                "dropout": point.get("dropout", 0.0),
                "modules": ["all-linear"],
                "layers": point.get("layers"),
            },
            "data": {"max_length": point["tokens"], "packing": False},
            "train": {
                "epochs": 1.0,
                "max_steps": 3,
                "learning_rate": 1e-4,
                "schedule": "constant",
                "warmup_ratio": 0.0,
                "batch_rows": 2 * point["rows"],
                "micro_batch_rows": point["rows"],
                "weight_decay": 0.0,
                "evaluate_every_steps": 2,
                "checkpoint_every_steps": 2,
                "optimizer": "adamw",
                "checkpointing": point["checkpointing"],
            },
            "evaluate": {"metrics": ["perplexity"], "batch_rows": 2 * point["rows"]},
        }
    )


def measure(
    point: dict[str, Any],
    about: dict[str, Any],
    folder: str,
    device_name: str,
    ready: Callable[[int], None] = lambda floor_bytes: None,
) -> dict[str, Any]:
    """Peaks of all phases in bytes, through hfadapt's own stages; `ready` is called before the base is loaded."""
    import random

    import numpy as np
    import torch
    from accelerate import Accelerator

    from hfadapt.core import registry
    from hfadapt.fast import product_dtype
    from hfadapt.hardware.peak_memory import PeakMemory, release_memory, resident_bytes
    from hfadapt.modalities import IGNORED, Example
    from hfadapt.models.attach import attach_adapter, save_adapter, trainable
    from hfadapt.models.load import load_base
    from hfadapt.models.merge import merged_dtype, open_merged, write_merged
    from hfadapt.train.batches import padded
    from hfadapt.train.job import Job
    from hfadapt.train.loop import Loop

    accelerator = Accelerator(cpu=device_name == "cpu")
    device = accelerator.device
    lock, task = lock_of(point, about, folder), registry.task(about["task"])
    draw = random.Random(1)
    tokens, vocabulary = point["tokens"], about["config"]["vocab_size"]

    def example(row: int) -> Example:
        ids = tuple(draw.randrange(3, vocabulary) for _ in range(tokens))
        labels = (row % len(LABELS),)
        if about["task"] == "causal-lm":
            labels = (IGNORED,) * (tokens - LABELLED_TOKENS) + ids[-LABELLED_TOKENS:]
        return Example({"input_ids": ids}, labels, tokens, tokens, row)

    examples = [example(row) for row in range(4 * point["rows"])]
    # Libraries that a run has imported by then, and the thread pools of the first product.
    warm = torch.nn.Linear(64, 64).to(device)
    warm(torch.ones(64, 64, device=device)).sum().backward()
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401

    release_memory()
    floor = resident_bytes()
    ready(floor)
    peaks = {}
    with PeakMemory(device, floor) as peak:
        base = load_base(lock, LABELS, device)
        model = attach_adapter(base, lock)
    peaks["load"] = peak.peak_bytes
    with PeakMemory(device, floor) as peak, tempfile.TemporaryDirectory() as cell:
        products = product_dtype(lock.dtype, device)
        job = Job(lock.train, examples, examples[:2], Path(cell), "", trainable(model))
        frozen = "layers" in point
        options = {"frozen_cache": frozen, "packing": True}
        Loop.of([lock], base, model, [job], accelerator, products, **options).run()
    peaks["train"] = peak.peak_bytes
    reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
    del job.optimizer
    model.zero_grad(set_to_none=True)
    release_memory()
    saved = Path(folder) / "adapter"
    with PeakMemory(device, floor) as peak:
        save_adapter(model, base, lock, saved)
    peaks["save"] = peak.peak_bytes
    release_memory()
    with PeakMemory(device, floor) as peak, torch.inference_mode():
        scores = task.score(model.eval(), examples, lambda rows: padded(task, rows, 0, device, 2 * point["rows"]))
        assert np.isfinite(scores.losses).all()
    peaks["evaluate"] = peak.peak_bytes
    del model, base, job, scores
    release_memory()
    with PeakMemory(device, floor) as peak, tempfile.TemporaryDirectory() as merged:
        write_merged(open_merged(lock, LABELS, saved, merged_dtype(lock), device), lock, Path(merged))
    peaks["merge"] = peak.peak_bytes
    return {"peaks": peaks, "reserved_bytes": reserved}


# --- predictions and the table ---------------------------------------------------------------------------------------


def predicted(
    point: dict[str, Any], about: dict[str, Any], device: str, tiles: bool, without: Sequence[str]
) -> dict[str, int]:
    """What hfadapt predicts for this point, from the config alone; `tiles` is whether training runs on AMX tiles,
    `without` which parts of the fast path there were none of yet."""
    from transformers import AutoConfig

    from hfadapt.core import registry
    from hfadapt.models.facts import build, describe
    from hfadapt.plan.memory import predict

    task = registry.task(about["task"])
    config = AutoConfig.for_model(**{**about["config"], **TOKEN_IDS})
    config.dtype = about["dtype"]
    for key, value in task.model_options(LABELS).items():
        setattr(config, key, value)
    facts = describe(build(config, task.auto_class, point["model"]), point["model"], about["task"], len(LABELS), config)
    workload = predict.Workload(
        quant=point["quant"],
        dtype=about["dtype"],
        matmul_dtype="bfloat16",
        rank=RANK,
        dropout="dropout" in point,
        layers=point.get("layers"),
        checkpointing=point["checkpointing"],
        micro_batch_rows=point["rows"],
        length_tokens=point["tokens"],
        labelled_tokens=LABELLED_TOKENS,
        evaluate_rows=2 * point["rows"],
        tiles=tiles,
        without=tuple(without),
        device="cpu" if device == "cpu" else "gpu",
    )
    phases = (*predict.predict(facts, workload), predict.predict_merge(facts, workload))
    return {phase.phase: phase.total_bytes for phase in phases}


def errors(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a point and phase: measured, predicted, and the prediction's relative error."""
    models = {**MODELS, **OTHER_MODELS, **GPU_MODELS}
    rows = []
    for result in results["points"]:
        point = result["point"]
        about = result.get("about") or models[point["model"]]
        guess = predicted(point, about, results["device"], results["tiles"], results.get("without", ()))
        for phase, measured in result["peaks"].items():
            rows.append(
                {
                    **point,
                    "phase": phase,
                    "measured": measured,
                    "predicted": guess[phase],
                    "error": guess[phase] / measured - 1,
                }
            )
    return rows


def summary(rows: list[dict[str, Any]], margin: float = 0.1) -> dict[str, float]:
    """Median and 95th percentile of |error|, and false "fits": measured above a budget that the margin calls enough."""
    size = sorted(abs(row["error"]) for row in rows)
    return {
        "points": len(rows),
        "median": statistics.median(size),
        "p95": size[min(len(size) - 1, int(0.95 * len(size)))],
        "worst": size[-1],
        "false_fits": sum(row["measured"] * (1 - margin) > row["predicted"] for row in rows),
    }


def print_table(results: dict[str, Any]) -> None:
    """Every train point, then the error by phase for fitted and held-out points."""
    rows = errors(results)
    print(f"{'model':16} {'quant':5} ckpt  rows x tokens  {'measured':>9} {'predicted':>9}  error  used")
    for row in rows:
        if row["phase"] == "train":
            print(
                f"{row['model']:16} {row['quant']:5} {'on ' if row['checkpointing'] else 'off'}  "
                f"{row['rows']:4} x {row['tokens']:5}  {row['measured'] / 2**20:9.0f} {row['predicted'] / 2**20:9.0f}"
                f"  {row['error']:+6.1%}  {'fit' if row['fitted'] else 'held out'}"
            )
    for phase in ("load", "train", "evaluate", "save", "merge"):
        for fitted in (True, False):
            chosen = [row for row in rows if row["phase"] == phase and row["fitted"] == fitted]
            if chosen:
                s = summary(chosen)
                print(
                    f"{phase:9} {'fitted' if fitted else 'held out':8}: {s['points']:.0f} points, median "
                    f"{s['median']:.1%}, p95 {s['p95']:.1%}, worst {s['worst']:.1%}, false fits {s['false_fits']:.0f}"
                )


def main() -> None:
    """Measures, keeps and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--table", action="store_true", help="only print the table of the kept results")
    parser.add_argument("--only", help="only points of this model")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    out = options.out or (RESULTS if options.device == "cpu" else RESULTS.with_name("memory_grid_cuda.json"))
    models = {**MODELS, **OTHER_MODELS} if options.device == "cpu" else {**MODELS, **GPU_MODELS}
    if options.child:
        asked = json.loads(options.child)
        about = asked.get("about") or models[asked["point"]["model"]]
        print(json.dumps(measure(asked["point"], about, asked["folder"], options.device)))
        return
    if not options.table:
        run_grid(models, options.device, options.only, out)
    print_table(json.loads(out.read_text()))


def on_tiles(device: str) -> bool:
    """Whether products of training run on AMX tiles here."""
    from hfadapt.fast import compiled

    return device == "cpu" and compiled.tiles() is not None


def run_point(
    point: dict[str, Any], about: dict[str, Any], folder: Path, device: str = "cpu"
) -> subprocess.CompletedProcess[str]:
    """Measures one point in a process of its own; its last line of output is the answer."""
    from hfadapt.hardware import allocator

    child = json.dumps({"point": point, "about": about, "folder": str(folder)})
    command = [sys.executable, str(Path(__file__).resolve()), "--device", device, "--child", child]
    return subprocess.run(command, capture_output=True, text=True, env=allocator.environment())


def run_grid(models: dict[str, dict[str, Any]], device: str, only: str | None, out: Path) -> None:
    """Measures every point that `out` does not hold yet, in one child process each."""
    from hfadapt.hardware.versions import versions

    results: dict[str, Any] = {"device": device, "tiles": on_tiles(device), "versions": versions(device).model_dump()}
    results["points"] = []
    if out.exists():
        kept = json.loads(out.read_text())
        if kept["points"] and kept["tiles"] != results["tiles"]:
            sys.exit(
                f"{out} was measured {'on' if kept['tiles'] else 'without'} tiles, this machine differs: name --out"
            )
        if kept["points"] and kept.get("without"):
            sys.exit(f"{out} was measured without {', '.join(kept['without'])}, which there is now: name --out")
        results["points"] = kept["points"]
    done = [{**result["point"], "fitted": None} for result in results["points"]]
    with tempfile.TemporaryDirectory() as temporary:
        for point in grid(models):
            if {**point, "fitted": None} in done or (only and point["model"] != only):
                continue
            folder = Path(temporary) / point["model"]
            if not folder.exists():
                make_model(folder, models[point["model"]])
            answer = run_point(point, models[point["model"]], folder, device)
            if answer.returncode != 0:
                print(f"failed: {point}\n{answer.stderr[-2000:]}", file=sys.stderr)
                continue
            results["points"].append({"point": point, **json.loads(answer.stdout.splitlines()[-1])})
            out.write_text(json.dumps(results, indent=1) + "\n")
            print(f"{len(results['points'])}: {point} {results['points'][-1]['peaks']}", flush=True)


if __name__ == "__main__":
    main()
