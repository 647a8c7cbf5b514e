"""The linear probe: right inputs, better than chance, at its optimum, and the model left as it was."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny import LABELS, labelled, make_lock

from hfadapt.core.errors import RunError
from hfadapt.modalities.text import token_ids
from hfadapt.models.load import load_base
from hfadapt.tasks.text_classification.task import KIND
from hfadapt.train.batches import padded
from hfadapt.train.probe import put_head, train_probe

CPU = torch.device("cpu")


@pytest.fixture
def ready(models):
    base = load_base(make_lock(models / "encoder", "text-classification"), LABELS, CPU)
    base.model.eval()
    parts = [
        KIND.encode(labelled(count, seed), base.tokenizer, max_length=64, labels=LABELS)
        for count, seed in ((120, 0), (40, 1))
    ]

    def batches(examples):
        return padded(KIND, examples, base.tokenizer.pad_token_id, CPU, 16)

    return base, *parts, batches


def test_the_probe_does_what_logistic_regression_does(ready):
    base, train, _, batches = ready
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    probe = train_probe(KIND, base.model, base.head_modules, train, train, batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    put_head(base.model, base.head_modules, probe)
    with torch.no_grad():
        scores = KIND.score(base.model, train, batches)

    def pooled(examples):
        with torch.no_grad():
            return torch.cat(
                [base.model.bert(input_ids=torch.tensor([token_ids(e)])).pooler_output for e in examples]
            ).numpy()

    reference = LogisticRegression(C=1.0, max_iter=2000).fit(pooled(train), [e.labels[0] for e in train])
    expected = reference.score(pooled(train), [e.labels[0] for e in train])
    accuracy = (scores.gold == scores.predictions).mean()
    assert expected > 0.6
    assert accuracy >= expected - 0.05


def test_it_is_reproducible(ready):
    base, train, validation, batches = ready
    first, again = (train_probe(KIND, base.model, base.head_modules, train, validation, batches) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_head_whose_input_is_not_found_is_an_error(ready):
    base, train, validation, batches = ready

    class Odd(torch.nn.Module):
        """Adds what depends on the whole batch, so that no single input explains the logits."""

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(64, 2)
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return self.linear(x) + 10 * self.calls

    base.model.classifier = Odd()
    with pytest.raises(RunError, match="linear probe"):
        train_probe(KIND, base.model, ("classifier",), train, validation, batches)


def test_a_decoder_is_probed_at_its_last_token(models):
    base = load_base(make_lock(models / "lm", "text-classification"), LABELS, CPU)
    base.model.eval()
    train = KIND.encode(labelled(60), base.tokenizer, max_length=64, labels=LABELS)

    def batches(examples):
        return padded(KIND, examples, base.tokenizer.pad_token_id, CPU, 16)

    probe = train_probe(KIND, base.model, base.head_modules, train[:40], train[40:], batches)
    put_head(base.model, base.head_modules, probe)
    with torch.no_grad():
        scores = KIND.score(base.model, train[:40], batches)
    assert (scores.gold == scores.predictions).mean() > 0.7
