"""What train.json says of the base."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn

from hfadapt.train.recorded import _odd_sizes


@pytest.mark.parametrize(
    ("kind", "quant", "sizes", "odd"),
    [
        (Linear4bit, "nf4", (128, 96), False),
        (Linear4bit, "nf4", (128, 48), True),
        (Linear4bit, "nf4", (96, 64), True),
        (Linear8bitLt, "int8", (96, 48), False),
        (nn.Linear, "none", (96, 48), False),
    ],
)
def test_layers_that_bitsandbytes_cannot_pack_anew_are_noted(kind, quant, sizes, odd):
    base = SimpleNamespace(model=nn.Sequential(kind(*sizes)))
    assert _odd_sizes(base, quant) is odd
