"""Merge drift: how far results move when the adapter is merged, or served on a base in another storage.

The reference is the adapter on the base as it was trained. Every variant is opened as a user would open it: a merged
model is written to disk, and what is then loaded is compared. One variant is in memory at a time, beside the context.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import torch

from hfadapt.core import registry
from hfadapt.evaluate.context import EvaluationContext
from hfadapt.evaluate.metrics.rows import RowMetric, compare, leading, points_allowed, points_lost, sampling
from hfadapt.fast import wide_products
from hfadapt.formats import Form
from hfadapt.hardware import catalogue
from hfadapt.hardware.peak_memory import release_memory
from hfadapt.hardware.processes import World
from hfadapt.models.attach import open_adapter
from hfadapt.models.base import BaseRef
from hfadapt.models.load import load_base
from hfadapt.models.merge import half_dtype, merged_dtype, open_merged, write_merged
from hfadapt.quants import PLAIN, automatic
from hfadapt.records.evidence import DriftRecord, Variant
from hfadapt.tasks import unique_parts

if TYPE_CHECKING:
    from hfadapt.modalities import Example
    from hfadapt.recipe.schema import Lock
    from hfadapt.records.stages import Metric
    from hfadapt.tasks import Scores

MOST_ROWS = 200
MOST_LOGITS = 1 << 26
"""Logits of the reference that are kept (256 MiB); of more labels every n-th is compared."""
CHEAP_PARAMETERS = 500_000_000
"""Above this, storages that the recipe did not ask for are not tried."""


def forms(lock: Lock, parameters: int, quants: Sequence[str]) -> tuple[list[Form], dict[str, str]]:
    """The ways to serve an adapter that are measured, the smallest first, and why others are not.

    Merging in 16 bits rounds away what is small beside the weight it is added to, so merging in float32 is always
    among them where the base is small enough.

    Args:
        parameters: Of the base.
        quants: What the target can hold.
    """
    half, skipped, trained = half_dtype(lock), {}, registry.quant(lock.quant).quantised
    whole = registry.adapter(lock.adapter.method).whole_model
    found = [] if whole or (not trained and lock.dtype == half) else [Form(half, False)]
    found += [Form(half, True), *((Form(half, True, dequantised=True),) if trained else ())]
    more = [Form("float32", True, dequantised=trained)]
    if trained:
        found.append(Form(lock.quant, True))
    else:
        more += [Form(quant.name, True) for quant in reversed(automatic())]
    for form in more:
        if form.quantised and form.storage not in quants:
            skipped[form.name] = f"the target {lock.target} does not hold weights in {form.storage}"
        elif parameters > CHEAP_PARAMETERS and form.storage != lock.dtype:
            skipped[form.name] = f"the recipe does not ask for it, and the base has {parameters:,} parameters"
        else:
            found.append(form)
    return found, skipped


def measure(context: EvaluationContext) -> DriftRecord:
    """Compares every form of the adapter with the reference on at most 200 test rows; the context stays as it is.

    Returns:
        KL divergence, logits and leading metric of each form, and which are above `evaluate.drift_limits`.
    """
    started = time.perf_counter()
    lock, cell = context.lock, context.cell
    examples = context.test[:MOST_ROWS]
    wanted, skipped = forms(lock, context.base.parameters, catalogue.target(lock.target).quants)
    if not any(isinstance(module, torch.nn.Linear) for module in context.base.model.base_model.modules()):
        # A net of convolutions: there is nothing in it that could be held in fewer bits.
        skipped |= {form.name: "the base has no linear layers" for form in wanted if form.quantised}
        wanted = [form for form in wanted if not form.quantised]
    context.progress.say(f"{context.cell.domain}: scoring the adapter as it was trained, for merge drift")
    reference = Reference(context, examples)
    scores = reference.scores
    metric = leading(lock.evaluate.metrics, scores)

    devices = [_device(form, context) for form in wanted]
    world = context.world or World()

    def measured(numbers: Sequence[int]) -> list[tuple[int, Variant | None, str]]:
        found: list[tuple[int, Variant | None, str]] = []
        for number in numbers:
            form, device = wanted[number], devices[number]
            if device is None:
                continue
            context.progress.say(f"{cell.domain}: merge drift of {form.name}")
            try:
                model = _open(form, context, folder, device)
                against, kl, most = reference.compared(model, device)
            except Exception as error:
                # Not every architecture can be run in fewer bits than in training, which libraries say in many ways.
                trained = not form.quantised and form.storage == lock.dtype
                if trained or isinstance(error, (MemoryError, torch.OutOfMemoryError)):
                    raise
                found.append((number, None, f"it cannot be run: {_said(error)}"))
                release_memory()
                continue
            result = compare(metric.name, scores, against, **sampling(lock))
            del model
            release_memory()
            variant = _variant(form, kl, most, result, context.task.in_spreads)
            found.append((number, variant, _too_far(variant, metric, result, lock) or ""))
        return found

    folder = world.on_main(lambda: _work_folder(cell.folder))
    try:
        # Of several processes transformers lets the first one write.
        world.on_main(lambda: _write_all(zip(wanted, devices, strict=True), context, folder))
        shared = [each for _, part in world.shared(len(wanted), measured) for each in part]
    finally:
        if world.is_main:
            shutil.rmtree(folder, ignore_errors=True)
    for form, device in zip(wanted, devices, strict=True):
        if device is None:
            skipped[form.name] = "there is not enough memory for it beside the base"
    variants, refused = [], {}
    for number, variant, why in sorted(shared, key=lambda each: each[0]):
        if variant is None:
            skipped[wanted[number].name] = why
            continue
        variants.append(variant)
        if why:
            refused[variant.name] = why
    return DriftRecord(
        domain=cell.domain,
        target=cell.target,
        reference=_reference(lock),
        rows=len(examples),
        variants=tuple(variants),
        limit_kl_nats=lock.evaluate.drift_limits.kl_nats,
        limit_spreads=_spreads(lock.evaluate.drift_limits.kl_nats) if context.task.in_spreads else None,
        limit_points=points_allowed(metric, lock.evaluate.drift_limits.points, len(examples)),
        refused=refused,
        skipped=skipped,
        labels=reference.labels,
        seconds=time.perf_counter() - started,
    )


def on_target(record: DriftRecord, lock: Lock) -> DriftRecord | None:
    """What was measured for another target with the same adapter, as it is for that of a lock; None where that holds
    storages that the other does not."""
    quants = catalogue.target(lock.target).quants
    if not {*quants} <= {*catalogue.target(record.target).quants}:
        return None
    left_out = forms(lock, 0, quants)[1]
    return record.model_copy(
        update={
            "target": lock.target,
            "variants": tuple(each for each in record.variants if each.name not in left_out),
            "refused": {name: why for name, why in record.refused.items() if name not in left_out},
            "skipped": record.skipped | left_out,
        }
    )


def _reference(lock: Lock) -> str:
    if registry.adapter(lock.adapter.method).whole_model:
        return f"the trained model in {lock.dtype}"
    return f"the adapter on the base in {registry.quant(lock.quant).storage(lock.dtype)}, as it was trained"


# --- opening a form --------------------------------------------------------------------------------------------------


def _place(form: Form, lock: Lock, folder: Path) -> tuple[Path, str]:
    """Where the merged model of a form is, and its dtype."""
    dtype = merged_dtype(lock) if form.quantised else form.storage
    return folder / f"{dtype}{'-dequantised' if form.dequantised else ''}", dtype


def _write_all(forms: Iterable[tuple[Form, torch.device | None]], context: EvaluationContext, folder: Path) -> None:
    """Writes the merged models of all forms, each once."""
    lock, labels, adapter = context.lock, context.data.labels, context.cell.adapter
    for form, device in forms:
        place, dtype = _place(form, lock, folder)
        if form.merged and device is not None and not place.exists():
            context.progress.say(f"{context.cell.domain}: merging in {dtype}")
            base = open_merged(lock, labels, adapter, dtype, device, dequantised=form.dequantised)
            write_merged(base, lock, place)
            release_memory()


def _open(form: Form, context: EvaluationContext, folder: Path, device: torch.device) -> Any:
    """The form as a model in evaluation mode, a merged one from what was written."""
    lock, labels, adapter = context.lock, context.data.labels, context.cell.adapter
    if not form.merged:
        plain = load_base(BaseRef.of(lock).stored(PLAIN, form.storage), labels, device)
        return open_adapter(plain, adapter, lock.adapter.method, device).eval()
    written, dtype = _place(form, lock, folder)
    quant = form.storage if form.quantised else PLAIN
    return load_base(BaseRef.of(lock).at(written).stored(quant, dtype), labels, device).model.eval()


def _device(form: Form, context: EvaluationContext) -> torch.device | None:
    """The context's device where the form has room on it, else the CPU, else None."""
    size = 4 if "float32" in (form.storage, context.lock.dtype) else 2
    needed = int(context.base.parameters * size * 1.3)
    if context.device.type == "cuda" and torch.cuda.mem_get_info(context.device)[0] > needed:
        return context.device
    if catalogue.memory_limits()[1] > needed * (context.world.size if context.world else 1):
        return context.device if context.device.type != "cuda" else torch.device("cpu")
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _work_folder(cell: Path) -> Path:
    """A hidden folder in the cell, since merged models may be too large for the system's own place; what a killed
    process has left is taken away."""
    for left in cell.glob(".drift-*"):
        shutil.rmtree(left, ignore_errors=True)
    return Path(mkdtemp(dir=cell, prefix=".drift-"))


