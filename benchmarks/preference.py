"""What DPO teaches a small language model: which of two diagnoses is right, by pairs that are made from ICD-10-CM.

    python benchmarks/preference.py               run, keep preference.json, print the table, which docs/ show
    python benchmarks/preference.py --table       only the table of the kept results

It runs `hfadapt run recipes/preference.yaml` in a process of its own and reads evaluation.json. The better answer is
the diagnosis under which a term stands, the worse one another of the same chapter: no one has judged answers, and the
test pairs are of categories that training has not seen. Intervals are 95 % paired bootstraps over test pairs; the base
has a reward accuracy of one half because it is the reference.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "preference.json"
QUICK = ("evaluate.security=false", "evaluate.drift=false", "evaluate.generate_rows=0")


def run(settings: list[str]) -> dict[str, Any]:
    """The recipe's only cell: what its records say."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "hfadapt", "run", "recipes/preference.yaml", "--runs", runs, *QUICK, *settings]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
        if done.returncode:
            raise SystemExit(done.returncode)
        (cell,) = (Path(runs) / "preference").glob("*/this-machine")
        evaluation, train, data = (
            json.loads((cell / name).read_text()) for name in ("evaluation.json", "train.json", "data.json")
        )
    kept = ("name", "base", "adapter", "delta", "low", "high")
    metrics = [*evaluation["metrics"], {**evaluation["general_text"], "name": "perplexity of general text"}]
    return {
        "setting": evaluation["setting"],
        "metrics": [{name: metric[name] for name in kept} for metric in metrics],
        "pairs": data["splits"]["train"],
        "steps": train["steps"],
        "first_loss": train["first_loss"],
        "seconds": round(train["seconds"], 1),
        "processor": train["versions"]["processor"],
    }


def table(found: dict[str, Any]) -> str:
    """A line for each metric."""
    lines = ["| metric | base | adapter | difference |", "|---|---:|---:|---|"]
    for metric in found["metrics"]:
        difference = f"{metric['delta']:+.3f} [{metric['low']:+.3f}, {metric['high']:+.3f}]"
        lines.append(f"| {metric['name']} | {metric['base']:.3f} | {metric['adapter']:.3f} | {difference} |")
    end = (
        f"{found['pairs']} training pairs, {found['steps']} steps; tested on {found['setting']}; {found['processor']}."
    )
    return "\n".join([*lines, "", end])


def main() -> None:
    """Runs, keeps and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of the kept results")
    parser.add_argument("settings", nargs="*", help="settings of the recipe; with some, nothing is kept")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if asked.table else run(asked.settings)
    print(table(results))
    if not asked.settings:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
