"""Which tokens of a batch belong together: packed rows, or padded ones.

Attention stays inside a row, and rows of several adapters may share a batch. Everything is worked out once per batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch

from hfadapt.fast.dropout import token_keys
from hfadapt.fast.limits import MOST_SCORES, QUERY_BLOCK

SAME_BUCKET = 1.25
"""Rows are worked on together when the longest has at most this many times the tokens of the shortest, plus 8."""


@dataclass(frozen=True)
class Bucket:
    """Rows of similar length.

    Args:
        starts, lengths: (B,) int64: first token and number of tokens of each row.
        longest: Of them, rounded up to a multiple of 8.
    """

    starts: torch.Tensor
    lengths: torch.Tensor
    longest: int


@dataclass(frozen=True)
class Segment:
    """Tokens `first` to `end` (and rows `first_row` to `end_row`) that go through one adapter."""

    adapter: str
    first: int
    end: int
    first_row: int
    end_row: int


@dataclass(frozen=True)
class Documents:
    """The rows of a batch of N tokens.

    Args:
        starts, lengths: First token and number of tokens of each row.
        tokens: N, padding included.
        segments: Which adapter the tokens go through; together they cover all N.
        seeds: Of each row, for dropout; empty where there is none.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    tokens: int
    segments: tuple[Segment, ...]
    seeds: tuple[int, ...] = ()

    @property
    def padded(self) -> bool:
        """Whether some tokens belong to no row."""
        return sum(self.lengths) < self.tokens

    @cached_property
    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Starts and lengths as tensors (B,) int64."""
        return torch.tensor(self.starts), torch.tensor(self.lengths)

    def keys(self, count: int, device: torch.device) -> torch.Tensor | None:
        """Keys for dropout (count,) int32 of the tokens, or where an input has others than these, of as many vectors
        of each row; None without seeds."""
        rows = len(self.starts)
        if not self.seeds or (count != self.tokens and count % rows):
            return None
        if (count, device) not in self._keys:
            starts = self.starts if count == self.tokens else range(0, count, count // rows)
            with torch.inference_mode(False):
                self._keys[count, device] = token_keys(self.seeds, starts, count).to(device, non_blocking=True)
        return self._keys[count, device]

    @cached_property
    def _keys(self) -> dict[tuple[int, torch.device], torch.Tensor]:
        return {}

    def offsets(self, device: torch.device) -> tuple[torch.Tensor, int]:
        """Where rows begin, and the end, (B + 1,) int32 on the device, and the tokens of the longest one.

        Padding makes rows of its own, so that no token has to be moved.
        """
        ends = {start + length for start, length in zip(self.starts, self.lengths, strict=True)}
        edges = sorted({0, self.tokens, *self.starts, *ends})
        if device not in self._offsets:
            with torch.inference_mode(False):  # rows that are scored first can be trained on later
                self._offsets[device] = torch.tensor(edges, dtype=torch.int32).to(device)
        return self._offsets[device], max(end - start for start, end in pairwise(edges))

    @cached_property
    def _offsets(self) -> dict[torch.device, torch.Tensor]:
        # For all layers: the program waits for a GPU whenever it copies something to it.
        return {}

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The rows by length."""
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        groups: list[list[int]] = []
        for row in order:
            first = groups[-1][0] if groups else row
            if groups and self.lengths[first] <= SAME_BUCKET * self.lengths[row] + 8:
                groups[-1].append(row)
            else:
                groups.append([row])
        return [
            Bucket(
                torch.tensor([self.starts[i] for i in rows]),
                torch.tensor([self.lengths[i] for i in rows]),
                -(-self.lengths[rows[0]] // 8) * 8,
            )
            for rows in groups
        ]

    def share(self, bucket: Bucket, heads: int) -> list[Bucket]:
        """A bucket in parts whose scores can be held at once."""
        rows = max(1, MOST_SCORES // max(1, heads * min(bucket.longest, QUERY_BLOCK) * bucket.longest))
        return [
            Bucket(bucket.starts[i : i + rows], bucket.lengths[i : i + rows], bucket.longest)
            for i in range(0, len(bucket.starts), rows)
        ]


def packed_rows(lengths: Sequence[int], adapters: Sequence[str], seeds: Sequence[int] = ()) -> Documents:
    """Rows one after the other; row i goes through `adapters[i]`, rows of one adapter together.

    A few tokens that belong to no row make the line a round number long.
    """
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    tokens = round_tokens(total)
    ends = [*starts[1:], tokens]
    return Documents(tuple(starts), tuple(lengths), tokens, _segments(adapters, starts, ends), tuple(seeds))


def round_tokens(tokens: int) -> int:
    """At most a sixteenth more, so that few sizes occur: the CPU's matrix library compiles and keeps code for each."""
    step = max(16, 1 << max(0, tokens.bit_length() - 5))
    return -(-tokens // step) * step


def padded_rows(lengths: Sequence[int], width: int, adapters: Sequence[str], seeds: Sequence[int] = ()) -> Documents:
    """Rows padded on the right to `width` tokens."""
    starts = [row * width for row in range(len(lengths))]
    ends = [start + width for start in starts]
    segments = _segments(adapters, starts, ends)
    return Documents(tuple(starts), tuple(lengths), len(lengths) * width, segments, tuple(seeds))


def _segments(adapters: Sequence[str], starts: Sequence[int], ends: Sequence[int]) -> tuple[Segment, ...]:
    found: list[Segment] = []
    for row, adapter in enumerate(adapters):
        if found and found[-1].adapter == adapter:
            last = found[-1]
            found[-1] = Segment(adapter, last.first, ends[row], last.first_row, row + 1)
        else:
            found.append(Segment(adapter, starts[row], ends[row], row, row + 1))
    return tuple(found)


class Current:
    """The documents of the batch that is being worked on, and the dtype of its attention products (None: as they come).

    It outlives the forward pass, since a checkpointed layer asks again in the backward pass.
    """

    def __init__(self) -> None:
        self.documents: Documents | None = None
        self.dtype: torch.dtype | None = None


CURRENT = Current()


@contextmanager
def batch(documents: Documents, dtype: torch.dtype | None = None) -> Iterator[None]:
    """While inside, the fast path works on these documents."""
    before = CURRENT.documents, CURRENT.dtype
    CURRENT.documents, CURRENT.dtype = documents, dtype
    try:
        yield
    finally:
        CURRENT.documents, CURRENT.dtype = before
