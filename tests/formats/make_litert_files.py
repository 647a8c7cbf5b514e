"""Renews tiny_float.tflite and tiny_int8.tflite, of a classifier with made-up weights, with LiteRT's converter:

python tests/formats/make_litert_files.py
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
LENGTH, WORDS, WIDTH = 8, 50, 16
LABELS = ["bad", "good", "so-so"]


class Tiny(torch.nn.Module):
    """The mean of the embeddings of unmasked tokens, through two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = torch.nn.Embedding(WORDS, WIDTH)
        self.inner, self.classifier = torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, len(LABELS))
        for number, parameter in enumerate(self.parameters()):
            steps = torch.arange(parameter.numel(), dtype=torch.float32) * (0.7 + number)
            parameter.data = torch.sin(steps + 0.1 * steps**1.5).reshape(parameter.shape)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (B, C) of ids and mask (B, T)."""
        hidden = torch.relu(self.inner(self.embeddings(input_ids)))
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return {"logits": self.classifier((hidden * kept).sum(1) / kept.sum(1))}


def main() -> None:
    """Both files."""
    from hfadapt.formats import _litert_environment as environment
    from hfadapt.formats import litert

    rows = {name: torch.ones(1, LENGTH, dtype=torch.int64).numpy() for name in ("input_ids", "attention_mask")}
    about = {"hfadapt.task": "text-classification", "hfadapt.labels": json.dumps(LABELS)}
    for form, name in ((litert.FLOAT, "float"), (litert.DYNAMIC, "int8")):
        with tempfile.TemporaryDirectory() as place:
            litert.save_job(Tiny(), "logits", rows, Path(place))
            environment.convert(Path(place), litert.RECIPES[form.own], about)
            shutil.move(Path(place) / litert.FILE, HERE / f"tiny_{name}.tflite")


if __name__ == "__main__":
    sys.exit(main())
