"""Activations of feed-forward parts become others step by step, and the config says them at the end."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, answer, family, inputs, reopened
from torch.nn.functional import hardswish, relu6
from transformers import EfficientNetConfig, EfficientNetForImageClassification

from hfadapt.core.errors import RequestError
from hfadapt.models.activation import NAMES, ramp, swap

WHERE = {
    "modernbert": "hidden_activation",
    "gemma3": "hidden_activation",
    "distilbert": "activation",
    "gpt2": "activation_function",
    "whisper": "activation_function",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_gets_the_new_activation_and_opens_with_it(name, tmp_path) -> None:
    model, batch = family(name), inputs(name)
    old = answer(model, batch)
    before = swap(model, "relu6")
    assert getattr(model.config, WHERE.get(name, "hidden_act")) == "relu6"
    new = answer(model, batch)
    assert not torch.allclose(new, old, atol=1e-4)
    on_the_way = ramp(model, before)
    assert len(on_the_way.paths) >= 4
    torch.testing.assert_close(answer(model, batch), old, rtol=0, atol=0)
    on_the_way.set(0.5)
    half = answer(model, batch)
    assert not torch.allclose(half, new, atol=1e-4)
    assert not torch.allclose(half, old, atol=1e-4)
    on_the_way.end()
    torch.testing.assert_close(answer(model, batch), new, rtol=0, atol=0)
    again = reopened(model, tmp_path)
    torch.testing.assert_close(answer(again, batch), new)
    assert {type(again.get_submodule(path)) for path in on_the_way.paths} == {torch.nn.ReLU6}


def test_the_blend_is_a_line_between_both() -> None:
    model = family("bert")
    on_the_way = ramp(model, swap(model, "hardswish"))
    blend = model.get_submodule(on_the_way.paths[0])
    values = torch.linspace(-4, 8, 50, requires_grad=True)
    on_the_way.set(0.25)
    wanted = 0.75 * torch.nn.functional.gelu(values) + 0.25 * hardswish(values)
    torch.testing.assert_close(blend(values), wanted)
    (slope,) = torch.autograd.grad(blend(values).sum(), values)
    assert bool((slope != 0).any())
    with pytest.raises(ValueError, match="share"):
        on_the_way.set(1.5)


def test_of_gated_parts_the_gate_changes() -> None:
    model, batch = family("llama"), inputs("llama")
    swap(model, "relu6")
    mlp, given = model.model.layers[0].mlp, torch.randn(2, 32)
    wanted = mlp.down_proj(relu6(mlp.gate_proj(given)) * mlp.up_proj(given))
    torch.testing.assert_close(mlp(given), wanted)
    assert answer(model, batch).isfinite().all()


def test_of_convolutional_nets_all_that_the_config_says(tmp_path) -> None:
    blocks = {"in_channels": [32, 16], "out_channels": [16, 24], "depthwise_padding": [], "strides": [1, 2]}
    blocks |= {"kernel_sizes": [3, 3], "num_block_repeats": [1, 1], "expand_ratios": [1, 2]}
    config = EfficientNetConfig(**blocks, image_size=32, hidden_dim=32, width_coefficient=0.025)
    net, batch = EfficientNetForImageClassification(config).eval(), inputs("vit")
    swap(net, "relu6")
    assert not any(isinstance(each, torch.nn.SiLU) for each in net.modules())
    # Gates keep what they are bounded by.
    assert any(isinstance(each, torch.nn.Sigmoid) for each in net.modules())
    torch.testing.assert_close(answer(reopened(net, tmp_path), batch), answer(net, batch))


def test_what_cannot_change_is_refused() -> None:
    with pytest.raises(RequestError, match="no such activation") as refused:
        swap(family("bert"), "relu7")
    assert all(name in str(refused.value) for name in NAMES)
    model = family("bert")
    swap(model, "relu")
    with pytest.raises(RequestError, match="says no activation"):
        swap(model, "relu")
    swiglu = family("dinov2", use_swiglu_ffn=True)
    with pytest.raises(RequestError, match="says no activation"):
        swap(swiglu, "relu6")
