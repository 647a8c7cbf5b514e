"""What a device allows of an exported model: `targets: [{android-8gb: {bytes: 30MB, latency: 20ms}}]`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from hfadapt.core.spec import Section
from hfadapt.recipe.names import with_unit

_SIZES = (("B", 1), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30))
_TIMES = (("ms", 1e-3), ("s", 1))


def _whole(value: Any) -> Any:
    return round(value) if isinstance(value, float) else value


Bytes = Annotated[
    int,
    Field(gt=0),
    BeforeValidator(_whole, json_schema_input_type=Annotated[float, Field(gt=0.5)]),
    with_unit(_SIZES, "30MB"),
]
Seconds = Annotated[float, Field(gt=0), with_unit(_TIMES, "20ms")]


class Budget(Section):
    """The most that a target allows of an exported model; what is not said is the catalogue's."""

    bytes: Bytes | None = None
    """Of the model's files, in bytes or with a unit.

    Example: 30MB
    """
    latency: Seconds | None = None
    """Of one answer, in seconds or with a unit.

    Example: 20ms
    """
