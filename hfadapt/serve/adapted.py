"""An adapter from a run, ready to use: `load_adapted("runs/sentiment/tweets/this-machine").predict("great!")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RequestError, RunError
from hfadapt.core.progress import quiet_libraries
from hfadapt.core.spec import Spec
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell, find_cell

if TYPE_CHECKING:
    import torch

    from hfadapt.models.load import Base
    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Manifest
    from hfadapt.tasks import Example

MAX_NEW_TOKENS = 128
BATCH_ROWS = 32
SHORTEST_ANSWER = 2
"""One token, and the one that ends the answer."""


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
        # In 16 bits a language model's answer would depend on what else is in the batch.
        rows = BATCH_ROWS if self.task == "text-classification" else 1
        return answers([self] * len(asked), asked, max_new_tokens, batch_rows=rows)

    def question(self, text: str) -> Example:
        """The row of a text that is answered with one of `choices`.

        One stand-in label makes the row scorable; only the choice is read.
        """
        from hfadapt.tasks import IGNORED, Example

        ids = self.asked_ids(text, max(map(len, self.choices.values())) + 1)
        end = self.tokenizer.eos_token_id
        first = next(iter(self.choices.values()))
        labels = (*(IGNORED,) * len(ids), *first, end)
        return Example((*ids, *first, end), labels, len(labels), 0)

    def asked_ids(self, text: str, answer_tokens: int = SHORTEST_ANSWER) -> list[int]:
        """`prompt_ids` as training saw them: what is too long for an answer of so many tokens loses its beginning.

        How long an answer that is written freely will be is not known. With room for the shortest, no prompt is cut
        that a row of training or evaluation could have held.
        """
        from hfadapt.tasks.causal_lm.task import without_beginning

        return without_beginning(self.prompt_ids(text), answer_tokens, self.max_length)

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of what precedes the answer: the recipe's template, a chat turn, or the text itself."""
        from hfadapt.tasks.causal_lm.task import prompt_ids

        if self.prompt is not None:
            text = self.prompt.replace("{text}", text) if "{text}" in self.prompt else text
        elif self.form == "messages":
            messages = [{"role": "user", "content": text}]
            rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])
        return prompt_ids(text, self.tokenizer)


def answers(
    own: Sequence[Adapted], texts: Sequence[str], max_new_tokens: int, *, batch_rows: int, names: Sequence[str] = ()
) -> list[Answer]:
    """Answers for texts, each from its own adapter; all adapters are on one model.

    Args:
        own: The adapter of each text.
        batch_rows: Texts at once.
        names: For each text the name of its adapter inside the model, where it has several.
    """
    # Those that choose from the same words, or write freely, can be asked together.
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, adapted in enumerate(own):
        groups.setdefault(tuple(adapted.choices.items()), []).append(row)
    found: dict[int, Answer] = {}
    for group in groups.values():
        for start in range(0, len(group), batch_rows):
            rows = group[start : start + batch_rows]
            asked, said, inside = [own[i] for i in rows], [texts[i] for i in rows], [names[i] for i in rows if names]
            if asked[0].task == "text-classification":
                answered = _classify(asked, said, inside)
            elif asked[0].choices:
                answered = _choose(asked, said, inside)
            else:
                answered = _write(asked, said, inside, max_new_tokens)
            found |= zip(rows, answered, strict=True)
    return [found[row] for row in range(len(texts))]


def _named(names: Sequence[str]) -> dict[str, Any]:
    """What peft is told where the rows of a batch have different adapters."""
    return {"adapter_names": list(names)} if names else {}


def _classify(own: Sequence[Adapted], texts: Sequence[str], names: Sequence[str]) -> list[Answer]:
    import torch

    from hfadapt.models.load import pad_token_id
    from hfadapt.tasks.text_classification.task import KIND

    model, tokenizer = own[0].model, own[0].tokenizer
    examples = [
        KIND.encode([{"text": text}], tokenizer, max_length=adapted.max_length, labels=adapted.labels)[0]
        for adapted, text in zip(own, texts, strict=True)
    ]
    batch = KIND.collate(examples, pad_token_id(tokenizer))
    with torch.inference_mode():
        logits = model(**{name: part.to(model.device) for name, part in batch.items()}, **_named(names)).logits
    probabilities = torch.softmax(logits.float(), -1).cpu()
    return [
        Answer(text=text, label=adapted.labels[int(row.argmax())], probability=float(row.max()))
        for adapted, text, row in zip(own, texts, probabilities, strict=True)
    ]


def _choose(own: Sequence[Adapted], texts: Sequence[str], names: Sequence[str]) -> list[Answer]:
    """The most likely of the words among which these adapters answer."""
    import torch

    from hfadapt.models.load import pad_token_id
    from hfadapt.tasks.causal_lm.task import KIND

    model, choices, pad = own[0].model, own[0].choices, pad_token_id(own[0].tokenizer)
    examples = [adapted.question(text) for adapted, text in zip(own, texts, strict=True)]

    def batches(rows: Sequence[Example]) -> Any:
        yield list(range(len(rows))), {name: part.to(model.device) for name, part in KIND.collate(rows, pad).items()}

    with torch.inference_mode():
        scores = KIND.score(partial(model, **_named(names)), examples, batches, tuple(choices.values()))
    assert scores.probabilities is not None
    words = list(choices)
    return [
        Answer(text=text, label=words[int(row.argmax())], probability=float(row.max()))
        for text, row in zip(texts, scores.probabilities, strict=True)
    ]


