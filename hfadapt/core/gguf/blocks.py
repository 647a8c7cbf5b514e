"""Weights rounded in blocks, as llama.cpp stores them: 32 with a scale each, or 256 whose scales are rounded too.

The package `gguf` writes the first kind by the largest value of a block, and only reads the second (Q4_K, Q5_K, Q6_K).
Both are rounded here in the way of llama.cpp's own `ggml-quants.c`: of a few scales near the one that covers all values
of a block, the one with the least squared error, each value weighted by its size and by how much its input matters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    Pack = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]

READ_OR_SAID = ("token_embd.weight", "output.weight")
"""What tokens are read by and said with."""
BLOCK = 256
NARROWS = 32
CHUNK = 1 << 18
"""Values at once, which caches hold."""
NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Of rows that are no multiple of 256 long, as llama.cpp has it."""
BITS = {"Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q5_0": 5.5, "Q5_1": 6.0, "Q4_K": 4.5, "Q4_1": 5.0, "Q4_0": 4.5}
"""Of a weight, with its share of the scales (`gguf.GGML_QUANT_SIZES`)."""
FINER = 0.17
"""Share of what is between the two ends of a model that a mixture stores finer, about."""
TINY = 1e-30
NUDGES = tuple(0.1 * each for each in sorted(range(-10, 11), key=abs))
"""By how many codes the range of a block is wider than its values."""
LARGEST = 65504.0
"""In float16."""


@dataclass(frozen=True)
class Mixture:
    """Which kind of blocks each matrix gets.

    Attributes:
        usual: Of most of them.
        finer: Of what a model feels most: values of attention and the way down from the feed-forward layer, in every
            third layer and in the first and last eighth of them.
        ends: Of what tokens are read by and said with.
        joined: Of queries, keys and values in one matrix.
    """

    usual: str
    finer: str
    ends: str
    joined: str

    def kind(self, name: str, columns: int, layers: int) -> str:
        """The kind of a matrix by its name in the file."""
        if name in READ_OR_SAID:
            found = self.ends
        elif name.endswith("attn_qkv.weight"):
            found = self.joined
        elif name.endswith(("attn_v.weight", "ffn_down.weight")) and _matters(int(name.split(".")[1]), layers):
            found = self.finer
        else:
            found = self.usual
        return _fitting(found, columns)

    @property
    def weighed(self) -> bool:
        """Whether errors are weighed by the inputs that they meet."""
        return self.usual in _PACKS

    def bytes(self, parameters: int, ends: int, columns: int) -> int:
        """About, of a model with that many parameters; `ends` of them read and say tokens, in rows of `columns`."""
        usual, finer, end = (BITS[_fitting(kind, columns)] for kind in (self.usual, self.finer, self.ends))
        return int((ends * end + (parameters - ends) * (usual + FINER * (finer - usual))) / 8)


def _fitting(kind: str, columns: int) -> str:
    return NARROW[kind] if kind in NARROW and columns % BLOCK else kind


def _matters(layer: int, layers: int) -> bool:
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


def _all(kind: str) -> Mixture:
    return Mixture(kind, kind, "Q8_0", kind)


MIXTURES: Mapping[str, Mixture] = {
    "q8_0": _all("Q8_0"),
    "q6_k": Mixture("Q6_K", "Q6_K", "Q6_K", "Q6_K"),
    "q5_k_m": Mixture("Q5_K", "Q6_K", "Q6_K", "Q6_K"),
    "q5_1": _all("Q5_1"),
    "q4_k_m": Mixture("Q4_K", "Q6_K", "Q6_K", "Q5_K"),
    "q4_1": _all("Q4_1"),
    "q4_0": _all("Q4_0"),
}
"""By their names in small letters, the largest first; those of K as llama.cpp mixes them."""


def rounded(values: np.ndarray, kind: str, importance: np.ndarray | None = None) -> np.ndarray:
    """A matrix as a file has it, (R, bytes of a row) or in a dtype (R, C).

    Args:
        values: (R, C), float32.
        kind: Of blocks or a dtype, as ggml names it.
        importance: Of each input (C,): the mean of its squares.
    """
    import gguf
    import numpy as np
    import torch

    if kind not in _PACKS:
        found: np.ndarray = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
        return found
    size, pack = _PACKS[kind]
    blocks = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(-1, size)
    weights = None if importance is None else torch.from_numpy(importance).float().reshape(-1, size)
    parts, at_once = [], CHUNK // size
    for start in range(0, len(blocks), at_once):
        chunk = blocks[start : start + at_once]
        own = None
        if weights is not None:
            own = weights[torch.arange(start, start + len(chunk)) % len(weights)]
        parts.append(pack(chunk, own))
    return torch.cat(parts).reshape(len(values), -1).numpy()


