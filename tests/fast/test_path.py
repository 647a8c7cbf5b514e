"""The fast path gives the plain path's results, over architectures and storages: a row alone is the row in a pack."""

from __future__ import annotations

import random

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from hfadapt.fast import (
    FastPath,
    batch,
    documents,
    kernels,
    labelled_loss,
    packed_rows,
    padded_rows,
    plain_head,
)
from hfadapt.fast import attention as rows_attention
from hfadapt.fast.path import product_dtype
from hfadapt.modalities.text import text_example, token_ids
from hfadapt.tasks.causal_lm.task import KIND as LM
from hfadapt.tasks.text_classification.task import KIND as CLASSIFIER

SIZES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64}
SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2}
DECODERS = {
    "llama": (GROUPED, {"norms": 5, "gates": 2, "rotary": True}),
    "mistral": ({**GROUPED, "sliding_window": 6}, {"norms": 5, "gates": 2, "rotary": True}),
    "qwen2": (GROUPED, {"norms": 5, "gates": 2}),
    "qwen3": ({**GROUPED, "head_dim": 16}, {"norms": 9, "gates": 2}),
    "gemma": ({**GROUPED, "head_dim": 8}, {"norms": 5, "gates": 2}),
    "phi": (GROUPED, {}),
    "gpt_neox": (SIZES, {}),
    "opt": ({**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}, {}),
    "gpt2": ({"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4}, {}),
}
ENCODERS = {
    "bert": SIZES,
    "roberta": {**SIZES, "pad_token_id": 0},
    "distilbert": {"vocab_size": 100, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "electra": SIZES,
    "modernbert": {
        **SIZES,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "local_attention": 6,
        "global_attn_every_n_layers": 2,
    },
}


def line_loss(model, examples, line, weights):
    inputs = LM.pack(examples, line.tokens, 0)
    return labelled_loss(model, inputs, LM.targets(inputs), weights)


def make(kind, sizes, auto, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **sizes)
    for name, value in list(vars(config).items()):
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    base = getattr(transformers, auto).from_config(config).to(dtype)
    # A random B, so that every part of the layer takes part in the result.
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False}
    model = get_peft_model(base, LoraConfig(**{**settings, **options}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model.train()


def rows(lengths=(5, 9, 3, 12, 4), labelled=3, seed=0):
    draw = random.Random(1 + seed)
    found = []
    for number, length in enumerate(lengths):
        ids = tuple(draw.randrange(1, 100) for _ in range(length))
        found.append(text_example(ids, (-100,) * (length - labelled) + ids[-labelled:], length=length, row=number))
    return found


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alone(model, examples):
    """Each row by itself, with transformers' and peft's own forward passes."""
    total = sum(LM.losses(model, LM.collate([example], 0))[0].sum() for example in examples)
    return total.item(), gradients(model, total)


def packed(model, examples, path, pieces=True):
    """All rows in one line."""
    names = ["default"] * len(examples)
    line = packed_rows([len(token_ids(e)) for e in examples], names)
    inputs = LM.pack(examples, line.tokens, 0)
    with batch(line, path.products):
        if pieces:
            total, losses, _ = labelled_loss(model, inputs, LM.targets(inputs), torch.ones(len(examples)))
        else:
            losses, _ = LM.losses(model, inputs)
            total = losses.sum()
        assert losses.sum().item() == pytest.approx(total.item(), rel=1e-5)
        return total.item(), gradients(model, total)


def close(one, other, tolerance):
    assert one.keys() == other.keys()
    largest = max(g.abs().max() for g in other.values())
    for name, gradient in other.items():
        assert (one[name] - gradient).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("with_kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_row_in_a_pack_is_the_row_alone(kind, with_kernels, monkeypatch):
    sizes, wanted = DECODERS[kind]
    if not with_kernels:
        monkeypatch.setattr(kernels, "passes", lambda: None)
    model = make(kind, sizes, "AutoModelForCausalLM")
    examples = rows()
    loss, reference = alone(model, examples)
    path = FastPath(model)
    with path.on():
        assert path.attention
        assert {name: getattr(path, name) for name in wanted} == wanted
        for pieces in (True, False):
            fast_loss, fast = packed(model, examples, path, pieces and plain_head(model))
            assert fast_loss == pytest.approx(loss, rel=1e-5)
            close(fast, reference, 2e-5)
    again, _ = alone(model, examples)
    assert again == loss, "the plain forward passes are back"


@pytest.mark.parametrize("part", ["low_rank", "attention", "norms", "gates", "rotary"])
def test_each_part_can_be_left_to_the_libraries(part):
    model = make("llama", GROUPED, "AutoModelForCausalLM")
    examples = rows()
    loss, reference = alone(model, examples)
    path = FastPath(model, without=[part])
    with path.on():
        on = {
            "low_rank": path.low_rank_layers > 0,
            "attention": path.attention,
            "norms": path.norms > 0,
            "gates": path.gates > 0,
            "rotary": path.rotary,
        }
        # A gated activation is part of the low-rank layer behind it.
        off = {part, "gates"} if part == "low_rank" else {part}
        assert {name for name, is_on in on.items() if not is_on} == off
        if part == "attention":
            inputs, names = LM.collate(examples, 0), ["default"] * len(examples)
            lengths = [len(token_ids(e)) for e in examples]
            with batch(padded_rows(lengths, max(lengths), names)):
                total, _, _ = labelled_loss(model, inputs, LM.targets(inputs), torch.ones(len(examples)))
                fast_loss, fast = total.item(), gradients(model, total)
        else:
            fast_loss, fast = packed(model, examples, path)
    assert fast_loss == pytest.approx(loss, rel=1e-5)
    close(fast, reference, 2e-5)


@pytest.mark.parametrize("first_token", [False, True], ids=["all-tokens", "first-token"])
@pytest.mark.parametrize("products", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_padded_rows_of_an_encoder_are_the_rows_alone(kind, products, first_token):
    model = make(kind, {**ENCODERS[kind], "num_labels": 3}, "AutoModelForSequenceClassification")
    examples = [text_example(token_ids(e), (e.row % 3,), length=e.length, row=e.row) for e in rows()]
    total = sum(CLASSIFIER.losses(model, CLASSIFIER.collate([example], 0))[0].sum() for example in examples)
    loss, reference = total.item(), gradients(model, total)
    lengths = [len(token_ids(e)) for e in examples]
    path = FastPath(model, products)
    with path.on(first_token=first_token), batch(padded_rows(lengths, max(lengths), ["default"] * 5), products):
        assert path.attention
        assert path.low_rank_layers >= 12
        assert path.first_token == (first_token and kind in ("bert", "roberta", "electra"))
        total = CLASSIFIER.losses(model, CLASSIFIER.collate(examples, 0))[0].sum()
        fast_loss, fast = total.item(), gradients(model, total)
    assert fast_loss == pytest.approx(loss, rel=1e-5 if products is None else 2e-2)
    if products is None:
        close(fast, reference, 2e-5)
    for name, gradient in reference.items():
        assert torch.cosine_similarity(gradient.flatten(), fast[name].flatten(), 0) > 0.97, name


@pytest.mark.parametrize(
    ("kind", "modules"),
    [
        ("bert", ["query", "key", "value"]),
        ("bert", ["intermediate.dense"]),
        ("distilbert", ["lin1"]),
        ("llama", ["q_proj", "k_proj", "v_proj"]),
        ("llama", ["gate_proj", "up_proj"]),
    ],
)
def test_a_layer_that_is_not_adapted_takes_what_an_adapted_one_gives(kind, modules):
    """Its weight is float32, and so must be its input, though the adapted layers multiply in bfloat16."""
    products = torch.bfloat16
    if kind == "llama":
        model = make(kind, GROUPED, "AutoModelForCausalLM", target_modules=modules)
        loss, _ = alone(model, rows())
        path = FastPath(model, products)
        with path.on():
            assert path.low_rank_layers == 2 * len(modules)
            fast_loss, _ = packed(model, rows(), path)
    else:
        sizes = {**ENCODERS[kind], "num_labels": 3}
        model = make(kind, sizes, "AutoModelForSequenceClassification", target_modules=modules)
        examples = [text_example(token_ids(e), (e.row % 3,), length=e.length, row=e.row) for e in rows()]
        inputs, lengths = CLASSIFIER.collate(examples, 0), [len(token_ids(e)) for e in examples]
        loss = CLASSIFIER.losses(model, inputs)[0].sum().item()
        path = FastPath(model, products)
        with path.on(), batch(padded_rows(lengths, max(lengths), ["default"] * 5), products):
            assert path.low_rank_layers == 2 * len(modules)
            fast_loss = CLASSIFIER.losses(model, inputs)[0].sum().item()
    assert fast_loss == pytest.approx(loss, rel=2e-2)


def test_bfloat16_stays_as_close_to_float32_as_the_plain_path():
    """Against a float32 reference the fast path's error is at most about that of the plain one, over several models."""
    errors = {"plain": [], "fast": []}
    for seed in range(12):
        examples = rows(seed=seed)
        _, reference = alone(make("llama", GROUPED, "AutoModelForCausalLM", seed=seed), examples)
        model = make("llama", GROUPED, "AutoModelForCausalLM", torch.bfloat16, seed=seed)
        loss, plain = alone(model, examples)
        path = FastPath(model)
        with path.on():
            fast_loss, fast = packed(model, examples, path)
        assert fast_loss == pytest.approx(loss, rel=2e-2)
        for name, found in (("plain", plain), ("fast", fast)):
            errors[name].append(sum((found[n] - g).norm() ** 2 for n, g in reference.items()) ** 0.5)
    assert sum(errors["fast"]) <= 1.3 * sum(errors["plain"]), errors


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 100])
def test_attention_of_long_rows_in_blocks(causal, window, monkeypatch):
    """Rows longer than a block of queries, more scores than are held at once, grouped heads."""
    monkeypatch.setattr(documents, "MOST_SCORES", 4 * 256 * 300)
    monkeypatch.setattr(rows_attention, "QUERY_BLOCK", 128)
    torch.manual_seed(0)
    lengths = [300, 290, 40, 1, 300]
    inside = packed_rows(lengths, ["default"] * 5)
    tail = inside.tokens - sum(lengths)
    q, k, v = (torch.randn(1, heads, inside.tokens, 16, requires_grad=True) for heads in (4, 2, 2))
    dy = torch.randn(1, inside.tokens, 4, 16)
    dy[:, inside.tokens - tail :] = 0

    def run(function):
        for x in (q, k, v):
            x.grad = None
        out = function()
        out.backward(dy)
        return [out.detach(), *(x.grad.clone() for x in (q, k, v))]

    def reference():
        outs = []
        for start, length in zip(inside.starts, lengths, strict=True):
            own = [x[:, :, start : start + length] for x in (q, k, v)]
            distance = torch.arange(length)[:, None] - torch.arange(length)[None]
            seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
            if window:
                seen = seen & (distance.abs() < window)
            outs.append(
                torch.nn.functional.scaled_dot_product_attention(*own, attn_mask=seen, enable_gqa=True).transpose(1, 2)
            )
        return torch.cat([*outs, torch.zeros(1, tail, 4, 16)], 1)

    fast = run(lambda: rows_attention.attention(inside, q, k, v, scale=0.25, causal=causal, window=window))
    for one, other in zip(fast, run(reference), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_several_adapters_in_one_pack_are_each_alone():
    model = make("llama", GROUPED, "AutoModelForCausalLM")
    model.add_adapter("a1f0", LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    examples = rows()
    names = ["default", "default", "a1f0", "a1f0", "a1f0"]
    reference = {}
    for name in ("default", "a1f0"):
        model.set_adapter(name)
        own = [example for example, of in zip(examples, names, strict=True) if of == name]
        reference |= alone(model, own)[1]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    path = FastPath(model, adapters=("default", "a1f0"))
    line = packed_rows([len(token_ids(e)) for e in examples], names)
    with path.on(), batch(line):
        total, _, _ = line_loss(model, examples, line, torch.ones(5))
        close(gradients(model, total), reference, 2e-5)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_layers_that_do_more_keep_pefts_forward(options):
    path = FastPath(make("llama", GROUPED, "AutoModelForCausalLM", **options))
    with path.on():
        assert path.low_rank_layers == 0
        assert path.gates == 0


def test_everything_is_taken_off_again_also_after_an_error():
    model = make("llama", GROUPED, "AutoModelForCausalLM")
    home = transformers.models.llama.modeling_llama
    before = home.apply_rotary_pos_emb, model.config._attn_implementation

    def fail():
        with FastPath(model).on():
            assert home.apply_rotary_pos_emb is not before[0]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not any("forward" in vars(module) for module in model.modules())
    assert (home.apply_rotary_pos_emb, model.config._attn_implementation) == before


def test_nothing_is_computed_below_the_first_adapted_layer():
    model = make("llama", GROUPED, "AutoModelForCausalLM", target_modules=["down_proj"], layers_to_transform=[1])
    seen = []
    model.base_model.model.model.layers[0].register_full_backward_hook(lambda *_: seen.append(0))
    model.base_model.model.model.layers[1].mlp.register_full_backward_hook(lambda *_: seen.append(1))
    path = FastPath(model)
    with path.on():
        _, found = packed(model, rows(), path)
    assert path.low_rank_layers == 0
    assert len(found) == 2
    assert seen == [1]


@pytest.mark.parametrize("resident", [0, -1, 1], ids=["unpacked for each use", "all kept", "one kept"])
@pytest.mark.parametrize("quant", ["nf4", "fp4", "int8"])
def test_quantised_layers_multiply_their_unpacked_weight(quant, resident):
    import bitsandbytes

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            if quant == "int8":
                self.proj = bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
            else:
                self.proj = bitsandbytes.nn.Linear4bit(64, 32, compute_dtype=torch.float32, quant_type=quant)
                self.proj.support_avx512bf16_for_cpu = False
            self.device = torch.device("cpu")

        def forward(self, x):
            return self.proj(x)

    torch.manual_seed(0)
    net = Net()
    weight = torch.randn(32, 64)
    if quant == "int8":
        net.proj.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        net.proj.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type=quant)
    net.to("cpu")
    model = get_peft_model(net, LoraConfig(r=4, target_modules=["proj"], init_lora_weights=False)).train()
    x = torch.randn(5, 64, requires_grad=True)

    def run():
        x.grad = None
        model.zero_grad()
        y = model(x)
        y.pow(2).sum().backward()
        return y.detach(), x.grad.clone()

    plain = run()
    path = FastPath(model, torch.float32, resident=resident)
    with path.on(rows=False):
        assert path.low_rank_layers == 1
        fast = run()
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2 if quant == "int8" else 1e-4, atol=2e-2)


def test_products_are_lowered_only_for_float32_storage():
    assert product_dtype("bfloat16", torch.device("cpu")) is None
    assert product_dtype("float32", torch.device("cpu")) in (None, torch.bfloat16)


@pytest.mark.parametrize("resident", [0, 1, 2, 3, -1])
def test_as_many_unpacked_copies_are_kept_as_asked(resident):
    import bitsandbytes

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32) for _ in range(3)
            )
            self.device = torch.device("cpu")

    net = Net()
    for layer in net.layers:
        layer.support_avx512bf16_for_cpu = False
        layer.weight = bitsandbytes.nn.Params4bit(torch.randn(64, 64), requires_grad=False)
    net.to("cpu")
    model = get_peft_model(net, LoraConfig(r=4, target_modules=["0", "1", "2"]))
    path = FastPath(model, torch.float32, resident=resident)
    with path.on(rows=False):
        layers = [layer for group in path.groups for layer in group.layers]
        kept = sum(layer.frozen.weight() is layer.frozen.weight() for layer in layers)
    assert kept == (3 if resident < 0 else resident)


def test_several_adapters_need_layers_that_the_path_knows():
    model = make("llama", GROUPED, "AutoModelForCausalLM", lora_bias=True)
    model.add_adapter("a1f0", LoraConfig(r=8, target_modules="all-linear"))
    with (
        pytest.raises(NotImplementedError, match="LoRA layers"),
        FastPath(model, adapters=("default", "a1f0")).on(),
    ):
        pass


def test_a_norm_of_a_slice_is_the_norm_of_its_copy():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = LlamaRMSNorm(8)
            self.proj = torch.nn.Linear(8, 8)
            self.device = torch.device("cpu")

        def forward(self, x):
            return torch.cat([self.norm(x[..., :8]), x[..., 8:]], -1)

    net = Net()
    net.norm.requires_grad_(False)
    model = get_peft_model(net, LoraConfig(target_modules=["proj"]))
    x = torch.randn(3, 5, 12, requires_grad=True)

    def run():
        x.grad = None
        y = model(x)
        y.sum(0).pow(2).sum().backward()
        return y.detach(), x.grad

    wanted = [t.clone() for t in run()]
    path = FastPath(model)
    with path.on(rows=False):
        assert path.norms == 1
        for one, other in zip(run(), wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_no_label_in_a_part_is_no_error():
    model = make("llama", GROUPED, "AutoModelForCausalLM")
    examples = [text_example((5,), (-100,), length=1, row=0), text_example((5, 6), (-100, -100), length=2, row=1)]
    line = packed_rows([1, 2], ["default"] * 2)
    path = FastPath(model)
    with path.on(), batch(line):
        total, losses, _ = line_loss(model, examples, line, torch.ones(2))
        total.backward()
    assert len(losses) == 0
    assert total.item() == 0
