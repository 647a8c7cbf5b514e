"""Dropout of what goes into low-rank parts: a row loses the same values in whatever batch or process it is worked on.

Nothing is drawn. A value is dropped where the product of two odd numbers of 32 bits, the key of its token and the key
of its column, is below a threshold: multiplicative hashing (Dietzfelbinger, Hagerup, Katajainen and Penttonen 1997,
doi:10.1006/jagm.1997.0873), one multiplication and one comparison for a value. The key of a token comes from its row's
seed and its place in the row, the key of a column from the layer's name. So packed rows equal padded ones, several
processes one, and an adapter that is trained with others one that is trained alone, with dropout too.

Layers that share an input lose the same values of it; peft has a mask for each. Either way every layer loses each value
with the probability that was asked for.

Shapes: N tokens, I inputs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MOST_VALUES = 1 << 22
"""Values whose products of keys are held at once: 16 MiB."""


@dataclass(frozen=True)
class Dropout:
    """What one pass through layers that share an input drops.

    Args:
        tokens, columns: Their keys, (N,) and (I,) int32.
        parts: First and last token, and share that is dropped, of each adapter's tokens; together they cover all N.
    """

    tokens: torch.Tensor
    columns: torch.Tensor
    parts: Sequence[tuple[int, int, float]]

    def dropped(self) -> torch.Tensor:
        """(N, I) bool, true where a value is dropped."""
        found = torch.empty((len(self.tokens), len(self.columns)), dtype=torch.bool, device=self.tokens.device)
        step = max(1, MOST_VALUES // len(self.columns))
        for first, end, share in self.parts:
            for start in range(first, end, step):
                piece = slice(start, min(end, start + step))
                torch.lt(self.tokens[piece, None] * self.columns, threshold(share), out=found[piece])
        return found


def threshold(share: float) -> int:
    """Products of keys below it are a share of all int32."""
    return min((1 << 31) - 1, round(share * (1 << 32)) - (1 << 31))


def factor(share: float) -> float:
    """What is kept is multiplied by this, so that the expected sum stays the same."""
    return 1 / (1 - share) if share < 1 else 0.0


def row_seed(seed: int, step: int, row: int) -> int:
    """The seed (63 bits) of a row in an optimizer step."""
    return _hashed(f"{seed}/{step}/{row}") >> 1


def token_keys(seeds: Sequence[int], starts: Sequence[int], tokens: int) -> torch.Tensor:
    """Keys (N,) of N `tokens`; row i begins at token `starts[i]`, the first one at 0."""
    counts = np.diff([*starts, tokens])
    places = np.arange(1, tokens + 1) - np.repeat(np.asarray(starts), counts)
    return _keys(np.repeat(np.asarray(seeds, dtype=np.uint64), counts), places)


def column_keys(name: str, inputs: int) -> torch.Tensor:
    """Keys (I,) of the inputs of the layer of this name."""
    return _keys(np.full(inputs, _hashed(name), dtype=np.uint64), np.arange(1, inputs + 1))


def random_keys(tokens: int, device: torch.device) -> torch.Tensor:
    """Keys (N,) from torch's own random numbers, for batches that were not announced."""
    return torch.randint(-(1 << 31), 1 << 31, (tokens,), dtype=torch.int32, device=device) | 1


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _keys(seeds: np.ndarray, places: np.ndarray) -> torch.Tensor:
    """SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) of seed and place; its upper half, odd."""
    x = seeds + GOLDEN * places.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return torch.tensor(((x >> np.uint64(32)) | np.uint64(1)).astype(np.uint32).view(np.int32))