def _weights(
    blocks: torch.Tensor, importance: torch.Tensor | None, small: int, alone: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """How much an error of each value counts, (N, values of a block / small, small)."""
    parts = blocks.reshape(len(blocks), -1, small)
    if importance is None:
        return alone(parts)
    spread = 2 * blocks.square().mean(-1)[:, None, None]
    return importance.reshape(parts.shape) * (spread + parts.square()).sqrt()


def _with_least(bits: int) -> Pack:
    """Q4_K and Q5_K: codes from 0, with a scale and a least value for each 32."""
    most = 2**bits - 1

    def pack(blocks: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        import torch

        x = blocks.reshape(len(blocks), 8, 32)
        weights = _weights(blocks, importance, 32, lambda part: part.square().mean(-1, True).sqrt() + part.abs())
        scale, least = _scale_and_least(x, weights, most)
        d, scales = _in_codes(scale, weights.sum(-1), 0, 63)
        dmin, leasts = _in_codes(least, weights.sum(-1), 0, 63)
        codes = _coded(x, d[:, None] * scales, (dmin[:, None] * leasts)[..., None], 0, most).byte()
        pairs = (codes & 15).reshape(len(blocks), 4, 2, 32)
        low = (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)
        parts = [_halves(d), _halves(dmin), _six_bits(scales.byte(), leasts.byte())]
        if bits == 5:
            shifts = torch.arange(8, dtype=torch.uint8)[:, None]
            parts.append((codes >> 4 << shifts).sum(1).byte())
        return torch.cat([*parts, low], -1)

    return pack


def _around_zero(blocks: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    """Q6_K: codes from -32 to 31, with a scale for each 16."""
    import torch

    x = blocks.reshape(len(blocks), 16, 16)
    weights = _weights(blocks, importance, 16, torch.square)
    d, scales = _in_codes(_scale(x, weights, 32), weights.sum(-1), -128, 127)
    codes = _coded(x, d[:, None] * scales, 0.0, -32, 31) + 32
    codes = codes.byte().reshape(len(blocks), 2, 4, 32)
    pairs = (codes & 15).reshape(len(blocks), 2, 2, 64)
    low = (pairs[:, :, 0] | pairs[:, :, 1] << 4).flatten(1)
    high = codes >> 4
    top = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).flatten(1)
    return torch.cat([low, top, scales.to(torch.int8).view(torch.uint8), _halves(d)], -1)


def _narrow(bits: int, with_least: bool) -> Pack:
    """Q4_0 and Q5_0, or Q4_1 and Q5_1: 32 values with a scale, and with a least value or around zero."""
    half = 2 ** (bits - 1)

    def pack(blocks: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
        import torch

        x = blocks[:, None]
        weights = _weights(blocks, importance, NARROWS, torch.ones_like)
        scale, least = _scale_and_least(x, weights, 2 * half - 1) if with_least else (_scale(x, weights, half), None)
        d = scale.clamp(-LARGEST, LARGEST).half().float()
        if least is None:
            head, codes = [_halves(d[:, 0])], _coded(x, d, 0.0, -half, half - 1) + half
        else:
            least = least.clamp(-LARGEST, LARGEST).half().float()
            head = [_halves(d[:, 0]), _halves(-least[:, 0])]
            codes = _coded(x, d, least[..., None], 0, 2 * half - 1)
        codes = codes.byte()[:, 0]
        low = (codes[:, :16] & 15) | (codes[:, 16:] & 15) << 4
        if bits == 5:
            shifts = torch.arange(8, dtype=torch.uint8)
            head.append(((codes >> 4).reshape(len(codes), 4, 8) << shifts).sum(-1).byte())
        return torch.cat([*head, low], -1)

    return pack


_PACKS: Mapping[str, tuple[int, Pack]] = {
    **{"Q4_K": (BLOCK, _with_least(4)), "Q5_K": (BLOCK, _with_least(5)), "Q6_K": (BLOCK, _around_zero)},
    **{f"Q{bits}_{least:d}": (NARROWS, _narrow(bits, least)) for bits in (4, 5) for least in (False, True)},
}
"""The values of a block, and what packs several, by kind; of other kinds the largest value gives the scale."""


def _scale_and_least(x: torch.Tensor, weights: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and minus the least value of groups (N, G, 32) whose codes from 0 to `most` err least, (N, G) each."""
    import torch

    low = x.amin(-1, True).clamp(max=0)
    reach = (x.amax(-1, True) - low).clamp(min=TINY)
    total, linear = weights.sum(-1, True), (weights * x).sum(-1, True)
    scale, least = reach / most, low
    error = torch.full_like(scale, torch.inf)
    for nudge in (None, *NUDGES):
        codes = ((most + (nudge or 0.0)) / reach * (x - low)).round().clamp(0, most)
        weighted = weights * codes
        ones, squares, products = weighted.sum(-1, True), (weighted * codes).sum(-1, True), (weighted * x).sum(-1, True)
        spread = total * squares - ones.square()
        if nudge is None:
            own, other = scale, least
        else:
            own = (total * products - linear * ones) / spread
            other = (squares * linear - ones * products) / spread
            above = other > 0
            own, other = torch.where(above, products / squares, own), torch.where(above, 0.0, other)
        found = (weights * (own * codes + other - x).square()).sum(-1, True)
        better = (found < error) & own.isfinite() & (own >= 0) & other.isfinite()
        scale, least = torch.where(better, own, scale), torch.where(better, other, least)
        error = torch.where(better, found, error)
    flat = x.amax(-1, True).clamp(min=0) == low
    return torch.where(flat, 0.0, scale)[..., 0], -least[..., 0]


def _coded(x: torch.Tensor, steps: torch.Tensor, offset: torch.Tensor | float, least: int, most: int) -> torch.Tensor:
    """Codes of values for a step of each group (N, G); 0 where that is 0."""
    import torch

    steps = steps[..., None]
    codes: torch.Tensor = torch.where(steps == 0, 0, (x + offset) / torch.where(steps == 0, 1, steps))
    return codes.round().clamp(least, most)


def _scale(x: torch.Tensor, weights: torch.Tensor, half: int) -> torch.Tensor:
    """The scale of groups (N, G, 16) whose codes from -half to half - 1 err least, (N, G); of either sign."""
    import torch

    farthest = x.gather(-1, x.abs().argmax(-1, True))
    safe = torch.where(farthest == 0, 1.0, farthest)
    scale, best = torch.zeros_like(farthest), torch.full_like(farthest, -1.0)
    for nudge in NUDGES:
        codes = (-(half + nudge) / safe * x).round().clamp(-half, half - 1)
        products, squares = (weights * codes * x).sum(-1, True), (weights * codes.square()).sum(-1, True)
        gain = torch.where(squares > 0, products.square() / squares.clamp(min=TINY), -1.0)
        better = gain > best
        scale = torch.where(better & (squares > 0), products / squares.clamp(min=TINY), scale)
        best = torch.where(better, gain, best)
    return torch.where(farthest == 0, 0.0, scale)[..., 0]


def _in_codes(values: torch.Tensor, weights: torch.Tensor, least: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A unit in float16 (N,) for each row of (N, G), and the whole numbers of it that err least, float32."""
    import torch

    largest = values.gather(-1, values.abs().argmax(-1, True))
    unit, error = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    codes = torch.zeros_like(values)
    for nudge in NUDGES:
        tried = (largest / ((least or most) + nudge)).clamp(-LARGEST, LARGEST).half().float()
        others = _coded(values[..., None], tried.expand_as(values), 0.0, least, most)[..., 0]
        found = (weights * (others * tried - values).square()).sum(-1, True)
        better = found < error
        unit, codes = torch.where(better, tried, unit), torch.where(better, others, codes)
        error = torch.where(better, found, error)
    return unit[:, 0], codes


def _halves(values: torch.Tensor) -> torch.Tensor:
    """The bytes of float16, (N, 2)."""
    import torch

    return values.half()[:, None].view(torch.uint8)


def _six_bits(scales: torch.Tensor, leasts: torch.Tensor) -> torch.Tensor:
    """Eight and eight numbers of 6 bits in 12 bytes."""
    import torch

    first, second = scales[:, :4] | scales[:, 4:] >> 4 << 6, leasts[:, :4] | leasts[:, 4:] >> 4 << 6
    return torch.cat([first, second, scales[:, 4:] & 15 | (leasts[:, 4:] & 15) << 4], -1)
