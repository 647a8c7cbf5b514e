"""The security checks on adapters that were really trained: an overfit one leaks and its canaries are found, the same
adapter on rows and canaries that it never saw does not and they are not."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from tiny import PLAIN, command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.core.progress import Silent
from hfadapt.core.spec import write_text
from hfadapt.data import canaries, read_split
from hfadapt.evaluate.context import open_context
from hfadapt.evaluate.privacy import security
from hfadapt.evaluate.privacy.exposure import exposure
from hfadapt.evaluate.privacy.regurgitation import CONTINUED_TOKENS, generate, opening, span
from hfadapt.evaluate.privacy.token_scores import score_tokens
from hfadapt.modalities.text import token_ids
from hfadapt.run_folder import Cell

CPU = torch.device("cpu")
CANARIES = {"count": 12, "repeats": [1, 4, 16]}


def stories(count, seed=0):
    draw = np.random.default_rng(seed)
    return [
        {"prompt": " ".join(draw.choice(PLAIN, 6)) + " :", "completion": " " + " ".join(draw.choice(PLAIN, 12))}
        for _ in range(count)
    ]


def trained(folder, model, task, rows, **more):
    write_rows(folder / "one.jsonl", rows)
    fields = recipe_fields(
        model,
        task,
        data__canaries=CANARIES,
        data__validation=24,
        data__test=40,
        train__schedule="constant",
        # Validated at the end alone: else the state before it is overfit would be kept.
        train__evaluate_every_steps=10_000,
        **more,
    )
    write_recipe(folder / "tiny.yaml", fields)
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return Cell(folder / "runs/tiny/one/this-machine")


@pytest.fixture(scope="module")
def writer(models, tmp_path_factory):
    """A language model that has learned its rows by heart."""
    folder = tmp_path_factory.mktemp("writer")
    settings = {"adapter": {"method": "full"}, "train__learning_rate": 3e-3, "train__max_steps": 200}
    return trained(folder, models / "lm", "causal-lm", stories(128), **settings)


@pytest.fixture(scope="module")
def classifier(models, tmp_path_factory):
    """A classifier that has learned its rows by heart: some of their labels are wrong."""
    folder = tmp_path_factory.mktemp("classifier")
    draw = np.random.default_rng(3)
    rows = [{**row, "label": str(draw.choice(["bad", "good"]))} for row in labelled(160, seed=3)]
    adapter = {"method": "lora", "rank": 32}
    settings = {"adapter": adapter, "train__learning_rate": 1e-3, "train__max_steps": 250}
    return trained(folder, models / "encoder", "text-classification", rows, **settings)


def unseen(cell, folder, rows):
    """A copy of the cell whose training rows and canaries are others of the same kind, which its adapter never saw."""
    shutil.copytree(cell.folder, folder / "one" / "this-machine")
    copy = Cell(folder / "one" / "this-machine")
    train = copy.folder / "data" / "train.parquet"
    schema = parquet.read_schema(train)
    rows = [{**row, "source": "new", "row": number} for number, row in enumerate(rows)]
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), train)
    path = copy.folder / "data" / canaries.FILE
    repeats = parquet.read_table(path)["repeats"].to_pylist()
    others = canaries.draw(copy.folder, copy.data, 99, "never", len(repeats))
    others = [{**row, "repeats": each} for row, each in zip(others, repeats, strict=True)]
    parquet.write_table(pa.Table.from_pylist(others, schema=parquet.read_schema(path)), path)
    payload = json.loads((copy.folder / "data.json").read_text())
    payload["canaries"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    write_text(copy.folder / "data.json", json.dumps(payload))
    return copy


@pytest.fixture(scope="module")
def writer_record(writer):
    return security.check(open_context(writer, CPU, Silent()))


@pytest.fixture(scope="module")
def classifier_record(classifier):
    return security.check(open_context(classifier, CPU, Silent()))


def groups(record):
    return {group.repeats: group for group in record.canaries.groups}


def test_an_overfit_language_model_leaks(writer_record):
    found = writer_record.membership
    assert (found.members, found.non_members) == (64, 64)
    assert found.leaks
    assert {attack.name for attack in found.attacks} == {
        "loss", "loss difference", "Min-20%", "Min-20%++", "zlib ratio"
    }  # fmt: skip
    assert max(attack.auc.value for attack in found.attacks) > 0.9
    assert found.blind.auc.low < 0.5
    assert writer_record.verbatim.rate.low > writer_record.verbatim.base_rate.high
    assert writer_record.verbatim.rate.low > writer_record.verbatim.held_out_rate.high
    assert (writer_record.verbatim.prompts, writer_record.verbatim.prefix_tokens) == (64, 0)
    assert writer_record.personal_data.generations == 24


def test_its_canaries_are_found(writer_record):
    assert writer_record.canaries.found
    assert writer_record.canaries.planted == 12
    assert groups(writer_record)[16].found == 4
    assert groups(writer_record)[0].p_value > 0.01
    assert groups(writer_record)[16].exposure_median_bits >= writer_record.canaries.threshold_bits


def test_an_overfit_classifier_leaks_and_its_canaries_are_found(classifier_record):
    assert classifier_record.membership.leaks
    # Its baseline was trained on the members too, so a difference to it would say little.
    assert {attack.name for attack in classifier_record.membership.attacks} == {"loss", "confidence", "margin"}
    assert classifier_record.canaries.found
    # Processors round otherwise: 0.011 with AVX2, below 0.01 with AVX-512.
    assert groups(classifier_record)[16].p_value < 0.05
    assert (classifier_record.verbatim, classifier_record.personal_data) == (None, None)
    assert [each.metric for each in classifier_record.robustness] == ["accuracy"] * len(classifier_record.robustness)


def test_rows_and_canaries_that_were_not_trained_on_are_not_found(writer, classifier, tmp_path):
    draw = np.random.default_rng(4)
    noisy = [{**row, "label": str(draw.choice(["bad", "good"]))} for row in labelled(96, seed=8)]
    for cell, rows in ((writer, stories(64, seed=8)), (classifier, noisy)):
        copy = unseen(cell, tmp_path / cell.lock.task, rows)
        record = security.check(open_context(copy, CPU, Silent()))
        assert not record.membership.leaks
        assert not record.canaries.found
        if record.verbatim:
            assert record.verbatim.rate.value == 0


def test_without_canaries_there_is_nothing_to_find(writer, tmp_path):
    shutil.copytree(writer.folder, tmp_path / "one" / "this-machine")
    cell = Cell(tmp_path / "one" / "this-machine")
    payload = json.loads((cell.folder / "data.json").read_text())
    write_text(cell.folder / "data.json", json.dumps({**payload, "canaries": None}))
    assert exposure(open_context(cell, CPU, Silent())) is None


def test_a_second_check_says_the_same(writer, writer_record):
    context = open_context(writer, CPU, Silent())
    before = torch.random.get_rng_state()
    again = security.check(context)
    assert again.model_copy(update={"seconds": 0.0}) == writer_record.model_copy(update={"seconds": 0.0})
    assert torch.equal(before, torch.random.get_rng_state())


def test_one_pass_tells_what_greedy_generation_would_write(writer):
    context = open_context(writer, CPU, Silent())
    examples = context.encode([*read_split(writer.folder, "train")[:12], *context.rows[:12]])
    told, written = [], []
    for example, scores in zip(examples, score_tokens(context, examples), strict=True):
        start, end = span(example)
        told.append(bool(scores.hits[start:end].all()))
        first = next(i for i, label in enumerate(example.labels) if label >= 0) + start
        output = context.model.generate(
            input_ids=torch.tensor([token_ids(example)[:first]]), max_new_tokens=end - start, do_sample=False,
            attention_mask=torch.ones(1, first, dtype=torch.long), pad_token_id=0,
        )  # fmt: skip
        written.append(tuple(output[0, first:].tolist()) == token_ids(example)[first : first + end - start])
        assert end - start <= CONTINUED_TOKENS
    assert told == written
    assert 0 < sum(told) < len(told)


def test_token_scores_are_those_of_the_task(writer):
    context = open_context(writer, CPU, Silent())
    for adapter in (True, False):
        tokens = score_tokens(context, context.test, adapter=adapter)
        scores = context.score(context.test, adapter=adapter)
        np.testing.assert_allclose([-each.logprobs.sum() for each in tokens], scores.losses, rtol=1e-4)
        assert [len(each.logprobs) for each in tokens] == scores.tokens.tolist()


def test_the_standardised_score_is_min_k_plus_plus(writer):
    context = open_context(writer, CPU, Silent())
    example = context.test[0]
    found = score_tokens(context, [example])[0]
    with torch.inference_mode():
        logits = context.model(torch.tensor([token_ids(example)])).logits[0].double()
    first = next(i for i, label in enumerate(example.labels) if label >= 0)
    logp = torch.log_softmax(logits[first - 1], -1)
    mean = (logp.exp() * logp).sum()
    spread = (logp.exp() * (logp - mean) ** 2).sum().sqrt()
    assert found.standardised[0] == pytest.approx(float((logp[example.labels[first]] - mean) / spread), rel=1e-3)


def test_generations_are_seeded(writer):
    context = open_context(writer, CPU, Silent())
    prompts = [opening(example) for example in context.test[:6]]
    first = generate(context, prompts, 1)
    assert first == generate(context, prompts, 1)
    assert first != generate(context, prompts, 2)
    assert all(first)


def test_fewer_rows_for_larger_models_and_longer_texts(writer):
    context = open_context(writer, CPU, Silent())
    assert security.affordable(context, context.test, 4) == security.MOST_ROWS
    assert security.affordable(context, context.test, 10**9) == security.LEAST_ROWS
    context.base.parameters = 300_000_000
    some = security.affordable(context, context.test, 4)
    assert security.LEAST_ROWS < some < security.MOST_ROWS
    assert security.affordable(context, context.test, 8) < some
