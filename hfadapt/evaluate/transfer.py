"""The cross-domain matrix: every adapter of a run on every domain's test rows, with all of them on one base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfadapt.core import registry
from hfadapt.core.hashing import json_sha256
from hfadapt.core.progress import Progress, Silent
from hfadapt.core.spec import reading
from hfadapt.data import read_split
from hfadapt.evaluate.context import score_together, spread
from hfadapt.evaluate.metrics.rows import compare, find, known_metrics, sampling
from hfadapt.evaluate.quality import sides_unsaid, unsaid
from hfadapt.hardware.processes import World
from hfadapt.modalities import Example
from hfadapt.models.attach import open_adapter, open_adapters, use_adapter
from hfadapt.models.base import BaseRef
from hfadapt.models.load import Base
from hfadapt.models.manifest import load_base_of
from hfadapt.recipe.schema import Lock
from hfadapt.records.evidence import SkippedPair, TransferCell, TransferRecord, TransferTarget
from hfadapt.run_folder import PREDICTIONS, Cell, Run
from hfadapt.schemas import LabelKind
from hfadapt.tasks import Scores
from hfadapt.train.batches import padded

MOST_ROWS = 200
"""Test rows of a domain that every adapter is scored on, spread evenly over the split."""


@dataclass
class Domain:
    """One domain's cell, and of its test rows those that are used."""

    cell: Cell
    examples: list[Example] = field(default_factory=list)
    choices: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The domain."""
        return self.cell.domain

    @cached_property
    def lock(self) -> Lock:
        """The cell's lock."""
        return self.cell.lock

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The cell's classes."""
        return self.cell.data.labels

    @property
    def storage(self) -> tuple[Any, ...]:
        """Cells that agree in this can share a loaded base. A language model has no head that depends on labels."""
        labels = self.labels if registry.task(self.lock.task).outputs(self.labels) else ()
        return BaseRef.of(self.lock).key, self.lock.task, self.lock.quant, self.lock.dtype, labels

    @cached_property
    def picked(self) -> list[int]:
        """Positions of the used rows in the test split; all where the score of a row depends on the others."""
        rows = self.cell.evaluation.rows
        return spread(rows, rows if registry.task(self.lock.task).joint else MOST_ROWS)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, or of the answers."""
        return tuple(self.choices) or self.labels

    @property
    def kind(self) -> LabelKind:
        """What gold and predictions are: of a language model that chooses among answers, classes."""
        own = registry.task(self.lock.task).kind(self.cell.data.form)
        return "class" if self.choices else own

    def encode(self, base: Base) -> None:
        """Reads and tokenises the used rows as the domain's own evaluation did."""
        rows = list(read_split(self.cell.folder, "test"))
        task = registry.task(self.lock.task)
        self.examples = task.encode(
            [rows[i] for i in self.picked], base.tokenizer, max_length=self.lock.data.max_length, labels=self.labels
        )
        before = self.baseline() if task.refers else None
        if before is not None and before.sides is not None:
            # What the model said before training is what its own evaluation found.
            self.examples = task.referred(self.examples, replace(before, sides=before.sides[..., [1, 1, 2]]))
        data = self.cell.data
        self.choices = task.choices(
            task.answer_texts(data.form, data.completions, self.cell.read_split), base.tokenizer
        )

    def baseline(self) -> Scores | None:
        """What the domain's baseline said about the used rows, from predictions.parquet; None in files that lack it."""
        from pyarrow import parquet

        path = self.cell.folder / PREDICTIONS
        with reading(path):
            table = parquet.read_table(path).take(self.picked).to_pydict()
        if "tokens" not in table:
            return None
        kind = self.kind
        gold, chosen = (
            unsaid(table[column], kind, self.names) if column in table else None for column in ("gold", "base")
        )
        losses, tokens = np.array(table["base_loss"]), np.array(table["tokens"])
        return Scores(gold, chosen, None, losses, tokens, kind, self.names, sides_unsaid(table))


