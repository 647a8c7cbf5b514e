"""Several adapters of one run over one resident base: every text goes through the adapter of its own domain.

    bank = load_bank("runs/sentiment")
    bank.predict(["What a day!", "Dull from start to end."], ["tweets", "movies"])   # one batch, two adapters

The base is in memory once. A mixed batch is peft's (`adapter_names`): the base's products run over all rows, each row's
low-rank part and head are its own adapter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from hfadapt.core import registry
from hfadapt.core.errors import RequestError, choice_problem
from hfadapt.core.progress import quiet_libraries
from hfadapt.core.show import Block, Heading, Shown, Table
from hfadapt.models.attach import internal_name, open_adapters, use_adapter
from hfadapt.models.base import BaseRef
from hfadapt.models.load import default_device
from hfadapt.models.manifest import load_base_of
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell, Run
from hfadapt.serve.adapted import MAX_NEW_TOKENS, Adapted, answers, from_cell, values_of
from hfadapt.tasks import ANSWER_ROWS, Answer


@dataclass
class Bank(Shown):
    """One base with the adapters of several domains.

    Args:
        adapters: By domain; all share one model.
    """

    adapters: Mapping[str, Adapted]

    def blocks(self) -> list[Block]:
        """Its domains."""
        rows = [
            [name, each.task, ", ".join(each.labels), f"{each.max_length:,}"] for name, each in self.adapters.items()
        ]
        columns = ["domain", "task", "labels", "longest row"]
        return [Heading("Adapters on one base, ready to predict", 3), Table(columns, rows)]

    @property
    def model(self) -> Any:
        """The base with all adapters on it."""
        return next(iter(self.adapters.values())).model

    def use(self, domain: str) -> Adapted:
        """Switches the model to one domain, for callers that want the model itself; takes milliseconds.

        Raises:
            RequestError: the bank has no such domain.
        """
        found = self.adapter(domain)
        use_adapter(self.model, domain)
        return found

    def predict(self, texts: Any, domains: Sequence[str] | str, max_new_tokens: int = MAX_NEW_TOKENS) -> list[Answer]:
        """Answers for texts of several domains, up to 32 in one batch.

        Args:
            texts: One or more, or what else `Adapted.predict` takes.
            domains: The domain of each text, or one for all.

        Raises:
            RequestError: the bank has no such domain, or there is not one domain for each text.
        """
        asked = values_of(next(iter(self.adapters.values())), texts)
        names = [domains] * len(asked) if isinstance(domains, str) else list(domains)
        if len(names) != len(asked):
            raise RequestError("every text needs a domain", got=f"{len(asked)} texts and {len(names)} domains")
        own, inside = [self.adapter(name) for name in names], [internal_name(name) for name in names]
        rows = max([ANSWER_ROWS, *(registry.task(each.task).answer_rows for each in own)])
        return answers(own, asked, max_new_tokens, batch_rows=rows, names=inside)

    def adapter(self, domain: str) -> Adapted:
        """The adapter of a domain, on a model that may be switched to another. Raises as `use`."""
        if domain not in self.adapters:
            problem = choice_problem("there is no domain of that name", domain, self.adapters)
            raise RequestError(problem.what, problems=[problem])
        return self.adapters[domain]


@quiet_libraries()
def load_bank(run: str | PathLike[str], domains: Sequence[str] = (), target: str | None = None) -> Bank:
    """Loads the base of a run once and puts the adapters of its domains on it; each is checked as if loaded alone.

    Args:
        run: A run's folder.
        domains: Which; all that are trained by default.
        target: Which target's adapters, where the run has several.

    Raises:
        RequestError: there are none, or they do not share a base.
        RunError: an adapter does not belong to the base, or its files were changed.

    Example:
        >>> from hfadapt import load_bank
        >>> bank = load_bank("runs/sentiment")
        >>> len(bank.predict(["What a day!", "Dull from start to end."], ["tweets", "movies"]))
        2
    """
    cells, device = _cells(Path(run), domains, target), default_device()
    base = load_base_of({cell.adapter: cell.data.labels for cell in cells}, cells[0].lock, device)
    model = open_adapters(base, {cell.domain: cell.adapter for cell in cells}, device)
    return Bank({cell.domain: replace(from_cell(cell, base), model=model) for cell in cells})


def _cells(run: Path, domains: Sequence[str], target: str | None) -> list[Cell]:
    trained = [cell for cell in Run(run).cells() if cell.has(TrainRecord)]
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
        if BaseRef.of(cell.lock).key != BaseRef.of(first.lock).key:
            raise RequestError(
                "the adapters do not share a base",
                place=cell.domain,
                got=str(BaseRef.of(cell.lock)),
                allowed=f"{BaseRef.of(first.lock)} with the weights of {first.domain}",
                fix="name domains that were trained on the same base",
            )
        if not registry.adapter(cell.lock.adapter.method).mixes:
            raise RequestError(
                f"adapters of method {cell.lock.adapter.method} cannot share a base with others in one batch",
                place=cell.domain,
                fix="leave it out, and load it with load_adapted",
            )
        outputs = registry.task(cell.lock.task).outputs
        if outputs(cell.data.labels) != outputs(first.data.labels):
            raise RequestError(
                "the heads of these domains are of different sizes",
                place=cell.domain,
                got=f"{len(cell.data.labels)} labels",
                allowed=f"{len(first.data.labels)}, as for {first.domain}",
                fix="name domains with as many labels",
            )
    return cells