# --- comparing -------------------------------------------------------------------------------------------------------


class Reference:
    """What the context's adapter says about examples: its scores, and the logits of their labels, batch by batch."""

    def __init__(self, context: EvaluationContext, examples: Sequence[Example]) -> None:
        self.context, self.examples = context, examples
        self.step: int | None = None
        self.kept: list[torch.Tensor] = []
        self.scores = self.scored(context.model, context.device, self.kept.append)
        # Numbers are compared in units of their spread: prices in cents drift no more than prices in euros.
        self.unit = context.task.unit(self.kept)

    @property
    def labels(self) -> int:
        """Labels whose logits are compared."""
        return sum(len(logits) for logits in self.kept)

    def compared(self, model: Any, device: torch.device) -> tuple[Scores, float, float]:
        """Scores of another model; its mean KL(reference || model) per label in nats (Kullback & Leibler 1951); and
        the largest difference of a logit."""
        total, most, reference = 0.0, 0.0, iter(self.kept)

        def look(logits: torch.Tensor) -> None:
            nonlocal total, most
            own = next(reference)
            if len(own):
                pair = own.double() / self.unit, logits.double() / self.unit
                total += float(self.context.task.divergence(*pair).sum())
                most = max(most, float((own - logits).abs().max()))

        scores = self.scored(model, device, look)
        return scores, max(0.0, total / max(self.labels, 1)), most

    def scored(self, model: Any, device: torch.device, look: Callable[[torch.Tensor], None]) -> Scores:
        """Scores the examples and shows the logits of their labels, (L, V) or (L, C) in float32, from the same pass;
        of many labels every `step`-th."""
        context, once, seen = self.context, Once(model), 0
        own = unique_parts(self.examples)[0] if context.task.joint else self.examples

        def batches(examples: Sequence[Example]) -> Iterator[tuple[Sequence[int], Mapping[str, torch.Tensor]]]:
            nonlocal seen
            for numbers, batch in context.batches(examples):
                moved = {name: tensor.to(device) for name, tensor in batch.items()}
                if examples is own or (context.task.joint and examples == own):
                    logits = context.task.label_logits(once, moved)
                    if self.step is None:
                        labels = sum(sum(label >= 0 for label in example.labels) for example in examples)
                        self.step = max(1, math.ceil(labels * logits.shape[-1] / MOST_LOGITS))
                    look(logits[-seen % self.step :: self.step].float().cpu())
                    seen += len(logits)
                yield numbers, moved

        with torch.inference_mode(), wide_products():
            scores: Scores = context.task.score(once, self.examples, batches, tuple(context.choices.values()))
        return scores


