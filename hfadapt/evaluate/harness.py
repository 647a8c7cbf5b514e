"""Tasks of lm-evaluation-harness on base and adapter, both already loaded (optional extra `harness`).

The only file that uses lm_eval (Gao et al. 2024, doi 10.5281/zenodo.12608602).
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hfadapt.core.errors import RequestError, RunError
from hfadapt.evaluate.context import EvaluationContext
from hfadapt.evaluate.metrics.rows import RowMetric, bootstrap, sampling, summarise
from hfadapt.recipe.names import is_task_path
from hfadapt.recipe.sources import resolve_source
from hfadapt.records.stages import Metric

MEAN = 1e-9


def run_harness(context: EvaluationContext, recipe_folder: Path) -> tuple[Metric, ...]:
    """Every metric of every task in `evaluate.harness`, base against adapter on the same documents.

    Metrics that are means over documents get the paired bootstrap; others have no interval. A task given as a YAML
    file, or as a folder of them, needs no network where its data do not.

    Raises:
        RequestError: lm_eval is not installed, or a file is not there.
        RunError: a task cannot be loaded or run.
    """
    names = context.lock.evaluate.harness
    if not names:
        return ()
    try:
        with _quiet():
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager
    except ImportError:
        raise RequestError(
            "lm-evaluation-harness is not installed",
            place="evaluate.harness",
            got=", ".join(names),
            fix="pip install 'hfadapt[harness]'",
        ) from None
    specifications = [spec for name in names for spec in _specifications(name, recipe_folder)]
    manager = TaskManager(include_defaults=not all(is_task_path(name) for name in names))

    def results(model: Any) -> Mapping[str, Any]:
        wrapped = HFLM(
            pretrained=model,
            tokenizer=context.base.tokenizer,
            batch_size=context.lock.evaluate.batch_rows,
            backend="causal",
        )
        try:
            found = simple_evaluate(
                model=wrapped,
                tasks=list(specifications),
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=True,
                random_seed=context.lock.data.seed,
            )
        except Exception as error:  # whatever a task, its data or its code raises
            raise RunError(
                "a task of lm-evaluation-harness failed",
                place="evaluate.harness",
                got=f"{type(error).__name__}: {error}"[:300],
                fix="a task whose data lie on the Hub needs the network; a local task YAML with local data does not",
            ) from None
        assert found is not None
        return found

    with _quiet(), torch.no_grad():
        with context.adapter_on(False) as model:
            base = results(model)
        adapter = results(context.model)
    return tuple(_metrics(base, adapter, context))


def _specifications(name: str, recipe_folder: Path) -> list[str]:
    """What lm_eval takes: the name of a task, or absolute paths of YAML files (those of a folder but `_…`)."""
    if not is_task_path(name):
        return [name]
    path = resolve_source(name, recipe_folder)
    found = []
    if path is not None and path.is_dir():
        found = [file for file in sorted(path.glob("*.y*ml")) if not file.name.startswith("_")]
    elif path is not None:
        found = [path]
    if not found:
        raise RequestError(
            "there is no such task file", place="evaluate.harness", got=name, allowed="a YAML file, or a folder of them"
        )
    return [str(file.resolve()) for file in found]


def _metrics(base: Mapping[str, Any], adapter: Mapping[str, Any], context: EvaluationContext) -> Iterator[Metric]:
    for task, values in adapter["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not _finite(value):
                continue
            other = base["results"][task][key]
            better = bool(adapter.get("higher_is_better", {}).get(task, {}).get(metric, True))
            name = f"{task}_{metric}" if kind == "none" else f"{task}_{metric}_{kind}"
            yield _metric(
                RowMetric(name, "", "", better, np.asarray, _mean),
                (float(other) if _finite(other) else None, float(value)),
                [_values(found, task, metric, kind) for found in (base, adapter)],
                int(adapter.get("n-samples", {}).get(task, {}).get("effective", 0)),
                context,
            )


def _finite(value: Any) -> bool:
    """Whether there is a number to report; a perplexity can be infinite."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mean(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1e-12))


def _metric(
    metric: RowMetric,
    values: tuple[float | None, float],
    rows: Sequence[np.ndarray | None],
    count: int,
    context: EvaluationContext,
) -> Metric:
    """With an interval where both values are the means over the documents."""
    base, adapter = rows
    means = [
        part is not None and value is not None and len(part) and abs(part.mean() - value) < MEAN
        for part, value in zip(rows, values, strict=True)
    ]
    if base is not None and adapter is not None and all(means) and len(base) == len(adapter):
        statistics = [np.stack([part, np.ones(len(part))], axis=1) for part in (base, adapter)]
        return bootstrap(metric, *statistics, **sampling(context.lock))
    return summarise(metric.name, metric.higher_is_better, count, *values, None, None, context.lock.evaluate.confidence)


def _values(found: Mapping[str, Any], task: str, metric: str, kind: str) -> np.ndarray | None:
    """The metric of each document, in the order of the documents; None where it is not one number a document."""
    samples = [each for each in found.get("samples", {}).get(task, ()) if each.get("filter", kind) == kind]
    values = [each.get(metric) for each in sorted(samples, key=lambda each: each["doc_id"])]
    if not values or not all(isinstance(value, (int, float, np.number)) for value in values):
        return None
    return np.array(values, dtype=np.float64)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm_eval logs and draws bars; the run has a display of its own."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stderr(nothing):
            yield
    finally:
        logging.disable(before)
