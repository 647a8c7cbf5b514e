"""An adapter from a run, ready to use: `load_adapted("runs/sentiment/tweets/this-machine").predict("great!")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfadapt import kinds
from hfadapt.errors import RequestError
from hfadapt.run_folder import Cell, find_cell
from hfadapt.spec import Spec

MAX_NEW_TOKENS = 128


class Answer(Spec):
    """What the adapter says about one text: a label with its probability, or generated text."""

    text: str
    label: str | None = None
    probability: float | None = None
    generated: str | None = None

    def __str__(self) -> str:
        if self.label is None:
            return str(self.generated)
        sure = f" ({self.probability:.0%})" if self.probability is not None else ""
        return f"{self.label}{sure}"


@dataclass
class Adapted:
    """A base with its adapter on it.

    Args:
        cell: The cell it comes from.
        model: The peft model (or, for method full, the model itself), in evaluation mode.
        tokenizer: The base's.
        labels: Label names; for a language model, the answers it chooses from, or none.
    """

    cell: Cell
    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    choices: Mapping[str, tuple[int, ...]]

    def predict(self, texts: str | Sequence[str], max_new_tokens: int = MAX_NEW_TOKENS) -> list[Answer]:
        """Answers for one or more texts.

        A classifier gives the label. A language model that was trained to answer with one of a few words chooses
        among them; the recipe's template is put around the text. Otherwise it generates greedily.
        """
        asked = [texts] if isinstance(texts, str) else list(texts)
        if self.cell.lock.task == "text-classification":
            return self._classify(asked)
        return [self._continue(text, max_new_tokens) for text in asked]

    def _classify(self, texts: Sequence[str]) -> list[Answer]:
        import torch

        length = self.cell.lock.data.max_length
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(
                input_ids=batch["input_ids"].to(self.model.device),
                attention_mask=batch["attention_mask"].to(self.model.device),
            ).logits
        probabilities = torch.softmax(logits.float(), -1).cpu()
        return [
            Answer(text=text, label=self.labels[int(row.argmax())], probability=float(row.max()))
            for text, row in zip(texts, probabilities, strict=True)
        ]

    def _continue(self, text: str, max_new_tokens: int) -> Answer:
        import numpy as np
        import torch

        from hfadapt.tasks import IGNORED, Example
        from hfadapt.tasks.causal_lm import KIND

        ids = self._prompt(text)
        if self.choices:
            # One stand-in label makes the row scorable; only the choice is read.
            first = next(iter(self.choices.values()))
            example = Example(
                (*ids, *first, self.tokenizer.eos_token_id),
                (*(IGNORED,) * len(ids), *first, self.tokenizer.eos_token_id),
                len(ids) + len(first) + 1,
                0,
            )
            device = self.model.device

            def batches(examples: Sequence[Example]) -> Any:
                batch = KIND.collate(examples, self.tokenizer.pad_token_id)
                yield list(range(len(examples))), {name: tensor.to(device) for name, tensor in batch.items()}

            with torch.inference_mode():
                scores = KIND.score(self.model, [example], batches, tuple(self.choices.values()))
            assert scores.probabilities is not None
            best = int(np.argmax(scores.probabilities[0]))
            return Answer(text=text, label=list(self.choices)[best], probability=float(scores.probabilities[0, best]))
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor([ids], device=self.model.device),
                attention_mask=torch.ones((1, len(ids)), dtype=torch.long, device=self.model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return Answer(
            text=text, generated=self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True).strip()
        )

    def _prompt(self, text: str) -> list[int]:
        """Token ids of what precedes the answer: the recipe's template, a chat turn, or the text itself."""
        lock, data = self.cell.lock, self.cell.data
        template = lock.template_of(lock.domain)
        if template and template.prompt is not None:
            text = template.prompt.replace("{text}", text) if "{text}" in template.prompt else text
        elif data.form == "messages":
            messages = [{"role": "user", "content": text}]
            rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(text)["input_ids"])


def load_adapted(path: str | Path, domain: str | None = None, target: str | None = None) -> Adapted:
    """Loads the base of a cell, checks that the adapter belongs to it, and puts it on.

    Args:
        path: A cell's folder, or a run's with `domain` and `target` where it has several cells.

    Raises:
        RequestError: no such cell, or it is not trained yet.
        RunError: the adapter does not belong to the base, or its files were changed.
    """
    import torch

    from hfadapt.evaluate.stage import answer_choices
    from hfadapt.manifest import check_folder, check_manifest
    from hfadapt.model import load_base, open_adapter

    cell = find_cell(Path(path), domain, target)
    if not (cell.folder / "train.json").exists():
        raise RequestError("the cell is not trained yet", place=str(cell.folder), fix="hfadapt run RECIPE")
    lock, data = cell.lock, cell.data
    kinds.load("tasks", lock.task)
    manifest = check_folder(cell.adapter)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    base = load_base(lock, data.labels, device)
    check_manifest(manifest, base, cell.adapter, data.labels)
    choices = answer_choices(cell, data, base) if lock.task == "causal-lm" else {}
    model = open_adapter(base, cell.adapter, lock.adapter.method, device)
    return Adapted(cell, model, base.tokenizer, tuple(choices) or data.labels, choices)
