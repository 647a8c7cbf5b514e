"""The linear probe: right inputs, better than chance, at its optimum, and the model left as it was."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny import LABELS, command, labelled, make_lock, recipe_fields, write_recipe, write_rows

from hfadapt.core.errors import RunError
from hfadapt.modalities.text import token_ids
from hfadapt.models.load import load_base
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell
from hfadapt.tasks.text_classification.task import KIND
from hfadapt.train.batches import padded
from hfadapt.train.probe import FILE, probe_of, put_head, start_at, train_probe

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


def _heads(base):
    return [base.model.get_submodule(name) for name in base.head_modules]


def test_the_probe_does_what_logistic_regression_does(ready):
    base, train, _, batches = ready
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    probe = train_probe(KIND, base.model, _heads(base), train, train, batches)
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
    first, again = (train_probe(KIND, base.model, _heads(base), train, validation, batches) for _ in range(2))
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
        train_probe(KIND, base.model, [base.model.classifier], train, validation, batches)


def test_a_decoder_is_probed_at_its_last_token(models):
    base = load_base(make_lock(models / "lm", "text-classification"), LABELS, CPU)
    base.model.eval()
    train = KIND.encode(labelled(60), base.tokenizer, max_length=64, labels=LABELS)

    def batches(examples):
        return padded(KIND, examples, base.tokenizer.pad_token_id, CPU, 16)

    probe = train_probe(KIND, base.model, _heads(base), train[:40], train[40:], batches)
    put_head(base.model, base.head_modules, probe)
    with torch.no_grad():
        scores = KIND.score(base.model, train[:40], batches)
    assert (scores.gold == scores.predictions).mean() > 0.7


def classified(folder, models, rows: int) -> Cell:
    """A run of a few steps, its evaluation too."""
    write_rows(folder / "one.jsonl", labelled(rows))
    fields = recipe_fields(models / "encoder", "text-classification", train={"max_steps": 2, "batch_rows": 8})
    fields["evaluate"] |= {"security": True, "drift": False}
    write_recipe(folder / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    return Cell(folder / "runs/tiny/one/this-machine")


def test_training_starts_with_what_the_evaluation_compares_with(models, tmp_path):
    cell = classified(tmp_path, models, 240)
    assert cell.read(TrainRecord).head_start == "linear probe"
    base = load_base(cell.lock, cell.data.labels, CPU)

    def rows(split):
        return KIND.encode(cell.read_split(split), base.tokenizer, max_length=64, labels=cell.data.labels)

    def batches(examples):
        return padded(KIND, examples, base.tokenizer.pad_token_id, CPU, 16)

    def never(examples):
        raise AssertionError("it is trained again")

    own = train_probe(KIND, base.model.eval(), _heads(base), rows("train"), rows("validation"), batches)
    kept = probe_of(cell, base, (), (), never)
    for one, other in zip(kept.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    (cell.folder / FILE).write_bytes(b"of a disk that was full")
    again = probe_of(cell, base, rows("train"), rows("validation"), batches)
    for one, other in zip(again.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_head_starts_at_the_probe_less_sure(ready):
    base, train, validation, batches = ready
    heads = _heads(base)
    probe = train_probe(KIND, base.model, heads, train, validation, batches)
    features = torch.randn(7, heads[0].in_features, generator=torch.Generator().manual_seed(0))
    start_at(heads, probe, 0.3)
    with torch.no_grad():
        found, mean = torch.nn.Sequential(*heads)(features), probe.get_buffer("mean")
        assert torch.allclose(found - mean, 0.3 * (probe(features) - mean), atol=1e-5)
    put_head(base.model, base.head_modules, probe)
    with torch.no_grad():
        answers = torch.cat([KIND.outputs_of(base.model, batch).logits for _, batch in batches(train)])
    assert torch.allclose(answers.mean(0), mean, atol=1e-4)


@pytest.mark.parametrize(("rows", "labels", "trained"), [(64, 3, False), (64, 21, True), (1000, 2, True)])
def test_of_few_rows_of_few_classes_a_head_learns_nothing_before(rows, labels, trained):
    assert (KIND.head_start(rows, labels) > 0) == trained


def test_a_head_that_reads_what_is_not_known_starts_untrained(models, tmp_path, monkeypatch):
    def lost(*_):
        raise RunError("the input of the task's head could not be found")

    monkeypatch.setattr("hfadapt.train.cells.probe_of", lost)
    cell = classified(tmp_path, models, 240)
    assert cell.read(TrainRecord).head_start is None
