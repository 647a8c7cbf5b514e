"""Products on AMX tiles: the same results as float32, adapters and rows kept apart, any number of threads."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hfadapt.fast import FastPath, products
from hfadapt.fast.dropout import Dropout, column_keys, factor, random_keys
from hfadapt.fast.products import Frozen, LowRank

pytestmark = pytest.mark.usefixtures("tiles")


def make(tokens, inputs, outputs, ranks, cuts, *, bias=True, seed=0):
    """x, gradients of the results, layers and adapters; `cuts` are the tokens at which segments end."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    layers = [
        Frozen(rand(o, inputs) / inputs**0.5, torch.randn(o, generator=generator) if bias else None) for o in outputs
    ]
    adapters = []
    for index, (first, end) in enumerate(zip((0, *cuts), (*cuts, tokens), strict=True)):
        own = [max(1, r - 3 * index) for r in ranks]
        a = rand(sum(own), inputs) / inputs**0.5
        adapters.append(
            LowRank(first, end, a, [rand(r, o) for r, o in zip(own, outputs, strict=True)], [0.5] * len(own))
        )
    return rand(tokens, inputs), [rand(tokens, o) for o in outputs], layers, adapters


def reference(x, dys, layers, adapters, dropped=None):
    """The same in float32, gradients by hand: y, dx and (dA, dBᵀ) of each segment."""
    kept = torch.ones_like(x, dtype=torch.float32)
    for each in adapters if dropped is not None else ():
        kept[each.first : each.end] = factor(each.dropout) * ~dropped[each.first : each.end]
    x, dys = x.float(), [dy.float() for dy in dys]
    ys = [x @ layer.weight.float().t() + (0 if layer.bias is None else layer.bias) for layer in layers]
    dx = sum(dy @ layer.weight.float() for dy, layer in zip(dys, layers, strict=True))
    found = []
    for each in adapters:
        part = slice(each.first, each.end)
        das, dbs, row = [], [], 0
        for y, dy, b, scaling in zip(ys, dys, each.bs, each.scalings, strict=True):
            a, b = each.a[row : row + len(b)].float(), b.float()
            row += len(b)
            low, d_low = (kept * x)[part] @ a.t(), dy[part] @ b.t()
            y[part] += low @ b
            dx[part] += kept[part] * (d_low @ a)
            das.append(d_low.t() @ (kept * x)[part])
            dbs.append(scaling * low.t() @ dy[part])
        found.append((torch.cat(das), dbs))
    return ys, dx, found


def run(x, dys, layers, adapters, dtype, dropout=None):
    ys, low, dropped = products.forward(x, layers, adapters, dtype, dropout)
    dx, d_low = products.backward_input(dys, layers, adapters, dtype, True, dropped)
    return ys, dx, products.backward_weights(x, dys, adapters, low, d_low, dropped)


def close(found, wanted, tolerance=1e-2):
    assert found.shape == wanted.shape
    assert (found.float() - wanted).abs().max() <= tolerance * wanted.abs().max()


CASES = {
    "one layer": (100, 64, [96], [16], []),
    "a row": (1, 64, [64], [4], []),
    "three layers": (257, 576, [576, 192, 192], [16, 16, 16], []),
    "many outputs": (70, 576, [1536, 1536], [16, 16], []),
    "many inputs": (70, 1536, [576], [8], []),
    "ranks beyond a tile": (65, 96, [64, 32], [40, 7], []),
    "adapters": (150, 96, [64, 96], [16, 20], [40, 41, 149]),
}


@pytest.mark.parametrize("shares", [(), (0.1, 0.0, 0.5, 0.9)], ids=["plain", "dropout"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_products_and_gradients_are_those_of_float32(case, dtype, shares):
    x, dys, layers, adapters = make(*CASES[case])
    dropout = dropped = None
    if shares:
        adapters = [replace(each, dropout=share) for each, share in zip(adapters, shares, strict=False)]
        parts = [(each.first, each.end, each.dropout) for each in adapters]
        dropout = Dropout(random_keys(len(x), x.device), column_keys(case, x.shape[1]), parts)
        dropped = dropout.dropped()
    ys, dx, gradients = run(x, dys, layers, adapters, dtype, dropout)
    wanted_ys, wanted_dx, wanted = reference(x, dys, layers, adapters, dropped)
    assert dx.dtype == ys[0].dtype == dtype
    for y, each in zip(ys, wanted_ys, strict=True):
        close(y, each)
    close(dx, wanted_dx)
    for (a, bs), (wanted_a, wanted_bs) in zip(gradients, wanted, strict=True):
        close(a, wanted_a)
        for b, each in zip(bs, wanted_bs, strict=True):
            close(b, each)


def test_an_input_whose_values_do_not_lie_side_by_side():
    """A transposed view has the right shape and the wrong strides for tiles."""
    base = torch.nn.Sequential(torch.nn.Linear(64, 64, dtype=torch.bfloat16))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False))
    model.device = torch.device("cpu")
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).bfloat16().t()
    wanted = model(x).float()
    with FastPath(model).on(rows=False):
        close(model(x), wanted, 2e-2)
