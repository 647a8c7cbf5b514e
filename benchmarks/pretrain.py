"""What an adaptation to texts without labels gains: base -> task against base -> pretrain -> task, at equal task steps.

    python benchmarks/pretrain.py --domain icd10 --rows 32 100 500 0 --seeds 1 2 3

Diagnoses are put into chapters (`sample:icd10/chapters`), categories of three characters kept in one split, or licence
texts into categories (`sample:licenses/texts`). The texts of all training rows are learned from, also where only some
of their labels are used (0 rows: all). A seed decides the split, the training rows, the texts and the start. The
interval of a difference is a paired bootstrap over the test rows of all seeds. Prints a table, writes pretrain.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyarrow import parquet

from hfadapt.core import registry, samples
from hfadapt.core.hashing import stable_hash
from hfadapt.core.progress import Silent
from hfadapt.data import read_split
from hfadapt.evaluate.metrics.rows import compare
from hfadapt.hardware.processes import World
from hfadapt.hardware.versions import versions
from hfadapt.models.attach import open_adapter
from hfadapt.models.manifest import load_base_of
from hfadapt.pipeline.run import run_recipe
from hfadapt.recipe.schema import Recipe
from hfadapt.records.pretrain import PretrainRecord
from hfadapt.run_folder import Cell
from hfadapt.tasks import Scores
from hfadapt.train import train_cells
from hfadapt.train.batches import padded

DOMAINS = {"icd10": ("icd10/chapters", "code", 48, 800), "licenses": ("licenses/texts", "key", 128, 300)}
"""Sample, what is kept in one split, most tokens of a row, test rows."""
STEPS = {32: 60, 100: 100, 500: 200, 0: 400}
"""Of the task, by labelled rows."""
ALLOWED = ["identifiers", "label-never-trained"]
"""With 21 chapters and 32 rows labels are rare."""
METRICS = ("accuracy", "macro_f1")
HOW: dict[str, Any] = {"resamples": 2000, "confidence": 0.95, "seed": 17}


def write_splits(domain: str, seed: int, folder: Path) -> None:
    """Rows of one group in one split: a fifth of the groups are test, a tenth validation."""
    sample, group, _, test = DOMAINS[domain]
    rows = parquet.read_table(samples.dataset(sample).path).to_pylist()
    rows.sort(key=lambda row: stable_hash(seed, row["text"]))
    shares = {"test": (0.0, 0.2, test), "validation": (0.2, 0.3, 100), "train": (0.3, 1.0, len(rows))}
    folder.mkdir(parents=True, exist_ok=True)
    for split, (low, high, most) in shares.items():
        own = [row for row in rows if low <= stable_hash(seed, row[group]) / 2**64 < high][:most]
        lines = (json.dumps({"text": row["text"], "label": row["label"]}) + "\n" for row in own)
        (folder / f"{split}.jsonl").write_text("".join(lines))


def recipe_of(options: argparse.Namespace, rows: int, seed: int, folder: Path) -> Recipe:
    """The recipe of one size and seed."""
    place = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    pretrain = {"sources": [place["train"]], "max_steps": options.steps, "batch_rows": 32}
    pretrain |= {"objective": options.objective}
    if options.rate:
        pretrain["learning_rate"] = options.rate
    return Recipe.model_validate(
        {
            "name": f"{options.domain}-{rows}-{seed}",
            "model": options.model,
            "task": "text-classification",
            "domains": {"one": {"source": place["train"], "validation": place["validation"], "test": place["test"]}},
            "data": {
                "seed": seed,
                "max_length": DOMAINS[options.domain][2],
                "allow": ALLOWED,
                **({"train_rows": rows} if rows else {}),
            },
            "dtype": "float32",
            "pretrain": pretrain,
            "train": {"seed": seed, "max_steps": STEPS.get(rows, 200), "evaluate_every_steps": 10_000},
        }
    )


def score(cell: Cell) -> Scores:
    """The cell's adapter, read back from disk, on its test rows."""
    lock, labels, device = cell.lock, cell.data.labels, torch.device("cpu")
    task = registry.task(lock.task)
    base = load_base_of({cell.adapter: labels}, lock, device)
    model = open_adapter(base, cell.adapter, lock.adapter.method, device).eval()
    rows = read_split(cell.folder, "test")
    examples = task.encode(rows, base.tokenizer, max_length=lock.data.max_length, labels=labels)
    with torch.inference_mode():
        return task.score(model, examples, lambda part: padded(task, part, base.pad_token_id, device, 32))


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry a size and seed; the adaptation to texts is done once a seed."""
    found = []
    for seed in options.seeds:
        folder = options.work / options.domain / str(seed)
        write_splits(options.domain, seed, folder)
        weights, before, learning = None, None, 0.0
        for rows in options.rows:
            recipe = recipe_of(options, rows, seed, folder)
            begun = time.process_time()
            run = run_recipe(
                recipe, folder=folder / recipe.name, until="plan" if weights else "pretrain", progress=Silent()
            )
            cell = run.cell("one", "this-machine")
            if cell.state.error:
                raise SystemExit(cell.state.error)
            if weights is None:
                weights, before = cell.begun("pretrain"), cell.read(PretrainRecord)
                learning = (time.process_time() - begun) / 60
            # In a cell's own folder, as `hfadapt run` has it.
            texts = cell.folder / "pretrain" / weights.name
            if texts != weights:
                texts.parent.mkdir(exist_ok=True)
                shutil.copy(weights, texts)
            world = World((), folder / "trackers")
            entry: dict[str, Any] = {
                "domain": options.domain,
                "rows": rows,
                "seed": seed,
                "steps": STEPS.get(rows, 200),
            }
            starts: dict[str, Path | None] = {"without": None, "with": texts}
            for name, start in starts.items():
                started = time.process_time()
                train_cells([cell], world, starts=[start], progress=Silent())
                entry[f"{name}_minutes"] = (time.process_time() - started) / 60
                entry[name] = score(cell)
            assert before is not None
            entry["texts_minutes"] = learning
            entry["train_rows"] = cell.data.splits["train"]
            entry["pretrain"] = before.model_dump(mode="json", exclude={"versions", "memory", "compute"})
            accuracy = {name: compare("accuracy", None, entry[name], **HOW).adapter for name in ("without", "with")}
            print(f"seed {seed}, {rows or 'all'} rows: accuracy {accuracy}", flush=True)
            found.append(entry)
    return found


def together(parts: list[Scores]) -> Scores:
    """The rows of several seeds one after the other."""
    ends = np.cumsum([len(each.losses) for each in parts])
    numbers = [range(end - len(each.losses), end) for end, each in zip(ends, parts, strict=True)]
    return Scores.joined(list(zip(numbers, parts, strict=True)))


def main() -> None:
    """Measures, prints the table and writes pretrain.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domain", choices=sorted(DOMAINS), default="icd10")
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--objective", default="auto")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, help="of learning the texts; by default the plan's")
    parser.add_argument("--model", default="sample:minilm-l6")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain-benchmark"))
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("pretrain.json"))
    options = parser.parse_args()
    found = measure(options)
    print("| rows | metric | task alone | texts, then task | difference | by seed | CPU minutes, task | texts |")
    print("|---:|---|---:|---:|---:|---|---:|---:|")
    table = []
    for rows in options.rows:
        own = [entry for entry in found if entry["rows"] == rows]
        for metric in METRICS:
            alone, both = (together([entry[name] for entry in own]) for name in ("without", "with"))
            result = compare(metric, alone, both, **HOW)
            seeds = [compare(metric, entry["without"], entry["with"], **HOW).delta for entry in own]
            minutes = np.mean([entry["with_minutes"] for entry in own])
            before = np.mean([entry["texts_minutes"] for entry in own])
            low, high = result.low, result.high
            print(
                f"| {rows or own[0]['train_rows']} | {metric} | {result.base:.3f} | {result.adapter:.3f} | "
                f"{result.delta:+.3f} [{low:+.3f}, {high:+.3f}] | {', '.join(f'{each:+.3f}' for each in seeds)} | "
                f"{minutes:.1f} | {before:.1f} |"
            )
            table.append({"rows": rows or own[0]["train_rows"], "by_seed": seeds, **result.model_dump(mode="json")})
    kept = [{key: value for key, value in entry.items() if key not in ("with", "without")} for entry in found]
    machine = versions("cpu").model_dump(mode="json")
    what = {"domain": options.domain, "objective": options.objective, "model": options.model}
    known = json.loads(options.to.read_text()) if options.to.exists() else {}
    known[f"{options.domain}/{found[0]['pretrain']['objective']}"] = {
        **what,
        "table": table,
        "runs": kept,
        "versions": machine,
    }
    options.to.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
