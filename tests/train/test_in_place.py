"""Heads that are more than their modules one after the other: trained where they stand, the model left as it was."""

from __future__ import annotations

import pytest
import torch
import transformers
from tiny import LABELS, labelled, make_lock, make_tokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

from hfadapt.models.load import load_base
from hfadapt.tasks.text_classification.task import KIND
from hfadapt.train import probe as probes
from hfadapt.train.batches import padded
from hfadapt.train.in_place import InPlace
from hfadapt.train.probe import put_head, start_at, train_probe

CPU = torch.device("cpu")


def eurobert(folder):
    """Its classifier answers for every token, and takes the mean after that."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.EuroBertConfig(
        vocab_size=len(tokenizer), intermediate_size=128, classifier_pooling="late", **sizes
    )
    config.pad_token_id = tokenizer.pad_token_id
    transformers.EuroBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TwoHeads(torch.nn.Module):
    """Two heads whose answers are averaged, on what a norm makes of the mean of all tokens."""

    def __init__(self, base):
        super().__init__()
        self.config, self.bert = base.config, base.bert
        self.norm, self.head, self.other = torch.nn.LayerNorm(64), torch.nn.Linear(64, 2), torch.nn.Linear(64, 2)

    def forward(self, input_ids, attention_mask):
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None]
        mean = (self.norm(hidden) * mask).sum(1) / mask.sum(1)
        return SequenceClassifierOutput(logits=(self.head(mean) + self.other(mean)) / 2)


def parts_of(base):
    rows = [
        KIND.encode(labelled(count, seed), base.tokenizer, max_length=64, labels=LABELS)
        for count, seed in ((120, 0), (40, 1))
    ]

    def batches(examples):
        return padded(KIND, examples, base.pad_token_id, CPU, 16)

    return *rows, batches


def accuracy(model, examples, batches):
    with torch.no_grad():
        scores = KIND.score(model, examples, batches)
    return float((scores.gold == scores.predictions).mean())


@pytest.fixture(params=["eurobert", "two heads"])
def odd(request, models, tmp_path):
    if request.param == "eurobert":
        base = load_base(make_lock(eurobert(tmp_path / "base"), "text-classification"), LABELS, CPU)
        return base.model.eval(), base.head_modules, parts_of(base)
    base = load_base(make_lock(models / "encoder", "text-classification"), LABELS, CPU)
    torch.manual_seed(0)
    return TwoHeads(base.model).eval().requires_grad_(False), ("norm", "head", "other"), parts_of(base)


def test_it_learns_and_leaves_the_model_as_it_was(odd):
    model, names, (train, validation, batches) = odd
    heads = [model.get_submodule(name) for name in names]
    assert probes._find_pick(KIND, model, torch.nn.Sequential(*heads), train[:4], batches) is None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe = train_probe(KIND, model, heads, train, validation, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [model.get_submodule(name) for name in names] == heads
    assert "forward" not in vars(next(iter(model.children())))
    again = train_probe(KIND, model, heads, train, validation, batches)
    assert all(torch.equal(a, b) for a, b in zip(probe.parameters(), again.parameters(), strict=True))
    put_head(model, names, probe)
    assert accuracy(model, train, batches) > 0.75
    with torch.no_grad():
        answers = torch.cat([KIND.label_logits(model, batch) for _, batch in batches(train)])
    assert torch.allclose(answers.mean(0), probe.get_buffer("mean"), atol=1e-4)
    start_at(heads, probe, 0.3)
    with torch.no_grad():
        less = torch.cat([KIND.label_logits(model, batch) for _, batch in batches(train)])
    mean = probe.get_buffer("mean")
    assert torch.allclose(less - mean, 0.3 * (answers - mean), atol=1e-4)


def test_what_is_not_to_be_trained_stays(odd):
    model, names, (train, validation, batches) = odd
    heads = [model.get_submodule(name) for name in names]
    probe = train_probe(KIND, model, heads, train[:32], validation, batches, [False, *[True] * (len(heads) - 1)])
    changed = [
        any(not torch.equal(a, b) for a, b in zip(head.parameters(), own.parameters(), strict=True))
        for head, own in zip(heads, probe, strict=True)
    ]
    assert changed == [False, *[True] * (len(heads) - 1)]


def test_of_more_rows_than_there_is_room_for_some_are_taken(odd, monkeypatch):
    model, names, (train, _, batches) = odd
    heads = [model.get_submodule(name) for name in names]
    place = InPlace(KIND, model, heads, heads)
    whole = place.batches(train, batches)
    size = sum(each.numel() * 4 for _, said in whole for given in said.values() for each in given[0].values())
    monkeypatch.setattr("hfadapt.train.in_place.ROOM", size // 3)
    some = place.batches(train, batches)
    rows = [sum(len(batch["labels"]) for batch, _ in kept) for kept in (whole, some)]
    assert rows[0] == 120
    assert 24 <= rows[1] <= 60
