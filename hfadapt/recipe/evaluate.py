"""What a recipe says of the comparison with the base: the recipe's `evaluate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hfadapt.core.spec import Section
from hfadapt.recipe.names import AUTO, Auto, Positive


class DriftLimits(Section):
    """Most that merging or another storage may change."""

    kl_nats: Annotated[float, Field(ge=0.0)] = 0.02
    """Mean KL divergence per label, in nats."""
    points: Annotated[float, Field(ge=0.0)] = 0.5
    """Points of the task's leading metric; of fewer rows than 100 / points one row."""


class Evaluate(Section):
    """How the adapter is compared with its base."""

    metrics: tuple[str, ...] | Auto = AUTO
    """Names (`hfadapt list metrics`), or paths of modules of `evaluate`; the first one leads.

    Auto: the task's usual metrics.
    Example: [accuracy, macro_f1]
    """
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the paired bootstrap."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence of the intervals."""
    batch_rows: Positive | Auto = AUTO
    """Rows that are scored at once.

    Auto: the plan: the most, up to 64, in the memory of training.
    Cost: memory grows in proportion.
    Example: 16
    """
    gates: dict[str, float] = {}
    """Smallest allowed gains by metric name; the adapter that gains less fails. Gains are positive when the adapter is
    better: `general_text: -0.5` allows a loss of half a point of perplexity.

    Example: {accuracy: 0.02}
    """
    generate_rows: Annotated[int, Field(ge=0)] = 64
    """Test rows whose completions are generated for text metrics.

    Cost: time grows in proportion; generating is slow.
    """
    general_text: bool = True
    """Checks a language model's perplexity on general text.

    Cost: a forward pass over the text, twice.
    """
    transfer: bool = True
    """Scores every adapter on every domain.

    Cost: time grows with the square of the number of domains.
    """
    security: bool = True
    """Checks leaks and robustness.

    Cost: several passes over some rows.
    """
    drift: bool = True
    """Checks merging, and bases in other precision.

    Cost: the base is loaded again for each.
    """
    drift_limits: DriftLimits = DriftLimits()
    """Most that merging or another storage may change."""
    without_pretrain: bool = False
    """Trains a second adapter on the task alone, for as many steps, and shows what `pretrain` has changed.

    Cost: the time of a second training.
    """
    harness: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness, by name or as YAML files; needs the extra `harness`.

    Cost: as those tasks take.
    Example: [arc_easy]
    """