def measure_transfer(
    cells: Sequence[Cell], world: World, kept: TransferRecord | None = None, progress: Progress | None = None
) -> TransferRecord | None:
    """The matrix of every target with two or more evaluated cells.

    Args:
        cells: Cells with an evaluation, in the order of the recipe.
        kept: An earlier record, returned as it is when nothing that it depends on has changed.

    Returns:
        None where no target has two such cells.

    Raises:
        RunError: an adapter's folder does not fit its base any more.
    """
    by_target: dict[str, list[Domain]] = {}
    for cell in cells:
        by_target.setdefault(cell.target, []).append(Domain(cell))
    by_target = {target: domains for target, domains in by_target.items() if len(domains) > 1}
    if not by_target:
        return None
    inputs = json_sha256(
        [[_input(domain) for domain in domains] for _, domains in sorted(by_target.items())] + [MOST_ROWS]
    )
    if kept is not None and kept.inputs_sha256 == inputs:
        return kept
    targets = []
    for target, domains in by_target.items():
        (progress or Silent()).say(f"{target}: every adapter on every domain")
        if (found := _matrix(target, domains, world)) is not None:
            targets.append(found)
    return TransferRecord(targets=tuple(targets), inputs_sha256=inputs)


def _input(domain: Domain) -> list[Any]:
    """Everything of one cell that the matrix depends on."""
    evaluation, settings = domain.cell.evaluation, domain.lock.evaluate
    return [
        domain.cell.domain,
        domain.cell.target,
        [str(part) for part in domain.storage],
        sorted(domain.cell.manifest.files.items()),
        evaluation.rows_sha256,
        evaluation.prompts_sha256,
        [metric.name for metric in evaluation.metrics],
        settings.resamples,
        settings.confidence,
        domain.lock.data.seed,
    ]


def common_metric(domains: Sequence[Domain]) -> str | None:
    """The first metric of the first cell that all cells have and that can be compared from stored predictions."""
    first, *others = ([metric.name for metric in domain.cell.evaluation.metrics] for domain in domains)
    for name in first:
        if (
            name in known_metrics()
            and find(name).needs in ("classes", "losses")
            and all(name in other for other in others)
        ):
            return name
    return None


def _matrix(target: str, domains: Sequence[Domain], world: World) -> TransferTarget | None:
    metric = common_metric(domains)
    if metric is None:
        return None
    groups: dict[tuple[Any, ...], list[Domain]] = {}
    for domain in domains:
        groups.setdefault(domain.storage, []).append(domain)
    found: dict[tuple[str, str], TransferCell] = {}
    skipped: dict[tuple[str, str], str] = {}
    for group in groups.values():
        for adapter, data, scores in _scored(group, world, metric, skipped):
            found[adapter.name, data.name] = _cell(adapter, data, scores, metric)
    for adapter in domains:
        for data in domains:
            if adapter.storage != data.storage:
                skipped[adapter.name, data.name] = _difference(adapter, data)
    order = [(adapter.name, data.name) for adapter in domains for data in domains]
    return TransferTarget(
        target=target,
        metric=metric,
        higher_is_better=find(metric).higher_is_better,
        cells=tuple(found[pair] for pair in order if pair in found),
        skipped=tuple(SkippedPair(adapter=pair[0], data=pair[1], reason=why) for pair, why in skipped.items()),
    )


def _scored(
    group: Sequence[Domain], world: World, metric: str, skipped: dict[tuple[str, str], str]
) -> Iterator[tuple[Domain, Domain, Scores]]:
    """Scores of every adapter of the group on every domain of it; pairs that cannot be compared go to `skipped`."""
    lock, device = group[0].lock, world.device
    adapters = {domain.cell.adapter: domain.labels for domain in group}
    base = load_base_of(adapters, lock, device, divided=world.divides(lock.train.shard))
    for domain in group:
        domain.encode(base)
    whole = {domain.name for domain in group if registry.adapter(domain.lock.adapter.method).whole_model}
    folders = {domain.name: domain.cell.adapter for domain in group if domain.name not in whole}
    model = open_adapters(base, folders, device) if folders else None
    for adapter in group:
        if adapter.name in whole:
            used = open_adapter(base, adapter.cell.adapter, adapter.lock.adapter.method, device)
        else:
            used = model
            use_adapter(used, adapter.name)
        for data in group:
            if find(metric).needs == "classes" and set(adapter.names) != set(data.names):
                skipped[adapter.name, data.name] = "other answers: " + ", ".join(data.names)
            else:
                yield adapter, data, _score(used.eval(), base, data, world)


