"""Changes of a value that are worked out when it is looked at, so that the changed rows of an epoch need no memory."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hfadapt.files.stored import Stored


@dataclass(frozen=True)
class Changed:
    """A value with changes that are worked out when it is looked at.

    Args:
        kept: The bytes of its file, or where they lie.
        steps: Name of each change, how much of it, and the seed of its draws.
    """

    kept: bytes | Stored
    steps: tuple[tuple[str, float, int], ...]

    def __bytes__(self) -> bytes:
        """What tells it apart from others: its file, and after that what is changed."""
        return bytes(self.kept) + repr(self.steps or "").encode()

    @classmethod
    def of(cls, value: bytes | Stored | Changed) -> Changed:
        """A value, which may have been changed before."""
        return value if isinstance(value, Changed) else cls(value, ())


@dataclass(frozen=True)
class Blended:
    """Two values that become one when it is looked at, both as they are changed before.

    Args:
        name: Of the way in which.
        share: Of the first.
        seed: Of its draws.
    """

    name: str
    first: Changed
    second: Changed
    share: float
    seed: int

    def __bytes__(self) -> bytes:
        """What tells it apart from others, as for `Changed`."""
        return bytes(self.first) + bytes(self.second) + repr((self.name, self.share, self.seed)).encode()


def later(name: str, value: bytes | Stored | Changed, share: float, draw: random.Random) -> Changed:
    """A change as an operation of a modality."""
    before = Changed.of(value)
    return Changed(before.kept, (*before.steps, (name, share, draw.getrandbits(64))))
