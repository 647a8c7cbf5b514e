"""Generation in batches equals one by one; what is generated is what the row's last answer is compared with."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from tiny import NO_CHECKS, command, pairs, recipe_fields, uneven, write_recipe, write_rows

from hfadapt.core.progress import Silent
from hfadapt.evaluate.context import EvaluationContext, open_context
from hfadapt.evaluate.efficiency import measure_efficiency
from hfadapt.evaluate.general_text import general_text, paragraphs
from hfadapt.evaluate.generation import (
    Prompt,
    answered,
    chosen_prompts,
    generate,
    generated_texts,
    new_tokens,
)
from hfadapt.modalities import IGNORED
from hfadapt.modalities.text import text_example
from hfadapt.models.generate import Wanted, continuations, write
from hfadapt.models.load import load_processor
from hfadapt.run_folder import Run
from hfadapt.serve.adapted import Adapted


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    """A language model trained for a few steps to write words after a prompt."""
    folder = tmp_path_factory.mktemp("generation")
    write_rows(folder / "one.jsonl", uneven(60))
    write_recipe(folder / "tiny.yaml", recipe_fields(models / "lm", "causal-lm", train__learning_rate=0.004))
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return Run(folder / "runs/tiny").cell("one", "this-machine")


@pytest.fixture(scope="module")
def context(trained):
    context = open_context(trained, torch.device("cpu"), Silent())
    context.base.model.float()
    return context


def example(labels, length=None):
    ids = tuple(range(1, len(labels) + 1))
    return text_example(ids, tuple(labels), length=length or len(labels), row=7)


def test_the_last_answer_and_what_precedes_it():
    x = IGNORED
    assert answered(example([x, x, 3, 4])) == Prompt(7, (1, 2), (3, 4))
    assert answered(example([x, 2, 3, x, 5, 6, x])) == Prompt(7, (1, 2, 3, 4), (5, 6)), "the last turn of a chat"
    assert answered(example([1, 2, 3])) is None, "plain text has no prompt"
    assert answered(example([x, x])) is None
    assert answered(example([x, 2], length=9)) is None, "a row that was cut"


def test_rows_are_spread_over_the_split():
    examples = [text_example((1, 2), (IGNORED, 2), length=2, row=row) for row in range(100)]
    assert [prompt.row for prompt in chosen_prompts(examples, 4)] == [0, 25, 50, 75]
    assert len(chosen_prompts(examples, 500)) == 100
    assert chosen_prompts(examples, 0) == []
    assert new_tokens([Prompt(0, (1,), (1,) * 10)]) == 23
    assert new_tokens([Prompt(0, (1,), (1,) * 1000)]) == 128


@pytest.mark.parametrize("adapter", [True, False])
def test_a_batch_of_uneven_prompts_equals_one_by_one(context, adapter):
    prompts = [prompt.ids for prompt in chosen_prompts(context.test, 12)]
    assert len({len(ids) for ids in prompts}) > 3
    together = generate(context, prompts, 16, adapter=adapter, batch_rows=12)
    alone = [generate(context, [ids], 16, adapter=adapter)[0] for ids in prompts]
    assert together == alone
    assert any(len(ids) > 1 for ids in together)


def test_greedy_is_what_the_logits_say(context):
    ids = list(chosen_prompts(context.test, 1)[0].ids)
    (written,) = generate(context, [ids], 6)
    with torch.inference_mode():
        for token in written:
            logits = context.model(input_ids=torch.tensor([ids])).logits[0, -1]
            assert int(logits.argmax()) == token
            ids.append(token)


def test_adapter_and_base_write_different_texts_for_the_same_rows(context):
    base, adapter = generated_texts(context)
    assert base.rows == adapter.rows
    assert base.references == adapter.references
    assert list(base.predictions) != list(adapter.predictions)
    row = context.rows[adapter.rows[3]]
    assert adapter.references[3] == row["completion"].strip()


def test_general_text_is_the_same_without_an_adapter(context):
    found = general_text(context)
    assert found.rows == len(paragraphs()) == 48
    assert found.base > 1
    assert found.delta != 0
    assert found.low <= found.delta <= found.high
    with context.adapter_on(False):
        off = general_text(context)
    assert off.base == pytest.approx(found.base)


def test_speed_is_measured_over_the_rows_it_says(context):
    found = measure_efficiency(context, scoring_seconds=2.0, adapter_bytes=5)
    assert found.latency_rows == 20
    assert 0 < found.latency_p50_seconds <= found.latency_p95_seconds
    assert found.base_latency_p50_seconds > 0
    assert found.rows_per_second == len(context.test) / 2
    assert found.generated_tokens_per_second > 0
    assert found.adapter_bytes == 5


def test_every_row_of_a_small_split_is_timed(context, monkeypatch):
    few, seen = replace(context), []
    few.test = context.test[:9]
    monkeypatch.setattr(
        EvaluationContext, "score", lambda self, examples, *, adapter: seen.append((examples[0].row, adapter))
    )
    found = measure_efficiency(few, scoring_seconds=1.0, adapter_bytes=5)
    assert found.latency_rows == 9
    assert {row for row, adapter in seen if adapter} == {example.row for example in few.test}


def test_a_text_ends_where_training_taught_it_to(context):
    """Many chat models end a turn with a token that their generation settings do not name."""
    prompt = chosen_prompts(context.test, 1)[0].ids
    (free,) = continuations(context.model, context.base.tokenizer, [prompt], 6, batch_rows=1)
    settings, end = context.model.generation_config, next(token for token in free if token != free[0])
    known, taught = (settings.eos_token_id, settings.repetition_penalty), load_processor(context.base.source, "text")
    settings.eos_token_id, taught.eos_token = None, taught.convert_ids_to_tokens(end)
    adapted = Adapted(context.model, taught, "causal-lm", (), {}, 64, prompt="{text}")
    settings.repetition_penalty = 1e9
    try:
        (answer,) = adapted.predict(taught.decode(prompt), max_new_tokens=6)
    finally:
        settings.eos_token_id, settings.repetition_penalty = known
    assert answer.generated
    assert answer.generated == taught.decode(free[: free.index(end)], skip_special_tokens=True).strip()


@pytest.mark.parametrize("sampled", [False, True])
def test_settings_of_the_base_do_not_change_what_is_written(context, monkeypatch, sampled):
    """Only its end tokens count; afterwards all are as they were, also when generating failed."""
    prompts = [prompt.ids for prompt in chosen_prompts(context.test, 4)]

    def written():
        torch.manual_seed(3)
        return continuations(context.model, context.base.tokenizer, prompts, 12, batch_rows=4, sampled=sampled)

    free, own = written(), context.model.generation_config
    asked = {"no_repeat_ngram_size": 1, "suppress_tokens": [free[0][0]], "min_p": 0.9, "length_penalty": 9.0}
    for name, value in {**asked, "min_new_tokens": 12, "repetition_penalty": 9.0}.items():
        monkeypatch.setattr(own, name, value)
    before = own.to_dict()
    assert written() == free
    failing = mock.Mock(side_effect=RuntimeError("out of memory"))
    monkeypatch.setattr(type(context.base.model), "generate", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        written()
    assert context.model.generation_config is own
    assert own.to_dict() == before


def test_rows_of_a_batch_end_each_by_itself(context):
    """Whoever waits for a row is told all of it, and can end it; the others do not notice."""
    prompts = [prompt.ids for prompt in chosen_prompts(context.test, 3)]
    model, tokenizer = context.model, context.base.tokenizer
    wanted = continuations(model, tokenizer, prompts, 9, batch_rows=1)
    assert min(map(len, wanted)) > 3
    heard: list[list[tuple[list[int], str | None]]] = [[], [], []]

    def hear(row, most):
        def told(ids, reason):
            heard[row].append((list(ids), reason))
            return len(ids) < most

        return told

    limits = [9, 2, 9]
    write(model, tokenizer, [Wanted(ids, limits[i], hear(i, (99, 99, 3)[i])) for i, ids in enumerate(prompts)])
    assert heard[0][-1] == (wanted[0], "stop" if len(wanted[0]) < 9 else "length")
    assert heard[1] == [(wanted[1][:1], None), (wanted[1][:2], "length")]
    assert [ids for ids, _ in heard[2]] == [wanted[2][:size] for size in (1, 2, 3)]


def test_small_answer_sets_are_not_generated(models, tmp_path):
    """Where the model chooses among few answers, no text is generated and general text can be switched off."""
    write_rows(tmp_path / "one.jsonl", pairs(80))
    fields = recipe_fields(models / "lm", "causal-lm", evaluate={**NO_CHECKS, "resamples": 100, "general_text": False})
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    evaluation = Run(tmp_path / "runs/tiny").cell("one", "this-machine").evaluation
    assert evaluation.metrics[0].name == "label_accuracy"
    assert "bleu" not in {metric.name for metric in evaluation.metrics}
    assert evaluation.general_text is None
    assert evaluation.prompts_sha256
    assert {test.test for test in evaluation.paired_tests} == {"mcnemar-exact", "wilcoxon-signed-rank"}
    assert sum(part.rows for part in evaluation.calibration.adapter) == 24