def _score(model: Any, base: Base, data: Domain, world: World) -> Scores:
    task, device = registry.task(data.lock.task), world.device

    def score(examples: Sequence[Example]) -> Scores:
        rows = data.lock.evaluate.batch_rows
        batches = partial(padded, task, pad_token_id=base.pad_token_id, device=device, batch_rows=rows)
        scores: Scores = task.score(model, examples, batches, tuple(data.choices.values()))
        return scores

    with torch.inference_mode():
        return score_together(world, task, data.examples, score, base)


def _cell(adapter: Domain, data: Domain, scores: Scores, name: str) -> TransferCell:
    found = compare(name, data.baseline(), scores, **sampling(data.lock))
    return TransferCell(
        adapter=adapter.name,
        data=data.name,
        rows=found.rows,
        base=found.base,
        value=found.adapter,
        delta=found.delta,
        low=found.low,
        high=found.high,
    )


def _difference(adapter: Domain, data: Domain) -> str:
    """Why two cells cannot share a base."""
    if adapter.storage[-1] != data.storage[-1]:
        return "other labels: " + ", ".join(data.labels)
    return f"another base or storage: {BaseRef.of(data.lock)} in {data.lock.quant}, {data.lock.dtype}"


def transfer_gates(record: TransferRecord, cells: Sequence[Cell]) -> dict[tuple[str, str], str]:
    """What is wrong with cells, by domain and target, that miss `evaluate.gates: {transfer: …}`.

    The gate is the smallest gain over another domain's baseline that the adapter may have there.
    """
    failed: dict[tuple[str, str], str] = {}
    wanted = {(cell.domain, cell.target): cell.lock.evaluate.gates.get("transfer") for cell in cells}
    for target in record.targets:
        sign = 1 if target.higher_is_better else -1
        for found in target.cells:
            least = wanted.get((found.adapter, target.target))
            if least is None or found.delta is None or found.adapter == found.data or sign * found.delta >= least:
                continue
            failed.setdefault(
                (found.adapter, target.target),
                f"on {found.data} {target.metric} gained {sign * found.delta:+.3f}, "
                f"the recipe asks for at least {least:+.3f}",
            )
    return failed


def write_transfer(folder: Path, cells: Sequence[Cell], world: World, progress: Progress) -> TransferRecord | None:
    """transfer.json of a run, made again only where its inputs changed, and each adapter's own row beside it.

    Of several processes each scores its share of the rows.

    A card follows from its cell's folder alone, so what it says of other domains has to lie there.
    """
    kept = world.on_main(lambda: Run(folder).transfer)
    record = measure_transfer(cells, world, kept, progress)
    world.on_main(lambda: _write(folder / TransferRecord.FILE, cells, record, kept))
    return record


def _write(path: Path, cells: Sequence[Cell], record: TransferRecord | None, kept: TransferRecord | None) -> None:
    if record is None:
        path.unlink(missing_ok=True)
    elif record is not kept:
        record.write(path)
    for cell in cells:
        row = record.row_of(cell.domain, cell.target) if record else None
        before = cell.transfer if cell.holds(TransferRecord) else None
        if row is None:
            (cell.folder / TransferRecord.FILE).unlink(missing_ok=True)
        elif before is None or row.targets != before.targets:
            # Otherwise only other rows of the matrix have changed, and the card stays as it is.
            cell.write(row)
