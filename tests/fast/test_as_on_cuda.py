"""The fast path as it runs on a GPU: devices, dtypes, shapes and waiting, on tensors without values (fake_gpu.py)."""

from __future__ import annotations

from itertools import pairwise

import bitsandbytes
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor

from hfadapt.fast import FastPath, batch, labelled_loss, packed_rows, padded_rows
from hfadapt.fast import attention as rows_attention
from hfadapt.modalities.text import text_example, token_ids
from hfadapt.models.attach import _multiply_heads_in_float32
from hfadapt.tasks.causal_lm.task import KIND as LM
from hfadapt.tasks.text_classification.task import KIND as CLASSIFIER

from .fake_gpu import ATTENTION, ATTENTION_BACKWARD, COPIES, DEVICE, NONZERO, gpu, move, there
from .test_path import DECODERS, ENCODERS, GROUPED, SIZES, make, rows

LABELS = 15
"""Of `rows`."""
# Once in a batch: how many labels there are, and where rows begin. Neither more with more layers.
WAITS = [NONZERO, COPIES[0]]
STORAGE = {
    "bfloat16": (torch.bfloat16, None),
    "float32 multiplied in bfloat16": (torch.float32, torch.bfloat16),
    "float16": (torch.float16, None),
}
TWO = ["default", "default", "a1f0", "a1f0", "a1f0"]

storages = pytest.mark.parametrize(("dtype", "products"), STORAGE.values(), ids=STORAGE)


def with_two_adapters(model, **options):
    """Both are trained, and float32."""
    settings = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
    model.add_adapter("a1f0", LoraConfig(**settings, **options))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or "modules_to_save" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def generate(model, products=None, names=("default",) * 5):
    """Rows in one line, forward and backward; what was seen."""
    examples = rows()
    line = packed_rows([len(token_ids(e)) for e in examples], names, range(5))
    inputs = LM.pack(examples, line.tokens, 0)
    with gpu(LABELS) as seen:
        path = FastPath(move(model), products, adapters=sorted(set(names), reverse=True))
        inputs = {name: there(tensor) for name, tensor in inputs.items()}
        weights = torch.ones(5, device=DEVICE)
        with path.on(), batch(line, products):
            assert path.attention
            assert path.low_rank_layers
            seen.forget()
            total, losses, owners = labelled_loss(model, inputs, LM.targets(inputs), weights)
            total.backward()
    assert total.shape == ()
    assert losses.shape == owners.shape == (LABELS,)
    assert total.dtype == losses.dtype == torch.float32
    assert total.device == losses.device == owners.device == DEVICE
    check(model, seen)
    return seen


def classify(model, products=None, names=("default",) * 5):
    """Rows side by side, forward and backward; what was seen."""
    examples = [text_example(token_ids(e), (e.row % 3,), length=e.length, row=e.row) for e in rows()]
    lengths = [len(token_ids(e)) for e in examples]
    inputs = CLASSIFIER.collate(examples, 0)
    with gpu(len(examples)) as seen:
        path = FastPath(move(model), products, adapters=sorted(set(names), reverse=True))
        inputs = {name: there(tensor) for name, tensor in inputs.items()}
        with path.on(), batch(padded_rows(lengths, max(lengths), names), products):
            assert path.attention
            assert path.low_rank_layers
            seen.forget()
            losses, owners = CLASSIFIER.losses(model, inputs)
            losses.sum().backward()
    assert losses.shape == owners.shape == (5,)
    assert losses.dtype == torch.float32
    assert losses.device == owners.device == DEVICE
    # Every row has one label, so a GPU is not asked how many there are.
    check(model, seen, [COPIES[0]])
    return seen


