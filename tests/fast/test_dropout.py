"""Dropout by keys: peft's own layers with the same masks, a row alone and in any batch, and masks that look drawn."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from hfadapt.fast import FastPath, batch, compiled, kernels, labelled_loss, packed_rows, padded_rows, row_seed
from hfadapt.fast.documents import CURRENT
from hfadapt.fast.dropout import Dropout, column_keys, random_keys, token_keys
from hfadapt.modalities.text import text_example, token_ids
from hfadapt.tasks.causal_lm.task import KIND as LM
from hfadapt.tasks.text_classification.task import KIND as CLASSIFIER
from tests.fast.test_path import DECODERS, ENCODERS, GROUPED, close, gradients, make, rows

SHARE = 0.3


class Given(torch.nn.Module):
    """Stands for a layer's dropout in peft: the values of one announced row, by the keys of the group's first layer."""

    def __init__(self, path, share):
        super().__init__()
        self.path, self.share = path, share

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        keys = token_keys(CURRENT.documents.seeds, [0], len(flat))
        parts = [(0, len(flat), self.share)]
        dropped = Dropout(keys, column_keys(self.path, flat.shape[1]), parts).dropped()
        return (flat.masked_fill(dropped, 0) / (1 - self.share)).view(x.shape)


def line_loss(model, examples, line, weights):
    inputs = LM.pack(examples, line.tokens, 0)
    return labelled_loss(model, inputs, LM.targets(inputs), weights)


def with_given_masks(model, share=SHARE):
    """The model with `Given` in place of every dropout; which layers go together is asked of the fast path."""
    path = FastPath(model)
    with path.on():
        groups = [(group.path, [layer.module for layer in group.layers]) for group in path.groups]
    for name, modules in groups:
        for module in modules:
            for adapter in list(module.lora_dropout):
                module.lora_dropout[adapter] = Given(name, share)
    return model


def one_by_one(model, task, examples, seeds):
    """The libraries' own forward passes, a row at a time."""
    total = 0.0
    for example, seed in zip(examples, seeds, strict=True):
        length = len(token_ids(example))
        with batch(padded_rows([length], length, ["default"], [seed])):
            total = total + task.losses(model, task.collate([example], 0))[0].sum()
    return total.item(), gradients(model, total)


def in_a_line(model, examples, seeds, names=None):
    lengths = [len(token_ids(e)) for e in examples]
    line = packed_rows(lengths, names or ["default"] * len(examples), seeds)
    with batch(line):
        total, losses, of = line_loss(model, examples, line, torch.ones(len(examples)))
        each = torch.zeros(len(examples)).index_add(0, of, losses.detach())
        return each, gradients(model, total)


