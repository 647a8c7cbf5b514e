"""Smaller models of adapted ones: what they lose, how fast they are, and what the teacher's answers win back.

    python benchmarks/student.py                  cells that are not in student.json yet; the table
    python benchmarks/student.py --only NAME …    only these cells, again: "tweets, 3 layers, ffn 0.5, seed 17"
    python benchmarks/student.py --table          only the table of the kept results

Each cell is one run through the public API: an adapter of the MiniLM sample, and two students of it with the same
shape, steps and learning rate, one with the teacher's answers in its loss and one without (`student.weight: 0`). All
are scored on the same test rows, with the 95 % paired bootstrap; seconds are medians of one row, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hfadapt import load_recipe, run
from hfadapt.hardware.processor import cpu_features, usable_cores
from hfadapt.records.student import StudentRecord

HERE = Path(__file__).parent
RESULTS = HERE / "student.json"
ROWS = {"train_rows": 2500, "validation": 300, "test": 800}
CLASSES = {"task": "text-classification", "data": ROWS}
LICENSES = {"source": "sample:licenses/rules", "columns": {"group": "group"}}
DOMAINS: dict[str, dict[str, Any]] = {
    "tweets": {**CLASSES, "domains": {"tweets": {"source": "sample:vader/tweets"}}},
    "news": {**CLASSES, "domains": {"news": {"source": "sample:vader/news"}}},
    "licenses": {
        "task": "embedding",
        "data": {"train_rows": 1000, "validation": 100, "test": 800, "max_length": 64},
        "domains": {"licenses": LICENSES},
    },
}
"""Recipes of the domains: two of classes, one of search."""
SHAPES: dict[str, dict[str, Any]] = {
    "5 layers, ffn 0.125": {"layers": 5, "ffn": 0.125},
    "5 layers, ffn 0.125, fewer tokens": {"layers": 5, "ffn": 0.125, "vocabulary": "auto"},
    "3 layers, ffn 0.5": {"layers": 3, "ffn": 0.5},
}
"""The first and the last have as many parameters."""
CELLS = {
    f"{domain}, {shape}, seed {seed}": (domain, shape, seed)
    for seed in (17, 18, 19)
    for shape in SHAPES
    for domain in DOMAINS
}
LEFT_OUT = {"security": False, "drift": False, "transfer": False}


def measure(domain: str, shape: str, seed: int, folder: Path) -> dict[str, Any]:
    """The student with and without its teacher's answers; in one folder the adapter is trained once."""
    found: dict[str, Any] = {}
    folder.mkdir(exist_ok=True)
    for weight in (0.5, 0.0):
        fields = {
            "name": "student",
            "model": "sample:minilm-l6",
            **DOMAINS[domain],
            "train": {"seed": seed},
            "evaluate": LEFT_OUT,
            "student": {**SHAPES[shape], "weight": weight, "limit": 100},
        }
        path = folder / "student.yaml"
        path.write_text(json.dumps(fields), encoding="utf-8")
        result = run(load_recipe(path), folder=folder / "run", until="student")
        record = result.cell(domain, "this-machine").read(StudentRecord)
        assert record.student is not None
        assert record.adapted is not None
        if weight:
            found = {
                "parameters": record.student.parameters / record.adapted.parameters,
                "faster": (record.adapted_seconds or 0.0) / (record.seconds or 1.0),
                "cut_otherwise": record.cut_otherwise,
                "base": record.before.get(record.metric),
                "adapted": record.metrics[0].base,
                "rows": record.rows,
            }
        name = "student" if weight else "without"
        found[name] = record.metrics[0].adapter
        found[f"{name}_points"] = [record.points, record.points_low, record.points_high]
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown of what is kept."""
    lines = [
        "| cell | parameters | faster | base | adapted | student | points lost | without answers |",
        "|---|---:|---:|---:|---:|---:|---|---:|",
    ]
    for name, each in results["cells"].items():
        lost, low, high = each["student_points"]
        metric = f"{each['base']:.3f} | {each['adapted']:.3f} | {each['student']:.3f}"
        size, speed = f"{each['parameters']:.0%}", f"{each['faster']:.2f}x"
        points = f"{lost:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(f"| {name} | {size} | {speed} | {metric} | {points} | {each['without']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is missing or named, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, default=[])
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cells": {}}
    todo = [] if asked.table else asked.only or [name for name in CELLS if name not in results["cells"]]
    place = Path(tempfile.mkdtemp())
    for name in todo:
        domain, shape, seed = CELLS[name]
        results["cells"][name] = measure(domain, shape, seed, place / f"{domain}-{seed}")
        results["command"] = shlex.join(["python", "benchmarks/student.py"])
        results["machine"] = {"features": cpu_features(), "cores": usable_cores(), "load": os.getloadavg()[0]}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(results["cells"][name]), file=sys.stderr)
    shutil.rmtree(place)
    print(table(results))


if __name__ == "__main__":
    main()
