"""Several adapters of one run over one resident base: every text goes through the adapter of its own domain.

    bank = load_bank("runs/sentiment")
    bank.predict(["What a day!", "Dull from start to end."], ["tweets", "movies"])   # one batch, two adapters

The base is in memory once. A mixed batch is peft's (`adapter_names`): the base's products run over all rows, each row's
low-rank part and head are its own adapter's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hfadapt import kinds
from hfadapt.errors import RequestError, choice_problem
from hfadapt.predict import MAX_NEW_TOKENS, Adapted, Answer, device_for_answers, from_cell
from hfadapt.run_folder import Cell, Run


@dataclass
class Bank:
    """One base with the adapters of several domains.

    Args:
        adapters: By domain; all share one model.
    """

    adapters: Mapping[str, Adapted]

    @property
    def model(self) -> Any:
        """The base with all adapters on it."""
        return next(iter(self.adapters.values())).model

    def use(self, domain: str) -> Adapted:
        """Switches the model to one domain, for callers that want the model itself; takes milliseconds.

        Raises:
            RequestError: the bank has no such domain.
        """
        from hfadapt.model import use_adapter

        found = self._adapter(domain)
        use_adapter(self.model, domain)
        return found

    def predict(
        self, texts: Sequence[str], domains: Sequence[str] | str, max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[Answer]:
        """Answers for texts of several domains, in one batch.

        Args:
            domains: The domain of each text, or one for all.

        Raises:
            RequestError: the bank has no such domain, or there is not one domain for each text.
        """
        names = [domains] * len(texts) if isinstance(domains, str) else list(domains)
        if len(names) != len(texts):
            raise RequestError("every text needs a domain", got=f"{len(texts)} texts and {len(names)} domains")
        if not texts:
            return []
        own = [self._adapter(name) for name in names]
        if own[0].task == "text-classification":
            return _classify(own, texts, names)
        found: dict[int, Answer] = {}
        for rows in _alike(own):
            some = [own[i] for i in rows]
            work = _choose if some[0].choices else _generate
            answers = work(some, [texts[i] for i in rows], [names[i] for i in rows], max_new_tokens)
            found |= dict(zip(rows, answers, strict=True))
        return [found[i] for i in range(len(texts))]

    def _adapter(self, domain: str) -> Adapted:
        if domain not in self.adapters:
            problem = choice_problem("the bank has no adapter for this domain", domain, self.adapters)
            raise RequestError(problem.what, problems=[problem])
        return self.adapters[domain]


def load_bank(run: str | Path, domains: Sequence[str] = (), target: str | None = None) -> Bank:
    """Loads the base of a run once and puts the adapters of its domains on it; each is checked as if loaded alone.

    Args:
        run: A run's folder.
        domains: Which; all that are trained by default.
        target: Which target's adapters, where the run has several.

    Raises:
        RequestError: there are none, or they do not share a base.
        RunError: an adapter does not belong to the base, or its files were changed.
    """
    from hfadapt.manifest import check_folder, check_manifest
    from hfadapt.model import load_base, open_adapters

    cells = _cells(Path(run), domains, target)
    first = cells[0].lock
    kinds.load("tasks", first.task)
    device = device_for_answers()
    base = load_base(first, cells[0].data.labels, device)
    for cell in cells:
        check_manifest(check_folder(cell.adapter), base, cell.adapter, cell.data.labels)
    model = open_adapters(base, {cell.domain: cell.adapter for cell in cells}, device)
    return Bank({cell.domain: replace(from_cell(cell, base), model=model) for cell in cells})


def _cells(run: Path, domains: Sequence[str], target: str | None) -> list[Cell]:
    trained = [cell for cell in Run(run).cells() if (cell.folder / "train.json").exists()]
    targets = sorted({cell.target for cell in trained})
    if not trained:
        raise RequestError("there is no trained adapter here", place=str(run), fix="hfadapt run RECIPE")
    if target is None and len(targets) > 1:
        raise RequestError("the run has several targets", place=str(run), allowed=", ".join(targets), fix="name one")
    if target is not None and target not in targets:
        problem = choice_problem("the run has no adapter for this target", target, targets, str(run))
        raise RequestError(problem.what, problems=[problem])
    cells = [cell for cell in trained if cell.target == (target or targets[0])]
    known = {cell.domain: cell for cell in cells}
    for name in domains:
        if name not in known:
            problem = choice_problem("the run has no trained adapter of this domain", name, known, str(run))
            raise RequestError(problem.what, problems=[problem])
    cells = [known[name] for name in domains] if domains else cells
    first = cells[0]
    for cell in cells:
        for name in ("model", "task", "quant", "dtype"):
            if getattr(cell.lock, name) != getattr(first.lock, name):
                raise RequestError(
                    "the adapters do not share a base",
                    place=f"{cell.domain}: {name}",
                    got=str(getattr(cell.lock, name)),
                    allowed=f"{getattr(first.lock, name)}, as for {first.domain}",
                    fix="name domains that were trained on the same base",
                )
        if cell.lock.adapter.method in ("full", "dora"):
            raise RequestError(
                f"adapters of method {cell.lock.adapter.method} cannot share a base with others in one batch",
                place=cell.domain,
                fix="leave it out, and load it with load_adapted",
            )
        if cell.lock.task == "text-classification" and len(cell.data.labels) != len(first.data.labels):
            raise RequestError(
                "the heads of these domains are of different sizes",
                place=cell.domain,
                got=f"{len(cell.data.labels)} labels",
                allowed=f"{len(first.data.labels)}, as for {first.domain}",
                fix="name domains with as many labels",
            )
    return cells


def _inside(names: Sequence[str]) -> list[str]:
    from hfadapt.model import internal_name

    return [internal_name(name) for name in names]


def _alike(own: Sequence[Adapted]) -> list[list[int]]:
    """Rows whose adapters answer in the same way: from the same words, or freely."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row, adapted in enumerate(own):
        groups.setdefault(tuple(adapted.choices.items()), []).append(row)
    return list(groups.values())


