"""Changes of a value that are worked out when it is looked at, so that the changed rows of an epoch need no memory."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Changed:
    """A value with changes that are worked out when it is looked at.

    Args:
        data: The bytes of its file.
        steps: Name of each change, how much of it, and the seed of its draws.
    """

    data: bytes
    steps: tuple[tuple[str, float, int], ...]

    @classmethod
    def of(cls, value: bytes | Changed) -> Changed:
        """A value, which may have been changed before."""
        return value if isinstance(value, Changed) else cls(value, ())


def later(name: str, value: bytes | Changed, share: float, draw: random.Random) -> Changed:
    """A change as an operation of a modality."""
    before = Changed.of(value)
    return Changed(before.data, (*before.steps, (name, share, draw.getrandbits(64))))
