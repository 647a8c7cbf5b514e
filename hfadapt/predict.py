"""An adapter from a run, ready to use: `load_adapted("runs/sentiment/tweets/this-machine").predict("great!")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt import kinds
from hfadapt.errors import RequestError
from hfadapt.run_folder import Cell, find_cell
from hfadapt.spec import Spec

if TYPE_CHECKING:
    from hfadapt.model import Base
    from hfadapt.tasks import Example

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
        model: The peft model (or, for method full, the model itself), in evaluation mode.
        tokenizer: The base's.
        labels: Label names; for a language model, the answers it chooses from, or none.
        choices: Token ids of those answers.
        form: How its rows were given: `messages` are put into the chat template.
        prompt: The recipe's template, in which `{text}` is replaced.
        cell: The cell it comes from; None for an exported folder.
    """

    model: Any
    tokenizer: Any
    task: str
    labels: tuple[str, ...]
    choices: Mapping[str, tuple[int, ...]]
    max_length: int
    form: str | None = None
    prompt: str | None = None
    cell: Cell | None = None

    def predict(self, texts: str | Sequence[str], max_new_tokens: int = MAX_NEW_TOKENS) -> list[Answer]:
        """Answers for one or more texts.

        A classifier gives the label. A language model that was trained to answer with one of a few words chooses
        among them; the recipe's template is put around the text. Otherwise it generates greedily.
        """
        asked = [texts] if isinstance(texts, str) else list(texts)
        if self.task == "text-classification":
            return self._classify(asked)
        return [self._continue(text, max_new_tokens) for text in asked]

    def _classify(self, texts: Sequence[str]) -> list[Answer]:
        import torch

        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
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

        from hfadapt.tasks.causal_lm import KIND

        if self.choices:
            example = self.question(text)
            device = self.model.device

            def batches(examples: Sequence[Example]) -> Any:
                batch = KIND.collate(examples, self.tokenizer.pad_token_id)
                yield list(range(len(examples))), {name: tensor.to(device) for name, tensor in batch.items()}

            with torch.inference_mode():
                scores = KIND.score(self.model, [example], batches, tuple(self.choices.values()))
            assert scores.probabilities is not None
            best = int(np.argmax(scores.probabilities[0]))
            return Answer(text=text, label=list(self.choices)[best], probability=float(scores.probabilities[0, best]))
        ids = self.prompt_ids(text)
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

    def question(self, text: str) -> Example:
        """The row of a text that is answered with one of `choices`.

        One stand-in label makes the row scorable; only the choice is read.
        """
        from hfadapt.tasks import IGNORED, Example

        ids, end = self.prompt_ids(text), self.tokenizer.eos_token_id
        first = next(iter(self.choices.values()))
        labels = (*(IGNORED,) * len(ids), *first, end)
        return Example((*ids, *first, end), labels, len(labels), 0)

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of what precedes the answer: the recipe's template, a chat turn, or the text itself."""
        if self.prompt is not None:
            text = self.prompt.replace("{text}", text) if "{text}" in self.prompt else text
        elif self.form == "messages":
            messages = [{"role": "user", "content": text}]
            rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        return list(self.tokenizer(text)["input_ids"])


def load_adapted(
    path: str | Path, domain: str | None = None, target: str | None = None, base: str | None = None
) -> Adapted:
    """Loads the base of a cell, checks that the adapter belongs to it, and puts it on; or opens an exported folder.

    Args:
        path: A cell's folder, a run's with `domain` and `target` where it has several cells, or an exported folder.
        base: Where the base of an exported adapter is now, if not under the name in its manifest.

    Raises:
        RequestError: no such cell, or it is not trained yet.
        RunError: the adapter does not belong to the base, or its files were changed.
    """
    from hfadapt.manifest import FILE, check_folder, check_manifest
    from hfadapt.model import load_base, open_adapter

    folder = Path(path)
    if (folder / FILE).is_file():
        return _load_exported(folder, base)
    cell = find_cell(folder, domain, target)
    if base is not None:
        raise RequestError("a cell knows its base", place="--base", fix="leave it out")
    if not (cell.folder / "train.json").exists():
        raise RequestError("the cell is not trained yet", place=str(cell.folder), fix="hfadapt run RECIPE")
    lock, data = cell.lock, cell.data
    kinds.load("tasks", lock.task)
    manifest = check_folder(cell.adapter)
    device = device_for_answers()
    loaded = load_base(lock, data.labels, device)
    check_manifest(manifest, loaded, cell.adapter, data.labels)
    return replace(from_cell(cell, loaded), model=open_adapter(loaded, cell.adapter, lock.adapter.method, device))


def from_cell(cell: Cell, base: Base) -> Adapted:
    """How a cell's adapter is asked, with the base alone as its model."""
    from hfadapt.evaluate.stage import answer_choices

    lock, data = cell.lock, cell.data
    choices = answer_choices(cell, data, base) if lock.task == "causal-lm" else {}
    template = lock.template_of(lock.domain)
    return Adapted(
        base.model,
        base.tokenizer,
        lock.task,
        tuple(choices) or data.labels,
        choices,
        lock.data.max_length,
        data.form,
        template.prompt if template else None,
        cell,
    )


def device_for_answers() -> Any:
    """The first CUDA device, else the CPU."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _load_exported(folder: Path, base: str | None) -> Adapted:
    """What is in an exported or published folder, by its manifest."""
    import yaml

    from hfadapt.manifest import check_folder, check_manifest
    from hfadapt.model import load_base, open_adapter
    from hfadapt.recipe import Lock
    from hfadapt.tasks.causal_lm import completion_ids

    manifest = check_folder(folder)
    if not (folder / "lock.yaml").is_file():
        raise RequestError(
            "the folder does not say how its model was trained",
            place=str(folder / "lock.yaml"),
            fix="give the cell's folder, or one that hfadapt exported or published",
        )
    lock = Lock.model_validate(yaml.safe_load((folder / "lock.yaml").read_text(encoding="utf-8")))
    device = device_for_answers()
    if manifest.whole:
        if base is not None:
            raise RequestError("the folder holds a whole model", place="--base", fix="leave it out")
        where = folder / "model.gguf" if manifest.format == "gguf" else folder
        lock = lock.model_copy(update={"model": str(where), "quant": "none", "dtype": manifest.dtype})
        loaded = load_base(lock, manifest.labels, device)
        model = loaded.model.requires_grad_(False).eval()
    else:
        known = manifest.model + (f"@{manifest.model_revision}" if manifest.model_revision else "")
        lock = lock.model_copy(update={"model": base or known})
        try:
            loaded = load_base(lock, manifest.labels, device)
        except OSError as error:
            raise RequestError(
                "the base of this adapter was not found",
                place=base or known,
                got=" ".join(str(error).split())[:120],
                fix="say where it is: --base FOLDER",
            ) from None
        check_manifest(manifest, loaded, folder, manifest.labels)
        model = open_adapter(loaded, folder, manifest.method, device)
    ids = {name: completion_ids(text, loaded.tokenizer, end=False) for name, text in manifest.completions.items()}
    choices = {name: tuple(each) for name, each in ids.items()}
    labels = tuple(choices) or manifest.labels
    return Adapted(
        model, loaded.tokenizer, manifest.task, labels, choices, manifest.max_length, manifest.form, manifest.prompt
    )
