"""Gates that are always open go before export, and the model answers as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import EfficientNetConfig, EfficientNetForImageClassification

from hfadapt.formats.onnx import KIND
from hfadapt.models.facts import model_facts
from hfadapt.models.fold import simplify

BATCH = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))}


def net(bias: float | torch.Tensor | None) -> Any:
    """A small EfficientNet, whose gates answer with this bias alone where one is given."""
    torch.manual_seed(0)
    config = EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.1, hidden_act="relu6", hidden_dim=320)
    model = EfficientNetForImageClassification(config).eval()
    for name, tensor in model.named_parameters():
        if "squeeze_excite" in name and bias is not None:
            tensor.data.zero_()
            if name.endswith("expand.bias"):
                tensor.data += bias if isinstance(bias, float) else bias[: len(tensor)]
    return model


def gates(model: Any) -> int:
    """How many gates of channels compute."""
    return sum("squeeze" in type(module).__name__.lower() for module in model.modules())


@pytest.mark.parametrize("bias", [20.0, 0.5, torch.linspace(-2, 2, 2000)])
def test_constant_gates_go(bias: Any) -> None:
    model = net(bias)
    before, there = model(**BATCH).logits, gates(model)
    assert there > 0
    assert len(simplify(model, BATCH)) == there + 1
    assert gates(model) == 0
    torch.testing.assert_close(model(**BATCH).logits, before, rtol=1e-5, atol=1e-7)
    # The batch of the example is no part of the model.
    assert model(pixel_values=torch.zeros(1, 3, 32, 32)).logits.shape == (1, before.shape[1])


def test_open_gates_cost_nothing() -> None:
    model = net(20.0)
    simplify(model, BATCH)
    assert not any("squeeze_excite" in name for name in model.state_dict())


def test_gates_that_look_stay() -> None:
    model = net(None)
    there = gates(model)
    assert simplify(model, BATCH) == ("efficientnet.pooler",)
    assert gates(model) == there


def test_a_window_as_wide_as_there_are_channels() -> None:
    model = net(None)
    before = model(**BATCH).logits
    assert isinstance(model.efficientnet.pooler, nn.AvgPool2d)
    simplify(model, BATCH)
    assert not any(isinstance(module, nn.AvgPool2d) for module in model.modules())
    torch.testing.assert_close(model(**BATCH).logits, before, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("pool", "replaced"), [(nn.AvgPool2d(2), False), (nn.AvgPool2d(8), True)])
def test_an_average_over_a_part_stays(pool: nn.Module, replaced: bool) -> None:
    model, x = Net(pool), torch.randn(2, 3, 8, 8)
    before = model(x)
    assert bool(simplify(model, {"x": x})) is replaced
    torch.testing.assert_close(model(x), before)


def test_an_average_that_counts_padding_stays() -> None:
    model = Net(nn.AvgPool2d(10, padding=2))
    assert simplify(model, {"x": torch.randn(2, 3, 7, 7)}) == ()


class Net(nn.Module):
    """A linear layer that hears nothing, in surroundings that do."""

    def __init__(self, around: nn.Module) -> None:
        super().__init__()
        self.around = around
        for parameter in around.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.around(x)


class Residual(nn.Module):
    """A branch that adds nothing."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(4, 4), last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


@pytest.mark.parametrize(
    ("around", "replaced"),
    [
        (Residual(nn.Tanh()), True),  # adds tanh(0)
        (Residual(nn.Sigmoid()), False),  # adds a half
        (nn.Sequential(Residual(nn.Tanh()), nn.ReLU()), True),  # the inner one alone
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid()), False),  # answers a half, whatever it is given
    ],
)
def test_a_layer_that_hears_nothing(around: nn.Module, replaced: bool) -> None:
    model, x = Net(around), torch.randn(3, 4)
    before = model(x)
    assert bool(simplify(model, {"x": x})) is replaced
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("bias", [20.0, None])
def test_a_plan_knows_what_of_a_model_no_export_keeps(tmp_path: Path, bias: float | None) -> None:
    model = net(bias)
    model.save_pretrained(tmp_path)
    before = sum(each.numel() for each in model.parameters())
    simplify(model, BATCH)
    gone = before - sum(each.numel() for each in model.parameters())
    assert (gone > 0) == (bias is not None)
    facts = model_facts(str(tmp_path), "image-classification")
    assert facts.idle_parameters == gone
    whole = facts.model_copy(update={"idle_parameters": 0})
    for one, other in zip(KIND.estimates(facts), KIND.estimates(whole), strict=True):
        assert one.bytes == pytest.approx(other.bytes * (1 - gone / facts.parameters), rel=1e-3)
