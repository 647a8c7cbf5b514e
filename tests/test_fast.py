"""The fast path gives peft's own results: same output, same gradients, and peft's forward is back afterwards."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hfadapt.train.fast import fast_layers, product_dtype, short_attention

SIZES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4}


def decoder():
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZES))


def encoder():
    return BertForSequenceClassification(BertConfig(**SIZES))


def adapted(make, **options):
    torch.manual_seed(0)
    # A random B, so that every part of the layer takes part in the result.
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, **options)
    return get_peft_model(make(), config).eval()


def step(model):
    """Loss and gradients of one batch."""
    torch.manual_seed(1)
    ids = torch.randint(0, 100, (3, 7))
    model.zero_grad()
    loss = model(input_ids=ids).logits.float().pow(2).mean()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [decoder, encoder])
def test_fast_equals_plain_in_float32(make):
    model = adapted(make)
    loss, gradients = step(model)
    with fast_layers(model, None) as count:
        fast_loss, fast_gradients = step(model)
    assert count == 14 if make is decoder else count >= 12
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    assert fast_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("make", [decoder, encoder])
def test_bfloat16_products_stay_close_to_float32(make):
    model = adapted(make)
    loss, gradients = step(model)
    with fast_layers(model, torch.bfloat16):
        low_loss, low_gradients = step(model)
    assert low_loss == pytest.approx(loss, rel=2e-2)
    for name, gradient in gradients.items():
        cosine = torch.cosine_similarity(gradient.flatten(), low_gradients[name].flatten(), 0)
        assert cosine > 0.97, name
        assert low_gradients[name].dtype == torch.float32


def test_pefts_forward_is_back_afterwards_also_after_an_error():
    model = adapted(decoder)
    before, _ = step(model)
    with pytest.raises(RuntimeError, match="stop"), fast_layers(model, torch.bfloat16):
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in model.modules())
    assert step(model)[0] == before


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_layers_that_do_more_keep_pefts_forward(options):
    with fast_layers(adapted(decoder, **options), None) as count:
        assert count == 0


def test_nothing_is_computed_below_the_first_adapted_layer():
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["down_proj"], layers_to_transform=[1], init_lora_weights=False)
    model = get_peft_model(decoder(), config)
    with fast_layers(model, None) as count:
        _, gradients = step(model)
    assert count == 1
    assert len(gradients) == 2


@pytest.mark.parametrize("quant", ["nf4", "fp4"])
def test_four_bit_layers_multiply_their_dequantised_weight(quant):
    bitsandbytes = pytest.importorskip("bitsandbytes")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            linear = bitsandbytes.nn.Linear4bit(64, 32, compute_dtype=torch.float32, quant_type=quant)
            linear.support_avx512bf16_for_cpu = False
            self.proj = linear

        def forward(self, x):
            return self.proj(x)

    torch.manual_seed(0)
    net = Net()
    net.proj.to("cpu")
    net.proj.weight = bitsandbytes.nn.Params4bit(torch.randn(32, 64), requires_grad=False, quant_type=quant).to("cpu")
    model = get_peft_model(net, LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False))
    x = torch.randn(5, 64, requires_grad=True)

    def run():
        x.grad = None
        model.zero_grad()
        y = model(x)
        y.pow(2).sum().backward()
        return y.detach(), x.grad.clone()

    plain, plain_dx = run()
    with fast_layers(model, None) as count:
        fast, fast_dx = run()
    assert count == 1
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast_dx, plain_dx, rtol=1e-4, atol=1e-3)


def test_attention_of_short_rows_gives_the_same_result():
    model = adapted(decoder)
    loss, _ = step(model)
    with short_attention(torch.device("cpu"), 7):
        assert step(model)[0] == pytest.approx(loss, rel=1e-5)


def test_products_are_lowered_only_for_float32_storage():
    assert product_dtype("bfloat16", torch.device("cpu")) is None
    assert product_dtype("float32", torch.device("cpu")) in (None, torch.bfloat16)
