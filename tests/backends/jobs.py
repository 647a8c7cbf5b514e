"""Recipes whose cells are jobs, and what their workers have told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny import NO_CHECKS, labelled, recipe_fields, write_recipe, write_rows


def ready(folder: Path, models: Path, count: int = 2, steps: int = 4, **train: Any) -> None:
    """Some domains and a recipe in which each of them is trained on its own."""
    domains = {}
    for number in range(count):
        write_rows(folder / f"d{number}.jsonl", labelled(120, seed=number))
        domains[f"d{number}"] = {"source": f"d{number}.jsonl", "license": "cc0-1.0"}
    fields = recipe_fields(models / "encoder", domains=domains)
    fields["evaluate"] |= NO_CHECKS
    fields["train"] |= {"together": False, "max_steps": steps, "evaluate_every_steps": 1, **train}
    write_recipe(folder / "tiny.yaml", fields)


def told(path: Path) -> list[dict[str, Any]]:
    """The events of a job, or of a command."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
