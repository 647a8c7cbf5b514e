"""The gate: what was written is opened again as a stranger would, and has to answer like the adapter that was trained.

Every format has to read rows as training did, to name the classes in their order, and, where it rounds nothing, to
score as what was to be written. Forms that only a runtime of its own has are judged further, all on the reopened file:
what the task's leading metric loses, how far the answers diverge, whether they agree where they are decided, and what
the format itself finds wrong with the files.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry
from hfadapt.core.errors import HfadaptError, Problem, RunError
from hfadapt.core.progress import Silent
from hfadapt.evaluate.metrics.rows import compare, leading, points_allowed, points_lost, sampling
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.models.adapter_files import files_in
from hfadapt.records.published import Judged
from hfadapt.run_folder import PREDICTIONS, Cell, read_rows

if TYPE_CHECKING:
    import torch

    from hfadapt.formats import Form, Format
    from hfadapt.modalities import Example
    from hfadapt.recipe.export import ExportLimits
    from hfadapt.tasks import Scores

ROWS = 64
"""Test rows on which a folder is compared with what was to be written."""
MOST_ROWS = 400
"""Test rows on which a form is judged."""
BATCH_ROWS = 16
DECISIVE = 0.1
"""Lead of an answer over the next one from which it is decided."""
APART = 0.05
"""Mean difference of a label's loss, in nats, that another machine and other batches make in 16 bits."""
AGAIN = "export again; if it happens again, report it with lock.yaml"
CHANCE = 0.05
"""How likely a loss has to be by chance alone for more rows to be worth the trouble."""
CALLS = 20
"""One row after the other, for the latency."""


# --- what every format keeps -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TestRows:
    """The first test rows of a cell, as the base's processor makes examples of them.

    Args:
        probes: Made-up rows in which processors differ that read the test rows alike: some are small letters only, or
            pictures of the model's own size.
        filling: How the base's processor fills up rows that are read together.
    """

    __test__ = False
    cell: Cell
    examples: Sequence[Example]
    probes: Sequence[Example]
    pad: int
    filling: Mapping[str, Any]

    @classmethod
    def of(cls, cell: Cell, most_labels: int | None = None) -> TestRows:
        """At most `ROWS`, and so many labels."""
        from hfadapt.models.base import BaseRef
        from hfadapt.models.load import load_processor, pad_token_id, source_of

        lock, kind = cell.lock, registry.modality_of(cell.lock.task)
        processor = load_processor(source_of(BaseRef.of(lock)), kind.name, lock.data.max_length)
        rows, probes = (_encoded(cell, processor, each) for each in (_first(cell), _probes(cell)))
        return cls(cell, few(rows, most_labels), probes, pad_token_id(processor), kind.filling(processor))

    def scores(self, model: Any, device: torch.device) -> Scores:
        """What a model says of them."""
        import torch

        from hfadapt.train.batches import padded

        task = registry.task(self.cell.lock.task)
        with torch.inference_mode():
            scores: Scores = task.score(
                model, self.examples, lambda each: padded(task, each, self.pad, device, BATCH_ROWS)
            )
        return scores

    def differences(self, processor: Any) -> int:
        """The number of rows, probes among them, that another processor makes other inputs of."""
        import torch

        task, found = registry.task(self.cell.lock.task), 0
        # Apart as before: which documents a query is asked with may hang on the rows beside it.
        rows, probes = (_encoded(self.cell, processor, each) for each in (_first(self.cell), _probes(self.cell)))
        others = (*rows[: len(self.examples)], *probes)
        for own, other in zip((*self.examples, *self.probes), others, strict=True):
            one, two = task.collate([own], self.pad), task.collate([other], self.pad)
            found += one.keys() != two.keys() or not all(
                one[name].shape == two[name].shape and torch.allclose(one[name], two[name], atol=1e-5) for name in one
            )
        return found