@pytest.mark.parametrize("with_kernels", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt_neox"])
def test_rows_in_a_line_are_pefts_rows_with_the_same_masks(kind, with_kernels, monkeypatch):
    if not with_kernels:
        monkeypatch.setattr(kernels, "passes", lambda: None)
    sizes = DECODERS[kind][0]
    examples, seeds = rows(), [row_seed(0, 1, i) for i in range(5)]
    plain = with_given_masks(make(kind, sizes, "AutoModelForCausalLM", lora_dropout=SHARE))
    loss, reference = one_by_one(plain, LM, examples, seeds)
    model = make(kind, sizes, "AutoModelForCausalLM", lora_dropout=SHARE)
    path = FastPath(model)
    with path.on():
        assert path.low_rank_layers
        assert path.gates == DECODERS[kind][1].get("gates", 0)
        losses, fast = in_a_line(model, examples, seeds)
        assert losses.sum().item() == pytest.approx(loss, rel=1e-5)
        close(fast, reference, 2e-5)
        other, _ = in_a_line(model, examples, [seed + 1 for seed in seeds])
        assert other.sum().item() != pytest.approx(loss, rel=1e-4), "other seeds drop other values"
        model.eval()
        scored, _ = in_a_line(model, examples, seeds)
    without = make(kind, sizes, "AutoModelForCausalLM").eval()
    expected, _ = one_by_one(without, LM, examples, seeds)
    assert scored.sum().item() == pytest.approx(expected, rel=1e-5), "nothing is dropped outside of training"


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_padded_rows_are_pefts_rows_with_the_same_masks(kind):
    """Also behind the pooling, where there is one vector a row."""
    seeds = [11, 12, 13, 14, 15]
    examples = [text_example(token_ids(e), (e.row % 2,), length=e.length, row=e.row) for e in rows()]
    auto = "AutoModelForSequenceClassification"
    plain = with_given_masks(make(kind, ENCODERS[kind], auto, lora_dropout=SHARE))
    loss, reference = one_by_one(plain, CLASSIFIER, examples, seeds)
    model = make(kind, ENCODERS[kind], auto, lora_dropout=SHARE)
    lengths = [len(token_ids(e)) for e in examples]
    with FastPath(model).on(), batch(padded_rows(lengths, max(lengths), ["default"] * 5, seeds)):
        total = CLASSIFIER.losses(model, CLASSIFIER.collate(examples, 0))[0].sum()
        assert total.item() == pytest.approx(loss, rel=1e-5)
        close(gradients(model, total), reference, 2e-5)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_tiles_drop_what_torch_drops(kind, monkeypatch):
    sizes = {**DECODERS[kind][0], "hidden_size": 64}
    examples, seeds = rows(), [1, 2, 3, 4, 5]
    model = make(kind, sizes, "AutoModelForCausalLM", torch.bfloat16, lora_dropout=SHARE)
    found = []
    for tiles in (True, False):
        if not tiles:
            monkeypatch.setattr(compiled, "tiles", lambda: None)
        with FastPath(model).on():
            found.append(in_a_line(model, examples, seeds))
    assert found[0][0].sum().item() == pytest.approx(found[1][0].sum().item(), rel=1e-2)
    close(found[0][1], found[1][1], 4e-2)


def test_rows_of_several_adapters_drop_each_its_own_share():
    """An adapter that drops nothing beside one that does: each has the gradients that it has alone."""
    model = make("llama", GROUPED, "AutoModelForCausalLM", lora_dropout=SHARE)
    settings = {"r": 8, "target_modules": "all-linear", "init_lora_weights": False, "lora_dropout": 0.0}
    model.add_adapter("a1f0", LoraConfig(**settings))
    names = ["default", "default", "a1f0", "a1f0", "default"]
    examples, seeds = rows(), [1, 2, 3, 4, 5]
    with FastPath(model, adapters=("default", "a1f0")).on():
        for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
            parameter.requires_grad_(True)
        losses, both = in_a_line(model, examples, seeds, names)
        for name in ("default", "a1f0"):
            own = [i for i, each in enumerate(names) if each == name]
            alone, reference = in_a_line(model, [examples[i] for i in own], [seeds[i] for i in own], [name] * len(own))
            assert torch.allclose(losses[own], alone, rtol=1e-5)
            wanted = {n: g for n, g in reference.items() if f".{name}." in n and bool(g.any())}
            close({n: both[n] for n in wanted}, wanted, 2e-5)


def test_checkpointed_layers_drop_the_same_values_again():
    examples, seeds = rows(), [1, 2, 3, 4, 5]
    found = []
    for checkpointing in (False, True):
        model = make("llama", GROUPED, "AutoModelForCausalLM", lora_dropout=SHARE)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        with FastPath(model).on():
            found.append(in_a_line(model, examples, seeds))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    close(found[1][1], found[0][1], 2e-5)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.9, 1.0])
def test_masks_have_the_share_and_no_pattern(share):
    """Shares of all, of every column and of every token; tokens, columns and layers know nothing of each other."""
    tokens, columns = 1024, 512
    keys = token_keys([row_seed(0, 1, row) for row in range(8)], range(0, tokens, tokens // 8), tokens)
    first, second = (
        Dropout(keys, column_keys(name, columns), [(0, tokens, share)]).dropped().double() for name in ("q", "gate")
    )
    spread = (share * (1 - share)) ** 0.5
    assert abs(first.mean() - share) <= 5 * spread / (tokens * columns) ** 0.5
    assert (first.mean(0) - share).abs().max() <= 6 * spread / tokens**0.5
    assert (first.mean(1) - share).abs().max() <= 6 * spread / columns**0.5
    if 0 < share < 1:
        a, b = ((mask - share) / spread for mask in (first, second))
        between_columns = (a.t() @ a / tokens).fill_diagonal_(0)
        between_tokens = (a @ a.t() / columns).fill_diagonal_(0)
        # Some pairs of a hundred thousand lie far apart by chance.
        assert between_columns.abs().max() <= 9 / tokens**0.5
        assert between_tokens.abs().max() <= 9 / columns**0.5
        assert abs((a * b).mean()) <= 5 / (tokens * columns) ** 0.5


def test_inputs_that_are_not_tokens_go_by_rows():
    """A pooled row has its own key, patches of an image count from its row, and where neither fits, torch draws."""
    documents = padded_rows([3, 2], 3, ["default"] * 2, [7, 8])
    device = torch.device("cpu")
    assert documents.keys(6, device).tolist() == token_keys([7, 8], [0, 3], 6).tolist()
    assert documents.keys(2, device).tolist() == token_keys([7, 8], [0, 1], 2).tolist()
    assert documents.keys(8, device).tolist() == token_keys([7, 8], [0, 4], 8).tolist()
    assert documents.keys(7, device) is None
    assert padded_rows([3], 3, ["default"]).keys(3, device) is None
    torch.manual_seed(0)
    one = random_keys(5, device)
    assert bool((one & 1).all())
    assert one.tolist() != random_keys(5, device).tolist()


def test_a_row_has_another_seed_in_every_step():
    seeds = {row_seed(seed, step, row) for seed in range(3) for step in range(20) for row in range(20)}
    assert len(seeds) == 1200
    assert all(0 <= seed < 1 << 63 for seed in seeds)
