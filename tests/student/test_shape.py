"""Fewer layers and units of every architecture: plain transformers opens what is left, which answers as in memory."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, answer, family, inputs, reopened

from hfadapt.core.errors import RequestError, RunError
from hfadapt.models.smaller import narrowed, sayable, width_of
from hfadapt.student.shape import cut_ffn, drop_layers, layers_of


def stack(model):
    """The list of four layers, or what is left of it; of wav2vec2 not the convolutions."""
    lists = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.ModuleList)}
    return next(each for name, each in lists.items() if not name.endswith("conv_layers") and len(each) > 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_layers_go(name, tmp_path) -> None:
    model, batch = family(name), inputs(name)
    assert layers_of(model) == 4
    gone, layers = [], stack(model)
    for layer in layers[3:]:
        # As if it were not there: what comes in goes out.
        gone.append(layer.register_forward_hook(lambda _, given, out: (given[0], *out[1:]) if isinstance(out, tuple)
                                                else given[0]))  # fmt: skip
    wanted = answer(model, batch)
    for hook in gone:
        hook.remove()
    drop_layers(model, 3)
    assert layers_of(model) == 3
    torch.testing.assert_close(answer(model, batch), wanted)
    torch.testing.assert_close(answer(reopened(model, tmp_path), batch), wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_feed_forward_parts_are_narrowed(name, tmp_path) -> None:
    model, batch = family(name), inputs(name)
    assert width_of(model.config) == 96
    before = sum(each.numel() for each in model.parameters())
    cut_ffn(model, 64, [batch])
    assert width_of(model.config) == 64
    gated = sum(each.numel() for each in model.parameters()) - before
    # Four layers, with two or three rows of 32 for each unit, and its bias.
    assert -4 * 32 * (3 * 32 + 2) <= gated <= -4 * 32 * 2 * 32
    wanted = answer(model, batch)
    torch.testing.assert_close(answer(reopened(model, tmp_path), batch), wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_units_that_do_nothing_change_nothing(name) -> None:
    model, batch = family(name), inputs(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module.in_features == 96:
                module.weight[:, ::3] = 0
            elif getattr(module, "nx", None) == 96:
                module.weight[::3] = 0
    wanted = answer(model, batch)
    cut_ffn(model, 64, [batch])
    torch.testing.assert_close(answer(model, batch), wanted, rtol=1e-4, atol=1e-4)


def test_units_are_weighed_by_activation_and_column_of_real_tokens() -> None:
    model, batch = family("bert"), inputs("bert")
    given = []
    down = model.bert.encoder.layer[0].output.dense
    hook = down.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    answer(model, batch)
    hook.remove()
    real = given[0][batch["attention_mask"].bool()]
    worth = real.abs().mean(0) * down.weight.norm(dim=0)
    wanted = down.weight[:, worth.topk(32).indices.sort().values].clone()
    cut_ffn(model, 32, [batch])
    assert torch.equal(down.weight, wanted)


def test_layers_and_units_together(tmp_path) -> None:
    model, batch = family("qwen3"), inputs("qwen3")
    drop_layers(model, 1)
    cut_ffn(model, narrowed(96, 0.5), [batch])
    assert (layers_of(model), width_of(model.config), len(model.config.layer_types)) == (1, 48, 1)
    torch.testing.assert_close(answer(reopened(model, tmp_path), batch), answer(model, batch))


def test_as_many_end_tokens_as_layers_stay() -> None:
    model = family("llama", eos_token_id=[2, 3, 4, 5])
    drop_layers(model, 2)
    assert model.config.eos_token_id == [2, 3, 4, 5]


def test_widths_that_a_config_cannot_say_are_refused() -> None:
    config = family("dinov2").config
    assert [width for width in range(16, 97, 16) if sayable(config, width)] == [32, 64, 96]
    assert sayable(family("bert").config, 48)
    with pytest.raises(RequestError, match="whole multiples") as refused:
        cut_ffn(family("dinov2"), 48, [inputs("dinov2")])
    assert "32, 64, 96" in str(refused.value)
    assert "0.33 or 0.67" in str(refused.value)
    with pytest.raises(RunError, match="no rows"):
        cut_ffn(family("bert"), 48, [])


def test_models_without_such_numbers_are_refused() -> None:
    from transformers import ConvNextConfig, ConvNextModel, MixtralConfig, MixtralForCausalLM, SwinConfig, SwinModel

    swin = SwinModel(SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1]))
    with pytest.raises(RequestError, match="layers cannot be chosen"):
        drop_layers(swin, 1)
    convolutions = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))
    with pytest.raises(RequestError, match="layers cannot be chosen"):
        drop_layers(convolutions, 1)
    with pytest.raises(RequestError, match="does not say the width"):
        width_of(convolutions.config)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    mixture = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=2, **sizes))
    with pytest.raises(RequestError, match="units cannot be taken out"):
        cut_ffn(mixture, 32, [{"input_ids": torch.ones(1, 4, dtype=torch.long)}])
