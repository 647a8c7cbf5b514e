"""How far the plan's time of training is from the time it takes, for sample models of every modality on this machine.

    python benchmarks/times.py                 every point of this machine that is not in times.json yet; the table
    python benchmarks/times.py --only NAME …   these points, measured again
    python benchmarks/times.py --table         only the table of the kept results, of every machine

A point is one `hfadapt train` of a dozen steps in a process of its own, with all that is not named here as the plan
decides. The time is that of the steps, the plan's for as many. times.json has them by processor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hfadapt.hardware.processor import cpu_features, processor_name, usable_cores

RESULTS = Path(__file__).with_suffix(".json")
PROMPT = {"prompt": "Text: {text}\nSentiment (negative, neutral or positive):", "completion": " {label}"}
TEXTS: dict[str, Any] = {"model": "sample:minilm-l6", "task": "text-classification", "rows": 640}
DIGITS: dict[str, Any] = {"model": "sample:dinov2-small", "task": "image-classification", "rows": 200}
WRITES: dict[str, Any] = {
    **{"model": "sample:smollm2-135m", "task": "causal-lm", "template": PROMPT, "rows": 320},
    "domains": ["sample:vader/tweets"],
}
POINTS: dict[str, dict[str, Any]] = {
    "MiniLM, tweets": {**TEXTS, "domains": ["sample:vader/tweets"]},
    "MiniLM, four domains together": {
        **TEXTS,
        "domains": [f"sample:vader/{name}" for name in ("tweets", "movies", "products", "news")],
    },
    "MiniLM, movies, batch 8": {**TEXTS, "domains": ["sample:vader/movies"], "train": {"batch_rows": 8}},
    "MiniLM, tweets, 4 bits": {**TEXTS, "domains": ["sample:vader/tweets"], "quant": "nf4"},
    "MiniLM, tweets, all weights": {**TEXTS, "domains": ["sample:vader/tweets"], "adapter": {"method": "full"}},
    "SmolLM2-135M, tweets": WRITES,
    "SmolLM2-135M, tweets, 4 bits": {**WRITES, "quant": "nf4"},
    "DINOv2-small, digits": {**DIGITS, "domains": ["sample:digits/mnist"]},
    "EfficientNet-Lite0, digits": {**DIGITS, "model": "sample:efficientnet-lite0", "domains": ["sample:digits/mnist"]},
}
STEPS = 12


def measure(point: dict[str, Any]) -> dict[str, float]:
    """Seconds of the steps and the plan's, of all domains, in a run of its own."""
    domains = {source.rpartition("/")[2]: {"source": source} for source in point["domains"]}
    train = {"max_steps": STEPS, "evaluate_every_steps": STEPS, **point.get("train", {})}
    recipe = {
        **{name: value for name, value in point.items() if name not in ("rows", "domains", "train")},
        **{"name": "times", "domains": domains, "train": train},
        "data": {"train_rows": point["rows"], "validation": 16, "test": 16},
    }
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "times.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        command = [sys.executable, "-m", "hfadapt", "train", str(path), "--runs", place, "--quiet"]
        subprocess.run(command, check=True)
        cells = [json.loads(found.read_text(encoding="utf-8")) for found in Path(place).glob("*/*/*/train.json")]
    assert len(cells) == len(domains), "a cell did not train"
    return {
        "seconds": sum(cell["seconds"] for cell in cells),
        "predicted_seconds": sum(cell["predicted_seconds"] for cell in cells),
        "tokens_per_second": sum(cell["tokens"] for cell in cells) / sum(cell["seconds"] for cell in cells),
    }


def machine() -> str:
    """The processor with its instruction sets and cores."""
    return f"{processor_name()} ({', '.join(cpu_features())}), {usable_cores()} cores"


def table(results: dict[str, Any]) -> str:
    """Every machine's points in Markdown, and the worst of them."""
    lines = []
    for name, found in results.items():
        lines += [f"{name}, {found['day']}, load {found['load']:.1f} at the start", ""]
        lines += ["| | measured | plan | plan / measured | tokens/s |", "|---|---:|---:|---:|---:|"]
        ratios = []
        for point, each in found["points"].items():
            ratios.append(each["predicted_seconds"] / each["seconds"])
            lines.append(
                f"| {point} | {each['seconds']:.1f} s | {each['predicted_seconds']:.1f} s | {ratios[-1]:.2f} "
                f"| {each['tokens_per_second']:,.0f} |"
            )
        within = sum(2 / 3 <= ratio <= 1.5 for ratio in ratios)
        lines += ["", f"{within} of {len(ratios)} within 1.5 times.", ""]
    return "\n".join(lines)


def main() -> None:
    """Measures what was asked for, keeping the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=list(POINTS))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not asked.table:
        here = results.setdefault(machine(), {"points": {}})
        here |= {"day": time.strftime("%Y-%m-%d"), "load": os.getloadavg()[0]}
        for name in asked.only or [name for name in POINTS if name not in here["points"]]:
            here["points"][name] = measure(POINTS[name])
            print(name, here["points"][name], file=sys.stderr, flush=True)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