def few(examples: Sequence[Example], most_labels: int | None) -> Sequence[Example]:
    """The first examples with at most so many labels together, but one in any case."""
    if most_labels is None:
        return examples
    upto = list(accumulate(example.label_count for example in examples))
    return examples[: max(1, sum(labels <= most_labels for labels in upto))]


def _first(cell: Cell) -> list[dict[str, Any]]:
    from hfadapt.data import read_split

    return list(read_split(cell.folder, "test")[:ROWS])


def _probes(cell: Cell) -> list[dict[str, Any]]:
    """The first test row with each of the modality's probes in the place of what the model is shown."""
    schema, kind = registry.schema(cell.data.form), registry.modality_of(cell.lock.task)
    return [schema.changed(row, lambda *_, probe=probe: probe) for row in _first(cell)[:1] for probe in kind.probes()]


def _encoded(cell: Cell, processor: Any, rows: Sequence[dict[str, Any]]) -> Sequence[Example]:
    lock = cell.lock
    return registry.task(lock.task).encode(rows, processor, max_length=lock.data.max_length, labels=cell.data.labels)


def kept_problems(kind: Format, folder: Path, model: Any, rows: TestRows) -> Iterator[Problem]:
    """Where a folder reads rows in another way than training did, or names the classes in another order.

    Args:
        model: As the format opens it.
    """
    cell = rows.cell
    try:
        processor = kind.processor(cell, folder)
        different = 0 if processor is None else rows.differences(processor)
        filling = rows.filling if processor is None else registry.modality_of(cell.lock.task).filling(processor)
    except (HfadaptError, OSError, ValueError) as error:
        yield Problem("the exported folder's own processor cannot read the test rows", kind.name, got=str(error)[:200])
        return
    if different:
        yield Problem(
            "the exported folder reads rows in another way than training did",
            kind.name,
            got=f"{different} of {len(rows.examples)} test rows and {len(rows.probes)} difficult ones become others",
            fix=AGAIN,
        )
    for name, value in rows.filling.items():
        if filling.get(name) != value:
            what = "the exported folder fills up rows in another way than training did"
            yield Problem(what, kind.name, got=f"{name} = {filling.get(name)}", allowed=str(value), fix=AGAIN)
    options = registry.task(cell.lock.task).model_options(cell.data.labels)
    yield from _other_settings(kind, folder, options)
    named = options.get("id2label")
    others = [each for each in _names(folder, model) if each != named]
    if named and others:
        yield Problem(
            "the exported model names its classes in another way",
            kind.name,
            got=", ".join(name for _, name in sorted(others[0].items()))[:200],
            allowed=", ".join(named.values())[:200],
            fix=AGAIN,
        )


def _other_settings(kind: Format, folder: Path, options: Mapping[str, Any]) -> Iterator[Problem]:
    """Where the config beside a model says something else of the task than training did; names of classes apart."""
    for name, value in options.items():
        said = _config(folder).get(name, value)
        if isinstance(value, (str, int)) and said != value:
            what = "the exported config says something else of the model than training did"
            yield Problem(what, kind.name, got=f"{name} = {said}", allowed=str(value), fix=AGAIN)


def _config(folder: Path) -> dict[str, Any]:
    """What stands beside a model of transformers; nothing where there is no such file."""
    path = folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _names(folder: Path, model: Any) -> Iterator[dict[int, str]]:
    """The classes as a model names them, and as the config beside it does: some formats say it twice."""
    for names in (getattr(model.config, "id2label", None) or {}, _config(folder).get("id2label")):
        if names is not None:
            yield {int(number): str(name) for number, name in names.items()}


def same_problems(kind: Format, difference: float, allowed: float | None) -> Iterator[Problem]:
    """Where what is read back is not what was written, though nothing was to be rounded."""
    if allowed is not None and not difference <= allowed:
        yield Problem(
            "the exported model does not score as the one that was written",
            kind.name,
            got=f"mean difference of a label's loss: {difference:.3g} nats",
            allowed=f"at most {allowed:g}",
            fix=AGAIN,
        )