class Once:
    """A model that answers a batch which it has just seen from memory."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen: torch.Tensor | None = None
        self._output: Any = None

    def __call__(self, **inputs: Any) -> Any:
        """The model's output for a batch."""
        first = next(iter(inputs.values()))
        if first is not self._seen:
            self._seen, self._output = first, self._model(**inputs)
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _spreads(kl: float) -> float:
    """How far the means of normal distributions one spread wide are apart of which this is the divergence in nats."""
    return math.sqrt(2 * kl)


def _variant(form: Form, kl: float, most: float, result: Metric, in_spreads: bool) -> Variant:
    assert result.delta is not None
    return Variant(
        name=form.name,
        storage=form.storage,
        merged=form.merged,
        kl_nats=None if in_spreads else kl,
        spreads=_spreads(kl) if in_spreads else None,
        max_logit_difference=most,
        metric=result.name,
        value=result.adapter,
        delta=result.delta,
        low=result.low,
        high=result.high,
    )


def _too_far(variant: Variant, metric: RowMetric, result: Metric, lock: Lock) -> str | None:
    """Why a variant is not shipped, or None. Only a loss counts in the metric; any change counts in the divergence."""
    limits, found = lock.evaluate.drift_limits, []
    if variant.divergence > limits.kl_nats and variant.spreads is not None:
        found.append(
            f"its answers differ by {variant.spreads:.3g} of their spread, the limit is {_spreads(limits.kl_nats):.3g} "
            f"(drift_limits.kl_nats {limits.kl_nats:g})"
        )
    elif variant.divergence > limits.kl_nats:
        found.append(f"its answers differ by {variant.kl_nats:.3g} nats per label, the limit is {limits.kl_nats:g}")
    points = points_lost(metric, variant.delta, result.base or 0.0)
    allowed = points_allowed(metric, limits.points, result.rows)
    # One row of 200 is 0.005 only up to the rounding of float64.
    if points > allowed + 1e-9:
        # Of a metric that is no share, a point is a percent of the reference.
        unit = "points" if metric.unit_range else "percent"
        interval = f"[{variant.low:+.3g}, {variant.high:+.3g}]"
        found.append(
            f"{metric.name} is worse by {points:.2g} {unit} (change {variant.delta:+.3g}, interval {interval}, "
            f"{result.rows} rows), the limit is {allowed:.3g}"
        )
    return "; ".join(found) or None
