"""What keeping the outputs of frozen layers saves: whole trainings with and without, in turn, as a user starts them.

    python benchmarks/frozen_cache.py            run, keep frozen_cache.json, print the table, which docs/ show
    python benchmarks/frozen_cache.py --table    only the table of the kept results

Each run is `hfadapt run` of a recipe of this repository in a process of its own; seconds are those of the training loop
(train.json), with the collecting of the outputs. A row without a second time has no frozen layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "speed"))

from table import ratio_interval  # noqa: E402 - its folder was just added

RESULTS = HERE / "frozen_cache.json"
SEEDS = (17, 29, 43)
QUICK = ("evaluate.security=false", "evaluate.drift=false", "evaluate.transfer=false", "evaluate.general_text=false")

WORKLOADS: dict[str, tuple[str, list[str]]] = {
    "MiniLM, all 6 layers, 5 epochs": ("sentiment", ["train.epochs=5"]),
    "MiniLM, the last 2 layers, 5 epochs": ("sentiment", ["train.epochs=5", "adapter.layers=2"]),
    "MiniLM, the head, 10 epochs": (
        "sentiment",
        ["train.epochs=10", "adapter.method=head", "train.learning_rate=0.005"],
    ),
    "SmolLM2-135M, all 30 layers, 3 epochs": ("sentiment-llm", ["train.epochs=3", "quant=none"]),
    "SmolLM2-135M, the last 10 layers, 3 epochs": (
        "sentiment-llm",
        ["train.epochs=3", "quant=none", "adapter.layers=10"],
    ),
}


def run(workload: str, kept: bool, seed: int) -> dict[str, Any]:
    """One training and evaluation, and what its records say."""
    recipe, settings = WORKLOADS[workload]
    with tempfile.TemporaryDirectory() as runs:
        words = [*settings, f"train.seed={seed}", f"train.fast.frozen_cache={str(kept).lower()}", *QUICK]
        command = [sys.executable, "-m", "hfadapt", "run", f"recipes/{recipe}.yaml", "--domain", "tweets"]
        done = subprocess.run([*command, *words, "--runs", runs], capture_output=True, text=True, cwd=HERE.parent)
        if done.returncode:
            raise SystemExit(done.stderr)
        cell = Path(runs) / recipe / "tweets/this-machine"
        train = json.loads((cell / "train.json").read_text())
        evaluation = json.loads((cell / "evaluation.json").read_text())
    scores = {metric["name"]: metric["adapter"] for metric in evaluation["metrics"]}
    return {
        "workload": workload,
        "kept": kept,
        "seed": seed,
        "seconds": train["seconds"],
        "tokens": train["tokens"],
        "frozen_layers": train["frozen_layers"],
        "final_loss": train["final_loss"],
        "accuracy": scores.get("accuracy", scores.get("label_accuracy")),
        "peak_bytes": train["memory"]["train"]["measured_peak_bytes"],
        "predicted_peak_bytes": train["memory"]["train"]["predicted_peak_bytes"],
        "predicted_seconds": train["predicted_seconds"],
    }


def table(results: list[dict[str, Any]]) -> str:
    """Means over seeds, and the geometric mean of the ratio with a 95 % t interval of its logarithm."""
    lines = [
        "| trained | run again each epoch | run once | ratio | accuracy |",
        "|---|---:|---:|---:|---:|",
    ]
    for workload in WORKLOADS:
        mine = [one for one in results if one["workload"] == workload]
        again, once = ({r["seed"]: r for r in mine if r["kept"] is kept} for kept in (False, True))
        if not again:
            continue
        seconds = f"{statistics.mean(r['seconds'] for r in again.values()):.1f} s"
        accuracy = f"{statistics.mean(r['accuracy'] for r in again.values()):.3f}"
        if not once:
            lines.append(f"| {workload} | {seconds} | – | – | {accuracy} |")
            continue
        mean, low, high = ratio_interval([again[seed]["seconds"] / once[seed]["seconds"] for seed in again])
        ratio = f"{mean:.2f}× ({low:.2f} … {high:.2f})"
        kept = statistics.mean(r["accuracy"] for r in once.values())
        seconds_once = statistics.mean(r["seconds"] for r in once.values())
        lines.append(f"| {workload} | {seconds} | {seconds_once:.1f} s | {ratio} | {accuracy}, {kept:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs, keeps and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of the kept results")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help=f"how many of {SEEDS}")
    parser.add_argument("--only", help="only workloads with this in their name; nothing is kept")
    asked = parser.parse_args()
    if asked.table:
        results = json.loads(RESULTS.read_text())
    else:
        results = []
        for seed in SEEDS[: asked.seeds]:
            for workload in WORKLOADS:
                if asked.only and asked.only not in workload:
                    continue
                for kept in (False,) if " all " in workload else (False, True):
                    results.append(run(workload, kept, seed))
                    print(json.dumps(results[-1]), flush=True)
        if not asked.only:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
