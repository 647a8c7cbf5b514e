"""What a recipe can say of export: the format, its form, and what a form may lose."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hfadapt.core.spec import Spec
from hfadapt.recipe.names import FormatName, Positive

Limit = Annotated[float, Field(ge=0.0)]


class ExportLimits(Spec):
    """What a form that rounds may lose, measured on test rows as its own runtime runs it.

    `points` of the task's leading metric (of fewer rows than 100 / points one row), `kl_nats` the mean divergence of a
    label's answer, `agreement` the least share of decided answers that stay the same.
    """

    points: Limit = 0.5
    kl_nats: Limit = 0.02
    agreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.99


class Export(Spec):
    """How `hfadapt export` writes the adapter where the command does not say it.

    `storage` is a form of the format, such as `int8-dynamic`; by default the first that passes. `calibration_rows` are
    training rows from which a form learns the range of what it rounds.
    """

    format: FormatName = "merged"
    storage: str | None = None
    calibration_rows: Positive = 128
    limits: ExportLimits = ExportLimits()

    @property
    def asked_format(self) -> bool:
        """Whether the recipe names the format, so that no target's takes its place."""
        return "format" in self.model_fields_set
