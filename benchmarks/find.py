"""The learning rate that is found, against the best of seven: points of the metric lost, and what finding it costs.

    python benchmarks/find.py                     cells that are not in find.json yet; the table
    python benchmarks/find.py --only NAME …       only these cells, again: "tweets, minilm-l6, seed 17"
    python benchmarks/find.py --rows 600 --test-rows 400   with fewer rows
    python benchmarks/find.py --table             only the table of the kept results

Each cell is eight trainings through the public API: one with `train.learning_rate: find`, and one for each rate of a
grid around the one that `auto` takes, an eighth of it to eight times. All are scored on the same test rows. Regret is
the best metric of the grid less that of the found rate; picking the best by test rows flatters the grid. The price is
the found training with all its tries, in trainings of the grid, in seconds and in steps.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from hfadapt import Cell, load_recipe, run
from hfadapt.hardware.processor import cpu_features, usable_cores
from hfadapt.records.search import SearchRecord

HERE = Path(__file__).parent
RESULTS = HERE / "find.json"
GRID = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
PAIRS: dict[tuple[str, str], dict[str, Any]] = {
    ("tweets", "minilm-l6"): {"task": "text-classification"},
    ("news", "minilm-l6"): {"task": "text-classification"},
    ("movies", "minilm-l6"): {"task": "text-classification"},
    ("tweets", "smollm2-135m"): {
        "task": "causal-lm",
        "template": {"prompt": "{text}\nSentiment:", "completion": " {label}"},
    },
}
CELLS = {f"{domain}, {model}, seed {seed}": (domain, model, seed) for seed in (17, 18, 19) for domain, model in PAIRS}
LEFT_OUT = {"security": False, "drift": False, "transfer": False, "general_text": False, "generate_rows": 0}


def trained(fields: dict[str, Any], rate: float | str, folder: Path) -> Cell:
    """The evaluated cell of one training."""
    (domain,) = fields["domains"]
    path = folder / "find.yaml"
    train = {**fields["train"], "learning_rate": rate}
    path.write_text(json.dumps({**fields, "train": train}), encoding="utf-8")
    return run(load_recipe(path), folder=folder / f"run-{rate}", until="evaluate").cell(domain, "this-machine")


def measure(domain: str, model: str, seed: int, rows: int, test_rows: int, folder: Path) -> dict[str, Any]:
    """Metrics and price of the found rate and of the grid."""
    fields: dict[str, Any] = {
        "name": "find",
        "model": f"sample:{model}",
        "domains": {domain: {"source": f"sample:vader/{domain}"}},
        "data": {"train_rows": rows, "validation": 200, "test": test_rows},
        "train": {"seed": seed},
        "evaluate": LEFT_OUT,
        **PAIRS[domain, model],
    }
    found = trained(fields, "find", folder)
    record, prior = found.read(SearchRecord), found.plan.cells[0].value("train.learning_rate")
    grid = {prior * factor: trained(fields, prior * factor, folder) for factor in GRID}
    metrics = {rate: cell.evaluation.metrics[0] for rate, cell in grid.items()}
    seconds = statistics.median(cell.train.seconds for cell in grid.values())
    own = found.evaluation.metrics[0]
    best = max(metric.adapter for metric in metrics.values())
    return {
        "rows": rows,
        "test_rows": test_rows,
        "steps": record.training_steps,
        "metric": own.name,
        "prior": prior,
        "found": found.lock.train.learning_rate,
        "value": own.adapter,
        "grid": {f"{rate:g}": metric.adapter for rate, metric in metrics.items()},
        "regret_points": 100 * (best - own.adapter),
        "prior_regret_points": 100 * (best - metrics[prior].adapter),
        "price_steps": 1 + record.further_steps / record.training_steps,
        "price_seconds": (found.train.seconds + record.further_seconds + record.compared_seconds) / seconds,
        "base": own.base,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown of what is kept."""
    lines = [
        "| cell | rows | metric | best of seven | found | regret, points | of `auto` | price, seconds | price, steps |",
        "|---|---:|---|---|---|---:|---:|---:|---:|",
    ]
    for name, each in results["cells"].items():
        rate, best = max(each["grid"].items(), key=lambda item: item[1])
        regret = f"{each['regret_points']:+.2f} | {each['prior_regret_points']:+.2f}"
        figures = f"{best:.3f} at {rate} | {each['value']:.3f} at {each['found']:g} | {regret}"
        price = f"{each['price_seconds']:.2f}x | {each['price_steps']:.2f}x"
        lines.append(f"| {name} | {each['rows']:,} | {each['metric']} | {figures} | {price} |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is missing or named, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, default=[])
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--test-rows", type=int, default=800)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cells": {}}
    todo = [] if asked.table else asked.only or [name for name in CELLS if name not in results["cells"]]
    for name in todo:
        with tempfile.TemporaryDirectory() as place:
            results["cells"][name] = measure(*CELLS[name], asked.rows, asked.test_rows, Path(place))
        results["command"] = shlex.join(["python", "benchmarks/find.py", f"--rows={asked.rows}"])
        results["machine"] = {"features": cpu_features(), "cores": usable_cores(), "load": os.getloadavg()[0]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(results["cells"][name]), file=sys.stderr)
    print(table(results))


if __name__ == "__main__":
    main()
