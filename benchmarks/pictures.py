"""What LoRA gains over a linear probe on pictures: two models, digits of two collections, solar cells.

    python benchmarks/pictures.py                 cells that are not in pictures.json yet; the table, which docs/ show
    python benchmarks/pictures.py --only NAME …   only these cells, again: "EfficientNet-Lite0, digits/uci"
    python benchmarks/pictures.py --table         only the table of the kept results

Each cell is one run through the public API with what the plan decides by itself, the same rows for probe and adapter;
accuracy on test rows with the 95 % paired bootstrap. Of the evaluation, only what does not touch these is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hfadapt import load_recipe, run
from hfadapt.hardware.processor import cpu_features, usable_cores

HERE = Path(__file__).parent
RESULTS = HERE / "pictures.json"
MODELS = {"DINOv2-small": "sample:dinov2-small", "EfficientNet-Lite0": "sample:efficientnet-lite0"}
DIGITS = {"train_rows": 200, "validation": 100, "test": 600}
DEFECTS = {"train_rows": 200, "validation": 100, "test": 400}
CELLS: dict[str, tuple[str, str, dict[str, int]]] = {
    **{f"{model}, {name}": (model, name, DIGITS) for model in MODELS for name in ("digits/uci", "digits/mnist")},
    "EfficientNet-Lite0, solar/mono": ("EfficientNet-Lite0", "solar/mono", DEFECTS),
}
LEFT_OUT = {"security": False, "drift": False, "transfer": False}


def cpu_seconds() -> float:
    """Of this process and its finished children, which other programs on the machine do not change much."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(name: str) -> dict[str, Any]:
    """Runs a cell and returns what its records say."""
    model, source, data = CELLS[name]
    recipe = {
        "name": "pictures",
        "model": MODELS[model],
        "task": "image-classification",
        "domains": {"pictures": f"sample:{source}"},
        "data": data,
        "evaluate": LEFT_OUT,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps(recipe))
        started, used = time.perf_counter(), cpu_seconds()
        cell = run(load_recipe(path), folder=Path(folder) / "run").cell("pictures", "this-machine")
        seconds, used = time.perf_counter() - started, cpu_seconds() - used
        evaluation, train = (json.loads((cell.folder / f"{each}.json").read_text()) for each in ("evaluation", "train"))
        lock = cell.lock
    metric = next(one for one in evaluation["metrics"] if one["name"] == "accuracy")
    return {
        "cell": name,
        "data": data,
        **{key: metric[key] for key in ("base", "adapter", "delta", "low", "high", "rows")},
        "epochs": lock.train.epochs,
        "learning_rate": lock.train.learning_rate,
        "positions": lock.data.max_length,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used, 1),
        "training_seconds": round(train["seconds"], 1),
        "predicted_training_seconds": round(train["predicted_seconds"] or 0, 1),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or usable_cores()),
        "processor": train["versions"]["processor"],
        "features": cpu_features(),
        "versions": {"hfadapt": train["versions"]["hfadapt"], **train["versions"]["packages"]},
        "command": shlex.join(["python", "benchmarks/pictures.py", *sys.argv[1:]]),
    }


def table(results: list[dict[str, Any]]) -> str:
    """A line for each cell."""
    lines = [
        "| model, pictures | training rows | epochs | linear probe | LoRA | gain [95 % interval] | cell, CPU time |",
        "|---|---:|---:|---:|---:|---|---:|",
    ]
    for one in results:
        rows, gain = one["data"]["train_rows"], f"{one['delta']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
        accuracy = f"{one['base']:.3f} | {one['adapter']:.3f}"
        minutes = f"{one['cpu_seconds'] / 60:.1f} min"
        lines.append(f"| {one['cell']} | {rows} | {one['epochs']:g} | {accuracy} | {gain} | {minutes} |")
    machines = dict.fromkeys(f"{one['processor']} ({', '.join(one['features'])})" for one in results)
    tested = " or ".join(str(rows) for rows in sorted({one["rows"] for one in results}))
    return "\n".join([*lines, "", f"Accuracy on {tested} test rows, measured on {'; '.join(machines)}."])


def main() -> None:
    """Runs, keeps and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of the kept results")
    parser.add_argument(
        "--only", nargs="+", choices=CELLS, metavar="CELL", help="these cells, also where they are kept"
    )
    asked = parser.parse_args()
    kept = {one["cell"]: one for one in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    for name in () if asked.table else asked.only or [name for name in CELLS if name not in kept]:
        kept[name] = measure(name)
        ordered = [kept[each] for each in CELLS if each in kept]
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(one) for one in ordered) + "\n]\n")
        print(
            "{cell}: {base:.3f} -> {adapter:.3f}, {delta:+.3f} [{low:+.3f}, {high:+.3f}]".format(**kept[name]),
            flush=True,
        )
    print(table([kept[each] for each in CELLS if each in kept]))


if __name__ == "__main__":
    main()
