"""Renews tiny_float.pte and tiny_int8.pte, of the classifier of make_litert_files.py, with ExecuTorch:

python tests/formats/make_executorch_files.py
"""

from __future__ import annotations

import json
import sys

import torch
from make_litert_files import HERE, LABELS, LENGTH, Tiny

from hfadapt.formats import _executorch_file as file
from hfadapt.formats._single_file import DYNAMIC, FLOAT

ABOUT = {"hfadapt.task": "text-classification", "hfadapt.labels": json.dumps(LABELS), "hfadapt.output": "logits"}


class One(torch.nn.Module):
    """The classifier with the one output that is read."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.model = Tiny()
        if form == DYNAMIC.own:
            file.round_embeddings(self.model)

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of ids and mask (B, T)."""
        return self.model(*values)["logits"]


def main() -> None:
    """Both files."""
    row = {name: torch.ones(1, LENGTH // 2, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    free = {name: {1: ("length", LENGTH)} for name in row}
    for form, name in ((FLOAT.own, "float"), (DYNAMIC.own, "int8")):
        (HERE / f"tiny_{name}.pte").write_bytes(file.lowered(One(form), [row], free, form, ABOUT))


if __name__ == "__main__":
    sys.exit(main())
