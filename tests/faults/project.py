"""A small project whose run goes through every stage."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny import PLAIN, labelled, recipe_fields, write_recipe, write_rows


def project(folder: Path, models: Path, domains: Sequence[str] = ("one", "two"), **more: Any) -> Path:
    """Rows of these domains, texts without labels, and `all.yaml`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(domains):
        write_rows(folder / f"{name}.jsonl", labelled(64, seed))
    draw = random.Random(3)
    texts = [{"text": " ".join(draw.choices(PLAIN, k=12))} for _ in range(40)]
    write_rows(folder / "texts.jsonl", texts)
    fields: dict[str, Any] = {
        "domains": {name: {"source": f"{name}.jsonl", "license": "mit"} for name in domains},
        "pretrain": {"sources": "texts.jsonl", "max_steps": 2},
        "train": {"batch_rows": 8, "max_steps": 4, "checkpoint_every_steps": 2, "evaluate_every_steps": 2},
        "evaluate": {"resamples": 100},
    }
    fields = {name: value for name, value in {**fields, **more}.items() if value is not None}
    write_recipe(folder / "all.yaml", recipe_fields(models / "mlm", **fields))
    return folder
