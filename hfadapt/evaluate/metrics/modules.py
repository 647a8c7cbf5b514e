"""Our metrics as modules of Hugging Face `evaluate`, and the user's own modules in the same comparison.

`RowMetricModule("accuracy").compute(predictions=[0, 1], references=[0, 0])` needs neither network nor Hub. Modules of a
user are loaded by absolute path: by bare name `evaluate.load` takes a folder of that name in the working directory, or
asks the Hub.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
from typing_extensions import Unpack

from hfadapt.core.errors import RequestError
from hfadapt.core.progress import quiet_libraries
from hfadapt.evaluate.metrics.rows import Sampling, find, summarise
from hfadapt.evaluate.metrics.text import Texts
from hfadapt.records.stages import Metric
from hfadapt.tasks import Scores

MODULE_RESAMPLES = 200
"""A module is computed anew for every bootstrap sample, so there are fewer of them."""

SLOW_SECONDS = 0.5
"""A module that takes longer than this gets no interval."""

_FEATURES: dict[str, tuple[Any, Any]] = {
    "classes": (datasets.Value("int64"), datasets.Value("int64")),
    "probabilities": (datasets.Sequence(datasets.Value("float64")), datasets.Value("int64")),
    "losses": (datasets.Value("float64"), datasets.Value("int64")),
    "texts": (datasets.Value("string"), datasets.Value("string")),
}


class RowMetricModule(evaluate.Metric):
    """One of our metrics, by its name; `compute` gives `{name: value}`.

    `predictions` and `references` are class indices, or rows of class probabilities and class indices, or summed
    losses in nats and numbers of labels, or texts, as the metric needs.
    """

    def __init__(self, metric: str, **options: Any) -> None:
        self.metric = find(metric)
        super().__init__(config_name=metric, **options)

    def _info(self) -> evaluate.MetricInfo:
        predictions, references = _FEATURES[self.metric.needs]
        return evaluate.MetricInfo(
            description=self.metric.about,
            citation="",
            inputs_description=(RowMetricModule.__doc__ or "").strip(),
            features=datasets.Features({"predictions": predictions, "references": references}),
        )

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        if not len(predictions):
            raise ValueError("there are no predictions")
        statistics = self.metric.statistics(_inputs(self.metric.needs, predictions, references))
        return {self.metric.name: float(self.metric.value(statistics.sum(0)))}


def _inputs(needs: str, predictions: Sequence[Any], references: Sequence[Any]) -> Scores | Texts:
    if needs == "texts":
        return Texts(range(len(predictions)), predictions, references)
    none = np.zeros(len(predictions))
    if needs == "losses":
        return Scores(None, None, None, np.asarray(predictions, dtype=np.float64), np.asarray(references))
    gold = np.asarray(references, dtype=np.int64)
    if needs == "probabilities":
        table = np.asarray(predictions, dtype=np.float64)
        return Scores(gold, table.argmax(-1), table, none, none)
    return Scores(gold, np.asarray(predictions, dtype=np.int64), None, none, none)


def load_module(path: Path) -> evaluate.EvaluationModule:
    """The `evaluate` module in a file, or in a folder with a file of the same name.

    Raises:
        RequestError: it is not there, or is not one.
    """
    path = path.resolve()
    if not path.exists():
        raise RequestError("there is no such metric", place="evaluate.metrics", got=str(path), fix="check the path")
    try:
        return evaluate.load(str(path))
    except Exception as error:  # whatever the module's own code raises
        raise RequestError(
            "the metric cannot be loaded",
            place=str(path),
            got=f"{type(error).__name__}: {error}"[:300],
            allowed="a file, or a folder with a file of its name, that defines an evaluate.Metric",
        ) from None


@quiet_libraries()
def compare_module(
    path: Path,
    base: Scores,
    adapter: Scores,
    texts: tuple[Texts, Texts] | None,
    names: Sequence[str],
    **how: Unpack[Sampling],
) -> tuple[Metric, ...]:
    """The values of a user's module for base and adapter, one Metric each, with a paired bootstrap of 200 samples.

    The module gets class indices, or class names or generated texts where it takes strings. Higher is taken as better
    unless the module has `higher_is_better = False`. A module that takes longer than half a second gets no interval,
    nor does one that has no number for some of the samples (a correlation, where all rows are alike).

    Args:
        texts: What base and adapter wrote, where the task generates.
        names: Names of the classes.

    Raises:
        RequestError: the module needs other inputs, or gives no number for the adapter.
    """
    module = load_module(path)
    own, other, references = _columns(module, path, base, adapter, texts, names)
    started = time.perf_counter()
    value = _values(module, path, own, references)
    slow = time.perf_counter() - started > SLOW_SECONDS
    base_value = _values_if_any(module, path, other, references)
    samples: list[tuple[Mapping[str, float], Mapping[str, float]]] = []
    if not slow:
        draw = np.random.default_rng(how["seed"])
        for _ in range(min(how["resamples"], MODULE_RESAMPLES)):
            rows = draw.integers(0, len(references), len(references))
            drawn = [references[i] for i in rows]
            samples.append(
                (
                    _values_if_any(module, path, [other[i] for i in rows], drawn),
                    _values_if_any(module, path, [own[i] for i in rows], drawn),
                )
            )
    better = bool(getattr(module, "higher_is_better", True))
    found = []
    for key in value:
        columns = [np.array([pair[side].get(key, np.nan) for pair in samples]) for side in (0, 1)]
        usable = bool(samples) and all(np.isfinite(column).all() for column in columns)
        found.append(
            summarise(
                path.stem if len(value) == 1 else f"{path.stem}_{key}",
                better,
                len(references),
                base_value.get(key),
                value[key],
                columns[0] if usable else None,
                columns[1] if usable else None,
                how["confidence"],
            )
        )
    return tuple(found)


def _columns(
    module: Any,
    path: Path,
    base: Scores,
    adapter: Scores,
    texts: tuple[Texts, Texts] | None,
    names: Sequence[str],
) -> tuple[list[Any], list[Any], list[Any]]:
    """Predictions of adapter and base, and references, in the kind the module takes."""
    features = module.features[0] if isinstance(module.features, list) else module.features
    wants_text = getattr(features.get("predictions"), "dtype", None) in ("string", "large_string")
    if set(features) != {"predictions", "references"}:
        raise RequestError(
            "the metric takes other inputs than predictions and references",
            place=str(path),
            got=", ".join(features),
            allowed="predictions and references",
        )
    if wants_text and texts is not None:
        other, own = texts
        return list(own.predictions), list(other.predictions), list(own.references)
    if adapter.gold is None or adapter.predictions is None or base.predictions is None:
        raise RequestError(
            "the metric finds nothing to score",
            place=str(path),
            got="a language model without a small set of answers",
            allowed="a metric of strings, and evaluate.generate_rows above 0",
        )
    columns = [list(map(int, part)) for part in (adapter.predictions, base.predictions, adapter.gold)]
    if wants_text:
        columns = [[names[i] for i in column] for column in columns]  # type: ignore[misc]
    return columns[0], columns[1], columns[2]


def _values(module: Any, path: Path, predictions: list[Any], references: list[Any]) -> dict[str, float]:
    """The numbers that the module gives, by name; `_compute` spares the files that `compute` writes."""
    try:
        found = module._compute(predictions=predictions, references=references)
    except Exception as error:  # whatever the module's own code raises
        raise RequestError("the metric failed", place=str(path), got=f"{type(error).__name__}: {error}"[:300]) from None
    numbers = {str(key): float(value) for key, value in (found or {}).items() if np.ndim(value) == 0 and _number(value)}
    if not numbers:
        raise RequestError("the metric gives no number", place=str(path), got=str(found)[:200])
    return numbers


def _values_if_any(module: Any, path: Path, predictions: list[Any], references: list[Any]) -> dict[str, float]:
    """The same, nothing where these rows have no value: a baseline may choose one class throughout."""
    try:
        return _values(module, path, predictions, references)
    except RequestError:
        return {}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))