def merged_problems(kind: Format, difference: float | None, kl_nats: float) -> Iterator[Problem]:
    """Where what is read back is not the adapter that was evaluated: another one, or the base without it.

    Args:
        difference: Mean difference of a label's loss from the evaluation; None where the cell was not evaluated.
        kl_nats: What drift.json has measured of the form. Losses that are a little apart differ by about the root of
            twice that, on average.
    """
    allowed = APART + 2 * (2 * kl_nats) ** 0.5
    if difference is not None and not difference <= allowed:
        yield Problem(
            "the exported model does not score as the adapter that was evaluated",
            kind.name,
            got=f"mean difference of a label's loss: {difference:.3g} nats",
            allowed=f"at most {allowed:.3g}",
            fix="evaluate again, hfadapt evaluate RECIPE, and export then",
        )


def difference_of(found: Scores, losses: Any) -> float:
    """Mean over the rows of the difference of their losses, per label."""
    import numpy as np

    return float(np.mean(np.abs(found.losses - np.asarray(losses)) / np.maximum(found.tokens, 1)))


def from_evaluation(cell: Cell, found: Scores) -> float | None:
    """The difference from predictions.parquet, where the cell was evaluated; None where losses depend on further rows
    that were evaluated with these."""
    path = cell.folder / PREDICTIONS
    if not path.exists():
        return None
    losses = [row["adapter_loss"] for row in read_rows(path, ["adapter_loss"])]
    if registry.task(cell.lock.task).joint and len(losses) != len(found.losses):
        return None
    return difference_of(found, losses[: len(found.losses)])


# --- what forms of a runtime of its own keep -------------------------------------------------------------------------


