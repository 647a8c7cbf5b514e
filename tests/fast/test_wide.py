"""bfloat16 products where the processor has no units for them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hfadapt.fast import wide, wide_products


@pytest.fixture
def without_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "cpu_features", lambda: ("avx2",))


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.usefixtures("without_units")
def test_a_product_is_that_of_float32_rounded_once() -> None:
    x, weight, bias = random(5, 96), random(7, 96), random(7)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    with wide_products():
        found = functional.linear(x, weight, bias)
    assert found.dtype == torch.bfloat16
    # Half a unit in the last of 8 bits, and what a sum in float32 is off.
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()


PRODUCTS = {
    "operator": lambda a, b: a @ b.mT,
    "matmul": lambda a, b: torch.matmul(a, b.mT),
    "bmm": lambda a, b: torch.bmm(a, b.mT),
    "baddbmm": lambda a, b: torch.baddbmm(a[:, :, :1], a, b.mT),
    "einsum": lambda a, b: torch.einsum("bij,bkj->bik", a, b),
    "attention": lambda a, b: functional.scaled_dot_product_attention(a, b, b),
    "conv1d": lambda a, b: functional.conv1d(a.mT, b[0, :, :, None]),
}


@pytest.mark.usefixtures("without_units")
@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_keeps_its_dtype_and_value(name: str) -> None:
    a, b, product = random(2, 4, 6), random(2, 5, 6), PRODUCTS[name]
    with wide_products():
        found = product(a, b)
    torch.testing.assert_close(found.float(), product(a.float(), b.float()), rtol=2**-7, atol=2**-7)
    assert found.dtype == torch.bfloat16


@pytest.mark.usefixtures("without_units")
def test_other_dtypes_and_functions_are_left_alone() -> None:
    a = random(3, 3, dtype=torch.float64)
    with wide_products():
        assert torch.equal(a @ a, torch.mm(a, a))
        assert random(3, 3).add(1).dtype == torch.bfloat16


def test_units_multiply_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "cpu_features", lambda: ("avx2", "avx512_bf16"))
    assert not isinstance(wide_products(), wide._Wide)
