"""Scores what the tools trained, all by the same code: held-out loss and accuracy in float32 on the base's storage.

    python score.py PREPARED RUN [RUN ...]

Writes scores.json into each run. An adapter that was trained on a 4-bit base is scored on that 4-bit base.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CHOICES = ("negative", "neutral", "positive")


class Judge:
    """One base with a place for adapters, and the held-out rows."""

    def __init__(self, folder: Path, prepared: dict[str, Any], quant: str, seed: int, cuda: bool) -> None:
        import torch

        from hfadapt.core import registry
        from hfadapt.modalities import Example
        from hfadapt.models.load import load_base, load_processor, resolve_model
        from hfadapt.recipe.reading import load_recipe
        from hfadapt.run_folder import Run

        load_recipe(folder / "recipe.yaml")
        lock = Run(folder / "run").cell(prepared["domain"], prepared["target"]).lock
        # Large models are scored in bfloat16 on a GPU: there is no room for float32.
        dtype = "bfloat16" if cuda else "float32"
        train = lock.train.model_copy(update={"seed": seed, "checkpointing": False})
        lock = lock.model_copy(update={"quant": quant, "dtype": dtype, "train": train})
        self.task: Any = registry.task(lock.task)
        self.device = torch.device("cuda" if cuda else "cpu")
        self.base = load_base(lock, prepared["labels"], self.device)
        for module in self.base.model.modules():
            if hasattr(module, "compute_dtype"):
                module.compute_dtype = getattr(torch, dtype)
        self.prepared, self.folder, self.seed = prepared, folder, seed
        self.examples = {
            split: [
                Example(
                    {"input_ids": row["input_ids"]},
                    tuple(row["labels"]),
                    len(row["input_ids"]),
                    len(row["input_ids"]),
                    number,
                )
                for number, row in enumerate(prepared[split])
            ]
            for split in ("train", "validation", "test")
        }
        tokenizer = load_processor(resolve_model(prepared["model"]), "text")
        self.choices = [tuple(tokenizer(f" {name}", add_special_tokens=False)["input_ids"]) for name in CHOICES]
        from peft import PeftModel

        self.model = PeftModel.from_pretrained(self.base.model, str(folder / f"init-{seed}"), is_trainable=True)

    def put(self, weights: Path) -> None:
        """Another adapter in place of the present one.

        Raises:
            SystemExit: its tensors are not those of the stored start.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict
        from safetensors.torch import load_file

        tensors = load_file(weights)
        wanted = set(get_peft_model_state_dict(self.model, save_embedding_layers=False))
        if set(tensors) != wanted:
            difference = sorted(set(tensors) ^ wanted)
            raise SystemExit(f"{weights}: other tensors than the stored start's, such as {difference[:3]}")
        set_peft_model_state_dict(self.model, tensors)

    def loss(self, split: str) -> float:
        """Mean loss per label, in nats."""
        scores = self._score(split, ())
        return float(scores.losses.sum() / scores.tokens.sum())

    def accuracy(self) -> float | None:
        """Share of test rows whose class, or answer among the three, is right; None for free text."""
        if self.prepared["task"] == "text-classification":
            scores = self._score("test", ())
        elif all(len([label for label in e.labels if label != -100]) <= 4 for e in self.examples["test"]):
            scores = self._score("test", self.choices)
        else:
            return None
        return float((scores.predictions == scores.gold).mean())

    def _score(self, split: str, choices: Any) -> Any:
        import torch

        from hfadapt.train.batches import padded

        pad, rows = self.prepared["pad_token_id"], 32 if self.prepared["max_tokens"] <= 128 else 1
        self.model.eval()
        with torch.inference_mode():
            return self.task.score(
                self.model,
                self.examples[split],
                lambda examples: padded(self.task, examples, pad, self.device, rows),
                choices,
            )

    def first_batch(self) -> dict[str, float]:
        """Loss per label and gradient norm of the rows of step 1 at the stored start: the reference for every tool."""
        import torch

        from hfadapt.train.batches import padded

        rows = [self.examples["train"][row] for row in self.prepared["batches"][str(self.seed)][0]]
        self.model.train()
        total, labels = 0.0, 0
        trained = [p for p in self.model.parameters() if p.requires_grad]
        at_once = 4 if self.prepared["max_tokens"] <= 512 else 1
        for _, batch in padded(self.task, rows, self.prepared["pad_token_id"], self.device, at_once):
            losses, _ = self.task.losses(self.model, batch)
            losses.sum().backward()
            total, labels = total + float(losses.detach().sum()), labels + len(losses)
        norm = torch.sqrt(sum((p.grad.double() / labels).pow(2).sum() for p in trained if p.grad is not None))
        self.model.zero_grad(set_to_none=True)
        return {"loss": total / labels, "grad_norm": float(norm)}


def main(folder: Path, runs: list[Path]) -> None:
    """Scores every run; runs of the same storage and seed share a base."""
    prepared = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    prepared["max_tokens"] = max(len(row["input_ids"]) for row in prepared["train"])
    groups: dict[tuple[str, int, bool], list[Path]] = {}
    for run in runs:
        job = json.loads((run / "job.json").read_text(encoding="utf-8"))
        quant = job["options"].get("quant") or (prepared["quant"] if job["tool"] == "hfadapt" else "none")
        groups.setdefault((quant, job["seed"], job["cuda"]), []).append(run)
    for (quant, seed, cuda), members in groups.items():
        judge = Judge(folder, prepared, quant, seed, cuda)
        reference = judge.first_batch()
        for run in members:
            steps = sorted(int(path.stem.split("-")[1]) for path in run.glob("adapter-*.safetensors"))
            curve = {}
            for step in steps:
                judge.put(run / f"adapter-{step}.safetensors")
                curve[step] = judge.loss("validation")
            scores = {
                "reference": {**reference, "storage": quant},
                "validation": curve,
                "test_loss": judge.loss("test"),
                "test_rows": len(prepared["test"]),
                "accuracy": judge.accuracy(),
            }
            (run / "scores.json").write_text(json.dumps(scores, indent=1), encoding="utf-8")
            print(f"scored {run.name}: {scores['test_loss']:.4f}, accuracy {scores['accuracy']}", flush=True)
        del judge


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(run) for run in sys.argv[2:]])