class Gate:
    """A cell's adapter as it was trained, asked about test rows once; forms are compared with that.

    Args:
        limits: What a form may lose.
        most_labels: Labels that a form is asked for; None for those of all rows.
    """

    def __init__(self, cell: Cell, limits: ExportLimits, device: torch.device, most_labels: int | None = None) -> None:
        from hfadapt.evaluate.context import open_context
        from hfadapt.evaluate.drift import Reference

        self.cell, self.limits = cell, limits
        context = open_context(cell, device, Silent(), baseline=False)
        self.task = context.task
        self.reference = Reference(context, few(context.test[:MOST_ROWS], most_labels))
        self.unit = self.reference.unit
        self._batches, self._tokenizer = context.batches, context.base.tokenizer
        # What was said is kept, and the model goes: what is judged has to have room.
        context.model = context.base.model = None
        release_memory()

    def judge(self, kind: Format, form: Form, folder: Path, model: Any, problems: Sequence[str]) -> Judged:
        """A form that was opened again.

        Args:
            folder: Holds its files and nothing else.
            model: What `reopen` gave.
            problems: What is known to be wrong with it.

        Raises:
            RunError: it answers with what is no number, or takes no such rows.
        """
        import torch

        lock = self.cell.lock
        said: list[torch.Tensor] = []
        scores = self.reference.scored(model, torch.device("cpu"), said.append)
        if not all(bool(each.isfinite().all()) for each in said):
            raise RunError("it answers with NaN or Inf", place=kind.name)
        metric = leading(lock.evaluate.metrics, self.reference.scores)
        result = compare(metric.name, self.reference.scores, scores, **sampling(lock))
        lost = [
            points_lost(metric, change or 0.0, result.base or 0.0) for change in (result.delta, result.low, result.high)
        ]
        apart, alike, margin = self._compared(said)
        decisive = margin > DECISIVE
        judged = Judged(
            form=form.name,
            bytes=sum(path.stat().st_size for name, path in files_in(folder) if kind.loads(form.name, name)),
            rows=len(self.reference.examples),
            metric=metric.name,
            value=result.adapter,
            points=lost[0],
            points_low=min(lost[1:]),
            points_high=max(lost[1:]),
            kl_nats=float(apart.mean()),
            most_kl_nats=float(apart.max()),
            answers=alike.numel(),
            agreement=float(alike.double().mean()),
            decisive=int(decisive.sum()),
            decisive_agreement=float(alike[decisive].double().mean()) if decisive.any() else None,
            alike=self.task.alike_means,
            latency_ms=self.latency(model),
            operators=kind.operators(folder),
        )
        faults = self.task.file_faults(model, self._usual(), self._tokenizer)
        reasons = tuple(self._reasons(judged, metric))
        few = bool(reasons) and not problems and not faults and self._few(judged, metric)
        return judged.model_copy(update={"refused": (*problems, *faults, *reasons), "by_chance": few})

    def _compared(self, said: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every label the divergence (L,), and of every answer whether it is alike and how decided (A,)."""
        import torch

        parts = []
        for own, other in zip(self.reference.kept, said, strict=True):
            if len(own):
                pair = own.double() / self.unit, other.double() / self.unit
                alike, margin = self.task.alike(*pair)
                parts.append((self.task.divergence(*pair).clamp(min=0), alike.flatten(), margin.flatten()))
        apart, alike, margin = (torch.cat(each) for each in zip(*parts, strict=True))
        return apart, alike, margin

    def _reasons(self, judged: Judged, metric: Any) -> Iterator[str]:
        limits = self.limits
        points = points_allowed(metric, limits.points, judged.rows)
        # Comparisons that NaN fails.
        if not judged.points <= points + 1e-9:
            unit = "points" if metric.unit_range else "percent"
            yield (
                f"{judged.metric} is worse by {judged.points:.2g} {unit} (interval {judged.points_low:+.2g} to "
                f"{judged.points_high:+.2g}, {judged.rows} rows), the limit is {points:.2g}"
            )
        if not judged.kl_nats <= limits.kl_nats:
            yield f"its answers differ by {judged.kl_nats:.3g} nats per label, the limit is {limits.kl_nats:g}"
        share = judged.decisive_agreement
        if share is not None and not share >= agreement_asked(limits.agreement, judged.decisive) - 1e-9:
            yield (
                f"of {judged.decisive:,} decided answers {round(share * judged.decisive):,} ({share:.2%}) are "
                f"{judged.alike}, the limit is {100 * limits.agreement:.4g}%"
            )

    def _few(self, judged: Judged, metric: Any) -> bool:
        """Whether a form that keeps the limits would show such losses on so few rows in more than one of twenty
        cases."""
        limits, share = self.limits, judged.decisive_agreement
        most = points_allowed(metric, limits.points, judged.rows)
        likely = share is None or at_least(round((1 - share) * judged.decisive), judged.decisive, 1 - limits.agreement)
        return judged.points_low <= most and judged.kl_nats <= limits.kl_nats and likely > CHANCE

    def _usual(self) -> Mapping[str, torch.Tensor]:
        """A batch of the test row of usual length."""
        order = sorted(self.reference.examples, key=lambda example: example.size)
        ((_, batch),) = self._batches([order[len(order) // 2]])
        return batch

    def latency(self, model: Any) -> float:
        """Median milliseconds of a test row of usual length, alone."""
        import torch

        batch, seconds = self._usual(), []
        with torch.inference_mode():
            for _ in range(3 + CALLS):
                started = time.perf_counter()
                self.task.label_logits(model, batch)
                seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[3:]) * 1000


def agreement_asked(limit: float, answers: int) -> float:
    """The share of decided answers that have to stay: as of points, of few answers one may turn."""
    return limit if limit >= 1.0 or not answers else min(limit, 1 - 1 / answers)


def at_least(count: int, answers: int, share: float) -> float:
    """How likely at least so many of the answers turn where each does with a likelihood of `share`."""
    from scipy.stats import binom

    return float(binom.sf(count - 1, answers, share))


def refused(problems: Sequence[Problem]) -> None:
    """Raises RunError with what is wrong with a folder, if anything is."""
    if problems:
        raise RunError(problems[0].what, problems=list(problems))