def _classify(own: Sequence[Adapted], texts: Sequence[str], names: Sequence[str]) -> list[Answer]:
    import torch

    first = own[0]
    rows = [
        first.tokenizer(text, truncation=True, max_length=adapted.max_length)
        for text, adapted in zip(texts, own, strict=True)
    ]
    batch = first.tokenizer.pad(rows, return_tensors="pt")
    with torch.inference_mode():
        logits = first.model(**_moved(batch, first.model), adapter_names=_inside(names)).logits
    probabilities = torch.softmax(logits.float(), -1).cpu()
    return [
        Answer(text=text, label=adapted.labels[int(row.argmax())], probability=float(row.max()))
        for adapted, text, row in zip(own, texts, probabilities, strict=True)
    ]


def _moved(batch: Mapping[str, Any], model: Any) -> dict[str, Any]:
    return {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}


def _choose(own: Sequence[Adapted], texts: Sequence[str], names: Sequence[str], _: int) -> list[Answer]:
    """The most likely of the words among which these adapters answer."""
    import torch

    from hfadapt.tasks.causal_lm import KIND

    first, inside = own[0], _inside(names)
    examples = [adapted.question(text) for adapted, text in zip(own, texts, strict=True)]
    model: Callable[..., Any] = lambda **inputs: first.model(**inputs, adapter_names=inside)  # noqa: E731

    def batches(rows: Sequence[Any]) -> Iterator[tuple[list[int], Mapping[str, Any]]]:
        batch = KIND.collate(rows, first.tokenizer.pad_token_id)
        yield list(range(len(rows))), {name: tensor.to(first.model.device) for name, tensor in batch.items()}

    with torch.inference_mode():
        scores = KIND.score(model, examples, batches, tuple(first.choices.values()))
    assert scores.probabilities is not None
    words = list(first.choices)
    return [
        Answer(text=text, label=words[int(row.argmax())], probability=float(row.max()))
        for text, row in zip(texts, scores.probabilities, strict=True)
    ]


def _generate(own: Sequence[Adapted], texts: Sequence[str], names: Sequence[str], max_new_tokens: int) -> list[Answer]:
    """Greedy continuations; prompts are padded on the left, so that all end where the answers begin."""
    import torch

    first = own[0]
    prompts = [adapted.prompt_ids(text) for adapted, text in zip(own, texts, strict=True)]
    longest, pad = max(map(len, prompts)), first.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        output = first.model.generate(
            input_ids=ids.to(first.model.device),
            attention_mask=mask.to(first.model.device),
            adapter_names=_inside(names),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
        )
    said = first.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return [Answer(text=text, generated=answer.strip()) for text, answer in zip(texts, said, strict=True)]
