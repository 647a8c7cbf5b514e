"""What a recipe can say of export: the format, its form, and what a form may lose."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hfadapt.core.spec import Section
from hfadapt.recipe.names import FormatName, Positive

Limit = Annotated[float, Field(ge=0.0)]


class ExportLimits(Section):
    """What a form that rounds may lose, measured on test rows as its own runtime runs it."""

    points: Limit = 0.5
    """Points of the task's leading metric; of fewer rows than 100 / points one row."""
    kl_nats: Limit = 0.02
    """Mean KL divergence of a label's answer, in nats."""
    agreement: Annotated[float, Field(ge=0.0, le=1.0)] = 0.99
    """The least share of decided answers that stay the same; of few answers one may turn."""


class Export(Section):
    """How `hfadapt export` writes the adapter where the command does not say it."""

    format: FormatName = "merged"
    """What is written; where it is not said, a target that only serves has its own."""
    storage: str | None = None
    """A form of the format; by default the first that passes.

    Example: int8-dynamic
    """
    calibration_rows: Positive = 128
    """Training rows from which a form learns the range of what it rounds, or which inputs matter."""
    limits: ExportLimits = ExportLimits()
    """What a form that rounds may lose."""

    @property
    def asked_format(self) -> bool:
        """Whether the recipe names the format, so that no target's takes its place."""
        return "format" in self.model_fields_set