def _write(own: Sequence[Adapted], texts: Sequence[str], names: Sequence[str], max_new_tokens: int) -> list[Answer]:
    from hfadapt.models.generate import continuations

    model, tokenizer = own[0].model, own[0].tokenizer
    prompts = [adapted.asked_ids(text) for adapted, text in zip(own, texts, strict=True)]
    written = continuations(model, tokenizer, prompts, max_new_tokens, batch_rows=len(prompts), adapters=names)
    said = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [Answer(text=text, generated=each.strip()) for text, each in zip(texts, said, strict=True)]


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
    from hfadapt.models.attach import open_adapter
    from hfadapt.models.load import default_device
    from hfadapt.models.manifest import FILE, load_base_of

    quiet_libraries()

    folder = Path(path)
    if (folder / FILE).is_file():
        if domain is not None or target is not None:
            raise RequestError("an exported folder holds one adapter", place="--domain, --target", fix="leave them out")
        return _load_exported(folder, base)
    cell = find_cell(folder, domain, target)
    if base is not None:
        raise RequestError("a cell knows its base", place="--base", fix="leave it out")
    if not cell.has(TrainRecord):
        raise RequestError("the cell is not trained yet", place=str(cell.folder), fix="hfadapt run RECIPE")
    lock, device = cell.lock, default_device()
    loaded = load_base_of({cell.adapter: cell.data.labels}, lock, device)
    return replace(from_cell(cell, loaded), model=open_adapter(loaded, cell.adapter, lock.adapter.method, device))


def from_cell(cell: Cell, base: Base) -> Adapted:
    """How a cell's adapter is asked, with the base alone as its model."""
    from hfadapt.evaluate.answers import answer_choices

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


def _load_exported(folder: Path, base: str | None) -> Adapted:
    """What is in an exported or published folder, by its manifest."""
    import yaml

    from hfadapt.models.attach import open_adapter
    from hfadapt.models.base import BaseRef
    from hfadapt.models.load import default_device, load_base
    from hfadapt.models.manifest import check_folder
    from hfadapt.recipe.schema import DTYPES, Lock
    from hfadapt.tasks.causal_lm.task import completion_ids

    manifest = check_folder(folder)
    if not (folder / "lock.yaml").is_file():
        raise RequestError(
            "the folder does not say how its model was trained",
            place=str(folder / "lock.yaml"),
            fix="give the cell's folder, or one that hfadapt exported or published",
        )
    lock = Lock.model_validate(yaml.safe_load((folder / "lock.yaml").read_text(encoding="utf-8")))
    device = default_device()
    if manifest.whole:
        if base is not None:
            raise RequestError("the folder holds a whole model", place="--base", fix="leave it out")
        # 8-bit GGUF is unpacked to what was trained in.
        stored = manifest.dtype if manifest.dtype in DTYPES else lock.dtype
        where = folder / "model.gguf" if manifest.format == "gguf" else folder
        loaded = load_base(BaseRef.of(lock).at(where).stored("none", stored), manifest.labels, device)
        model = loaded.model.requires_grad_(False).eval()
    else:
        loaded = _base_of(folder, manifest, lock, base, device)
        model = open_adapter(loaded, folder, manifest.method, device)
    ids = {name: completion_ids(text, loaded.tokenizer, end=False) for name, text in manifest.completions.items()}
    choices = {name: tuple(each) for name, each in ids.items()}
    labels = tuple(choices) or manifest.labels
    return Adapted(
        model, loaded.tokenizer, manifest.task, labels, choices, manifest.max_length, manifest.form, manifest.prompt
    )


def _base_of(folder: Path, manifest: Manifest, lock: Lock, base: str | None, device: torch.device) -> Base:
    """The base of an exported adapter: where the user says it is, else by its name."""
    from hfadapt.core.samples import PREFIX
    from hfadapt.models.load import resolve_model
    from hfadapt.models.manifest import load_base_of

    known = manifest.model + (f"@{manifest.model_revision}" if manifest.model_revision else "")
    if lock.model.startswith(PREFIX):
        # It is on the Hub too, but whoever named the sample may not be able to reach it.
        known = lock.model
    # A base that a stage made is in the cell, not in the exported folder: the user has to say where.
    known = known if manifest.base is None else ""
    lock = lock.model_copy(update={"model": base or known, "base": None})

    def not_found(why: str) -> RequestError:
        return RequestError(
            "the base of this adapter was not found",
            place=lock.model or str(folder),
            got=" ".join(why.split())[:120],
            fix="say where it is: --base FOLDER",
        )

    if base is None and manifest.base is not None:
        raise not_found(f"the stage {manifest.base.made_by} made it: {manifest.base.how}")
    if base is None:
        try:
            # A sample is fetched here. What fails later is not about finding the base.
            resolve_model(known)
        except (RequestError, RunError) as error:
            raise not_found(error.problems[0].got or error.what) from None
    try:
        return load_base_of({folder: manifest.labels}, lock, device, manifest=manifest)
    except OSError as error:
        raise not_found(str(error)) from None