def check(model, seen, waits=WAITS):
    """All gradients are there and float32, each layer's attention is torch's kernel, nothing is waited for twice."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    for name, p in trained.items():
        assert isinstance(p.grad, FakeTensor), name
        assert (p.grad.device, p.grad.dtype, p.grad.shape) == (DEVICE, torch.float32, p.shape), name
    forward = seen.calls.count(ATTENTION) // (2 if model.is_activation_checkpointing else 1)
    assert forward == seen.calls.count(ATTENTION_BACKWARD) == model.config.num_hidden_layers
    assert seen.waits == waits
    assert not seen.mixed


@storages
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gemma", "phi"])
def test_rows_in_one_line(kind, dtype, products):
    generate(make(kind, DECODERS[kind][0], "AutoModelForCausalLM", dtype), products)


@storages
@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_rows_side_by_side(kind, dtype, products):
    sizes, options = {**ENCODERS[kind], "num_labels": 3}, {"task_type": "SEQ_CLS"}
    model = make(kind, sizes, "AutoModelForSequenceClassification", dtype, **options)
    assert _multiply_heads_in_float32(model)
    classify(model, products)


@storages
def test_dropout(dtype, products):
    seen = generate(make("llama", GROUPED, "AutoModelForCausalLM", dtype, lora_dropout=0.1), products)
    assert seen.calls.count("aten.lt.Tensor_out") + seen.calls.count("aten.lt.Scalar_out") == 2 * 4, (
        "a mask for each input"
    )


@storages
def test_several_adapters_in_one_line(dtype, products):
    model = with_two_adapters(make("llama", GROUPED, "AutoModelForCausalLM", dtype))
    generate(model, products, TWO)


def test_several_adapters_side_by_side_with_heads_of_their_own():
    sizes, options = {**SIZES, "num_labels": 3}, {"task_type": "SEQ_CLS"}
    model = make("bert", sizes, "AutoModelForSequenceClassification", torch.bfloat16, **options)
    model = with_two_adapters(model, **options)
    assert _multiply_heads_in_float32(model)
    classify(model, names=TWO)


@storages
def test_a_base_in_nf4(dtype, products):
    """Quantised by bitsandbytes on the CPU, which packs a weight as it does on a GPU."""
    nested = dtype != torch.float16
    config = transformers.AutoConfig.for_model("llama", **GROUPED)
    base = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    for parent in list(base.model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                options = {"quant_type": "nf4", "compress_statistics": nested}
                compute = products or dtype
                new = bitsandbytes.nn.Linear4bit(child.in_features, child.out_features, False, compute, **options)
                new.weight = bitsandbytes.nn.Params4bit(child.weight.data, requires_grad=False, **options)
                setattr(parent, name, new.to("cpu"))
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    seen = generate(model, products)
    # Backward nothing is unpacked below the first adapted layers: there is no gradient to work out.
    assert seen.calls.count("bitsandbytes.dequantize_4bit.default") == 2 * 14 - 3
    assert ("bitsandbytes.dequantize_blockwise.default" in seen.calls) == nested


@pytest.mark.parametrize("modules", [["q_proj", "v_proj"], ["q_proj", "k_proj"], ["q_proj", "k_proj", "v_proj"]])
@storages
def test_attention_with_layers_that_are_not_adapted(dtype, products, modules):
    generate(make("llama", GROUPED, "AutoModelForCausalLM", dtype, target_modules=modules), products)


@storages
def test_checkpointed_layers_copy_nothing_a_second_time(dtype, products):
    model = make("llama", GROUPED, "AutoModelForCausalLM", dtype)
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    generate(model, products)


def test_rows_that_were_scored_can_be_trained_on():
    """What is made in inference mode cannot be kept for a backward pass."""
    documents = packed_rows([5, 9], ["default"] * 2)
    with gpu():
        q = torch.ones(1, 2, documents.tokens, 8, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        with torch.inference_mode():
            rows_attention.attention(documents, q, q, q, scale=1.0, causal=True)
        rows_attention.attention(documents, q, q, q, scale=1.0, causal=True).sum().backward()
        assert q.grad.shape == q.shape


# --- what the kernel is told ------------------------------------------------------------------------------------------


def plain_varlen(q, k, v, starts, starts_k, longest, longest_k, *, scale, window_size, enable_gqa=False):
    """torch.nn.attention.varlen.varlen_attn, as its documentation has it, in plain operations."""
    assert torch.equal(starts, starts_k)
    assert enable_gqa == (q.shape[1] != k.shape[1])
    left, right = window_size
    outs = []
    for start, end in pairwise(starts.tolist()):
        assert end - start <= longest == longest_k
        own = [x[start:end].transpose(0, 1)[None] for x in (q, k, v)]
        ahead = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]
        seen = (ahead <= right if right >= 0 else ahead == ahead) & (-ahead <= left if left >= 0 else ahead == ahead)
        out = torch.nn.functional.scaled_dot_product_attention(*own, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 4, 100])
@pytest.mark.parametrize("layout", ["one line", "side by side"])
def test_attention_is_that_of_the_cpu(layout, causal, window, monkeypatch):
    """With the kernel's own work done in plain operations."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)
    lengths, names = [5, 9, 1, 12, 4], ["default"] * 5
    documents = packed_rows(lengths, names) if layout == "one line" else padded_rows(lengths, 12, names)
    assert documents.padded
    inside = torch.zeros(documents.tokens, dtype=torch.bool)
    for start, length in zip(documents.starts, lengths, strict=True):
        inside[start : start + length] = True
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(documents.tokens, n, 8, generator=generator, requires_grad=True) for n in (4, 2, 2))
    dy = torch.randn(documents.tokens, 4, 8, generator=generator) * inside[:, None, None]
    options = {"scale": 0.3, "causal": causal, "window": window, "dtype": torch.float32}

    def run(on_cuda):
        for x in (q, k, v):
            x.grad = None
        if on_cuda:
            out = rows_attention._on_cuda(documents, q, k, v, **options)
        else:
            shaped = [x[None].transpose(1, 2) for x in (q, k, v)]
            out = rows_attention.attention(documents, *shaped, **options)[0]
        out.backward(dy)
        return out.detach()[inside], *(x.grad[inside] for x in (q, k, v))

    for one, other in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# --- the fake GPU -----------------------------------------------------------------------------------------------------


def test_the_fake_gpu_refuses_what_a_gpu_refuses():
    with gpu() as seen:
        x, here = torch.ones(3, 8, device=DEVICE), torch.ones(3, 8)
        for wrong in (lambda: x + here, lambda: x @ here.t(), lambda: x @ x.t().half()):
            with pytest.raises(RuntimeError, match=r"device|dtype"):
                wrong()
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        for wait in (lambda: x[x > 0], lambda: x.index_put_((x > 0,), torch.zeros((), device=DEVICE))):
            with pytest.raises(RuntimeError, match="by a mask"):
                wait()
        from torch.nn.attention.varlen import varlen_attn

        starts = torch.zeros(2, dtype=torch.int32, device=DEVICE)
        q = torch.ones(3, 1, 8, device=DEVICE)
        with pytest.raises(AssertionError, match="not a dtype of the kernel"):
            varlen_attn(q, q, q, starts, starts, 3, 3)
        with pytest.raises(AssertionError):
            varlen_attn(*(q.half(),) * 3, starts.long(), starts.long(), 3, 3)
        seen.forget()
        here.to(DEVICE)
        x.cpu()
        x.copy_(here)
        assert seen.waits == [COPIES[0], COPIES[0], COPIES[1]]
        x + torch.ones(())
        assert seen.mixed == ["aten.add.Tensor"]
