"""Fewer layers and units of every architecture: plain transformers opens what is left, which answers as in memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from families import FAMILIES, answer, family, inputs, reopened

from hfadapt.core.errors import RequestError, RunError
from hfadapt.models.smaller import narrowed, sayable, width_of
from hfadapt.student import shape
from hfadapt.student.shape import cut_ffn, drop_layers, layers_of


def stack(model):
    """The list of four layers, or what is left of it; of wav2vec2 not the convolutions."""
    lists = {name: each for name, each in model.named_modules() if isinstance(each, torch.nn.ModuleList)}
    return next(each for name, each in lists.items() if not name.endswith("conv_layers") and len(each) > 1)


def hide(layer):
    """As if it were not there: what comes in goes out."""
    return layer.register_forward_hook(
        lambda _, given, out: (given[0], *out[1:]) if isinstance(out, tuple) else given[0]
    )


def hidden(model, batch):
    with torch.no_grad():
        return model.base_model(**batch)[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layer_that_is_missed_the_least_goes_and_neither_the_first_nor_the_last(name, tmp_path) -> None:
    model, batch = family(name), inputs(name)
    assert layers_of(model) == 4
    mask = batch.get("attention_mask")
    left, answers, whole = {}, {}, hidden(model, batch)
    for number in (1, 2):
        hook = hide(stack(model)[number])
        alike = torch.nn.functional.cosine_similarity(hidden(model, batch), whole, dim=-1)
        left[number] = float((alike if mask is None else alike[mask.bool()]).mean())
        answers[number] = answer(model, batch)
        hook.remove()
    gone = max(left, key=left.__getitem__)
    assert drop_layers(model, 3, [batch]) == [number for number in range(4) if number != gone]
    assert layers_of(model) == 3
    torch.testing.assert_close(answer(model, batch), answers[gone])
    torch.testing.assert_close(answer(reopened(model, tmp_path), batch), answers[gone])


@pytest.mark.parametrize("name", FAMILIES)
def test_of_many_layers_those_that_change_the_least_are_tried(name, monkeypatch) -> None:
    model, batch = family(name), inputs(name)
    seen: dict[int, list[torch.Tensor]] = {}

    def look(number: int, layer, given, out) -> None:
        seen[number] = [each.flatten(0, -2) for each in (given[0], out[0] if isinstance(out, tuple) else out)]

    looks = [layer.register_forward_hook(partial(look, number)) for number, layer in enumerate(stack(model))]
    hidden(model, batch)
    for each in looks:
        each.remove()
    alike = torch.nn.functional.cosine_similarity
    gone = max((1, 2), key=lambda number: float(alike(*seen[number], dim=-1).mean()))
    monkeypatch.setattr("hfadapt.student.shape.SHORTLIST", 1)
    assert drop_layers(model, 3, [batch]) == [number for number in range(4) if number != gone]


def test_one_layer_is_the_first_and_two_are_the_first_and_the_last() -> None:
    for keep, kept in ((1, [0]), (2, [0, 3])):
        assert drop_layers(family("bert"), keep, [inputs("bert")]) == kept
    with pytest.raises(RunError, match="no rows by which layers"):
        drop_layers(family("bert"), 2, [])


def test_layers_of_several_kinds_stay_what_they_were() -> None:
    model = family("gemma3")
    kinds = list(model.config.layer_types)
    kept = drop_layers(model, 2, [inputs("gemma3")])
    assert len(set(kinds)) == 2
    assert model.config.layer_types == [kinds[number] for number in kept]


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
    given, layer = [], model.bert.encoder.layer[0]
    down, before = layer.output.dense, layer.intermediate.dense.weight.clone()
    hook = down.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    answer(model, batch)
    hook.remove()
    real = given[0][batch["attention_mask"].bool()]
    worth = real.abs().mean(0) * down.weight.norm(dim=0)
    cut_ffn(model, 32, [batch])
    assert torch.equal(layer.intermediate.dense.weight, before[worth.topk(32).indices.sort().values])


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_units_that_stay_take_over_what_the_others_added(name, monkeypatch) -> None:
    batch, far = inputs(name), {}
    wanted = answer(family(name), batch)
    for ridge in (1e-4, 1e9):
        monkeypatch.setattr(shape, "RIDGE", ridge)
        model = family(name)
        cut_ffn(model, 32, [batch])
        far[ridge] = float((answer(model, batch) - wanted).square().mean())
    assert far[1e-4] < 0.7 * far[1e9], "with so large a penalty nothing is added"


def test_of_units_that_follow_from_others_nothing_is_lost() -> None:
    model, batch = family("bert"), inputs("bert")
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            for part in (layer.intermediate.dense.weight, layer.intermediate.dense.bias):
                part[48:] = part[:48]
            layer.output.dense.weight[:, 48:] *= 0.5
    wanted = answer(model, batch)
    cut_ffn(model, 48, [batch])
    torch.testing.assert_close(answer(model, batch), wanted, rtol=0.02, atol=0.02)


def test_layers_and_units_together(tmp_path) -> None:
    model, batch = family("qwen3"), inputs("qwen3")
    drop_layers(model, 1, [batch])
    cut_ffn(model, narrowed(96, 0.5), [batch])
    assert (layers_of(model), width_of(model.config), len(model.config.layer_types)) == (1, 48, 1)
    torch.testing.assert_close(answer(reopened(model, tmp_path), batch), answer(model, batch))


def test_as_many_end_tokens_as_layers_stay() -> None:
    model = family("llama", eos_token_id=[2, 3, 4, 5])
    drop_layers(model, 2, [inputs("llama")])
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
        drop_layers(swin, 1, [])
    convolutions = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))
    with pytest.raises(RequestError, match="layers cannot be chosen"):
        drop_layers(convolutions, 1, [])
    with pytest.raises(RequestError, match="does not say the width"):
        width_of(convolutions.config)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    mixture = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_key_value_heads=2, num_local_experts=2, **sizes))
    with pytest.raises(RequestError, match="units cannot be taken out"):
        cut_ffn(mixture, 32, [{"input_ids": torch.ones(1, 4, dtype=torch.long)}])
