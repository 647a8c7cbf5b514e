"""Which learning rate is best after few and after many steps: what `train.learning_rate: auto` is made from.

    python benchmarks/rates.py                    trainings that are not in rates.json yet; the table
    python benchmarks/rates.py --only tweets …    of these domains
    python benchmarks/rates.py --table            only the table of the kept results

Each training is one rate, number of steps and seed, through the public API, with everything else as `auto` has it. All
of a domain are scored on the same test rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from find import LEFT_OUT, PAIRS, trained

from hfadapt.hardware.processor import cpu_features, usable_cores

RESULTS = Path(__file__).with_name("rates.json")
TEST_ROWS = 300
SERIES: dict[tuple[str, str], dict[str, Any]] = {
    **PAIRS,
    ("licenses", "minilm-l6"): {"task": "multi-label-classification"},
    ("digits", "dinov2-small"): {"task": "image-classification"},
}
SOURCES = {"digits": "sample:digits/mnist", "licenses": "sample:licenses/notices"}
STEPS, SEEDS = (60, 120, 240), (17, 18)
RATES = {
    "minilm-l6": (5e-4, 1e-3, 2e-3, 4e-3),
    "dinov2-small": (5e-4, 1e-3, 2e-3, 4e-3),
    "smollm2-135m": (2.5e-4, 5e-4, 1e-3, 2e-3),
}
EPOCHS = 2


def name_of(domain: str, model: str, steps: int, rate: float, seed: int, method: str) -> str:
    """Of one training among the results."""
    return f"{domain}, {model}, {method}, {steps} steps, {rate:g}, seed {seed}"


def measure(domain: str, model: str, steps: int, rate: float, seed: int, method: str) -> dict[str, float]:
    """The metric of one training, and of the base."""
    fields = {
        "name": "rates",
        "model": f"sample:{model}",
        "domains": {domain: {"source": SOURCES.get(domain, f"sample:vader/{domain}")}},
        "data": {"train_rows": steps * 16 // EPOCHS, "validation": 50, "test": TEST_ROWS},
        "train": {"seed": seed, "epochs": EPOCHS, "max_steps": steps, "batch_rows": 16, "evaluate_every_steps": steps},
        "adapter": {"method": method},
        "evaluate": LEFT_OUT,
        **SERIES[domain, model],
    }
    with tempfile.TemporaryDirectory() as place:
        cell = trained(fields, rate, Path(place))
        metric, seconds = cell.evaluation.metrics[0], cell.train.seconds
    assert metric.base is not None
    return {"value": round(metric.adapter, 6), "base": round(metric.base, 6), "seconds": round(seconds, 1)}


def table(cells: dict[str, dict[str, float]]) -> str:
    """Markdown: the mean over seeds of every rate, by domain, model and steps."""
    series: dict[str, dict[float, list[float]]] = {}
    for name, each in cells.items():
        *which, rate, _ = name.split(", ")
        series.setdefault(", ".join(which), {}).setdefault(float(rate), []).append(each["value"])
    rates = sorted({rate for found in series.values() for rate in found})
    head = " | ".join(f"{rate:g}" for rate in rates)
    lines = [f"| trained | {head} |", "|---|" + "---:|" * len(rates)]
    for name, found in series.items():
        values = [f"{statistics.fmean(found[rate]):.3f}" if rate in found else "" for rate in rates]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({domain for domain, _ in SERIES}), default=[])
    parser.add_argument("--model", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--rates", nargs="+", type=float)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cells": {}}
    todo = [
        (domain, model, steps, rate, seed, asked.method)
        for seed in asked.seeds
        for steps in asked.steps
        for domain, model in SERIES
        if model in asked.model and domain in (asked.only or [domain])
        for rate in asked.rates or RATES[model]
    ]
    for each in [] if asked.table else todo:
        if (name := name_of(*each)) in results["cells"]:
            continue
        results["cells"][name] = measure(*each)
        results["machine"] = {"features": cpu_features(), "cores": usable_cores(), "load": os.getloadavg()[0]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, results["cells"][name], file=sys.stderr)
    print(table(results["cells"]))


if __name__ == "__main__":
    main()
