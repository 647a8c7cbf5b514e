"""An adapter is adapted to texts before its task: which texts, the same whatever interrupts it, what comes of it."""

from __future__ import annotations

import json
import random
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import (
    GOOD,
    LABELS,
    PLAIN,
    After,
    command,
    labelled,
    make_lock,
    make_tokenizer,
    pairs,
    recipe_fields,
    write_recipe,
    write_rows,
)

from hfadapt.core import registry
from hfadapt.core.errors import RecipeError, RequestError
from hfadapt.data.rows import Ledger, Row, text_key
from hfadapt.data.unlabelled import apart
from hfadapt.models.attach import attach_adapter, trained_layers
from hfadapt.models.load import load_base
from hfadapt.objectives.simcse import GROUP
from hfadapt.plan.make import make_plan
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.schema import Dedupe, Recipe
from hfadapt.records.pretrain import PretrainRecord, WithoutPretrainRecord
from hfadapt.records.stages import TrainRecord
from hfadapt.run_folder import Cell, read_rows, read_steps
from hfadapt.tasks.text_classification.task import TextClassification
from hfadapt.train.batches import padded

OBJECTIVES = ("mlm", "tsdae", "simcse", "clm")
CPU = torch.device("cpu")


def cell(folder, domain="one", runs="runs"):
    return Cell(folder / runs / "tiny" / domain / "this-machine")


def fields(models, objective, **more):
    """A recipe of a base that can learn by the objective."""
    model, task = {"mlm": ("mlm", "text-classification"), "clm": ("lm", "causal-lm")}.get(
        objective, ("encoder", "text-classification")
    )
    found = recipe_fields(models / model, task, dtype="float32", train__fast={"bfloat16": False})
    found["pretrain"] = {"sources": ["texts.jsonl"], "objective": objective, "max_steps": 6, "batch_rows": 32}
    found["pretrain"]["learning_rate"] = 0.003
    found["train"] |= {"max_steps": 4, "together": False}
    for name, value in more.items():
        section, _, key = name.partition("__")
        found[section] = {**found[section], key: value} if key else value
    return found


def write(folder, objective="mlm", count=70):
    made = pairs if objective == "clm" else labelled
    write_rows(folder / "one.jsonl", made(100))
    write_rows(folder / "texts.jsonl", [{"text": row["text"]} for row in labelled(count, seed=5)])


def log(folder):
    lines = read_steps(folder / "pretrain/metrics.jsonl") + read_steps(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def adapter(folder):
    return load_file(folder / "adapter/adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- which texts -----------------------------------------------------------------------------------------------------

WORDS = st.lists(st.sampled_from([*PLAIN, *GOOD]), min_size=9, max_size=16)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.lists(WORDS, max_size=5), st.integers(0, 2), st.randoms())
def test_no_text_is_like_a_held_out_row(held, others, edits, draw):
    """Copies, copies with some words changed, longer texts with it inside and parts of it are left out."""
    near = list(held)
    # Fewer than a fifth of the words: exactly a fifth is the limit.
    for _ in range(min(edits, (len(held) - 1) // 5)):
        near[draw.randrange(len(near))] = "unheard"
    like = [held, near, [*PLAIN[:5], *held, *PLAIN[5:9]], [word.upper() for word in held], held[:9]]
    unlike = [["quite", *(f"{word}x" for word in each)] for each in others]
    rows = [Row("s", n, {"text": " ".join(words)}, " ".join(words)) for n, words in enumerate([*like, *unlike])]
    ledger = Ledger()
    kept = apart(rows, (" ".join(held), "another row"), Dedupe(), ledger)
    assert [row.row for row in kept] == list(range(len(like), len(rows)))
    assert len(ledger.dropped) == len(like)


def test_neither_own_nor_other_domains_held_out_rows_are_learned_from(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(100))
    write_rows(tmp_path / "two.jsonl", labelled(100, seed=3))
    every = [*labelled(100), *labelled(100, seed=3), *labelled(50, seed=9)]
    write_rows(tmp_path / "texts.jsonl", [{"text": f"{row['text']}!"} for row in every])
    domains = {name: {"source": f"{name}.jsonl"} for name in ("one", "two")}
    found = fields(models, "mlm", domains=domains)
    found["pretrain"] = {"sources": ["texts.jsonl"]}
    done = command("plan", write_recipe(tmp_path / "tiny.yaml", found), folder=tmp_path)
    assert done.code == 0, done.err
    done = command("run", "tiny.yaml", "--domain", "one", "pretrain.max_steps=2", folder=tmp_path)
    assert done.code == 0, done.err
    own = cell(tmp_path)
    texts = {text_key(row["text"].rstrip("!")) for row in read_rows(own.folder / "pretrain/texts.parquet")}
    held = {
        text_key(row["text"])
        for prepared in (tmp_path.glob("**/prepared/*/*/data/*.parquet"), own.folder.glob("data/*.parquet"))
        for path in prepared
        if path.stem in ("validation", "test")
        for row in read_rows(path)
    }
    assert len(held) >= 40
    assert not texts & held
    assert len(texts) > 150
    assert own.data.unlabelled.dropped["like-held-out-row"] >= 80


def test_own_rows_are_the_texts_where_none_are_named(models, tmp_path):
    write(tmp_path)
    found = fields(models, "mlm", pretrain={"max_steps": 2})
    done = command("train", write_recipe(tmp_path / "tiny.yaml", found), folder=tmp_path)
    assert done.code == 0, done.err
    own = cell(tmp_path)
    learned = {row["text"] for row in read_rows(own.folder / "pretrain/texts.parquet")}
    assert learned == {row["text"] for row in own.read_split("train")}
    assert own.read(PretrainRecord).own


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_learned_of_a_row_follows_from_the_row_and_the_epoch(models, objective):
    name = "mlm" if objective == "mlm" else "lm" if objective == "clm" else "encoder"
    kind = registry.objective(objective)
    lock = make_lock(models / name, kind.loaded_as("text-classification"))
    base = load_base(lock, LABELS, CPU)
    model = attach_adapter(base, lock)
    learner = kind.learner(base, 3)
    draw = random.Random(1)
    rows = [
        {"text": " ".join(draw.choices(PLAIN, k=12)), "source": "s", "row": number} for number in range(2 * GROUP + 3)
    ]
    plain = learner.encode(rows, base.tokenizer, max_length=48)
    assert plain == learner.encode(rows, base.tokenizer, max_length=48)
    first, again, second = (learner.in_epoch(rows, plain, base.tokenizer, (17, epoch)) for epoch in (0, 0, 1))
    assert first == again
    assert len(first) == len(second) == len(plain)
    assert (first != second) == learner.redraws
    model.train()
    whole, one_by_one = (
        sum(
            float(learner.losses(model, batch)[0].sum())
            for _, batch in padded(learner, first, base.pad_token_id, CPU, count)
        )
        for count in (len(first), 1)
    )
    assert whole == pytest.approx(one_by_one, rel=1e-4), "what goes through together changes nothing"
    _, batch = next(padded(learner, first[:1], base.pad_token_id, CPU, 1))
    losses, owners = learner.losses(model, batch)
    assert len(losses) == first[0].label_count
    assert set(owners.tolist()) == {0}
    losses.sum().backward()
    touched = [p.grad is not None for key, p in trained_layers(model, base, "default").items() if "pooler" not in key]
    assert all(touched)


@pytest.mark.parametrize(
    ("phase", "objective"),
    [
        *(("pretrain", objective) for objective in ("mlm", "tsdae", "simcse")),
        ("cells", "mlm"),
        *(pytest.param("cells", objective, marks=pytest.mark.slow) for objective in ("tsdae", "simcse")),
    ],
)
def test_resumed_equals_uninterrupted(models, tmp_path, monkeypatch, objective, phase):
    write(tmp_path, objective)
    write_recipe(tmp_path / "tiny.yaml", fields(models, objective))
    assert command("train", "tiny.yaml", folder=tmp_path).code == 0

    @contextmanager
    def interrupted():
        # It is asked within a step of several passes too.
        yield After(5 if phase == "pretrain" else 2)

    with monkeypatch.context() as patch:
        patch.setattr(f"hfadapt.train.{phase}.interruptible", interrupted)
        assert command("train", "tiny.yaml", "--runs", "parts", folder=tmp_path).code == 130
    done = command("train", "tiny.yaml", "--runs", "parts", folder=tmp_path)
    assert done.code == 0, done.err
    assert "going on from step" in done.err
    whole, parts = cell(tmp_path).folder, cell(tmp_path, runs="parts").folder
    assert log(whole) == log(parts)
    assert same(adapter(whole), adapter(parts))
    first, again = (Cell(each).read(PretrainRecord) for each in (whole, parts))
    assert (first.loss_before, first.loss_after) == (again.loss_before, again.loss_after)


def test_co_trained_adapters_are_what_they_are_alone(models, tmp_path):
    write(tmp_path)
    write_rows(tmp_path / "two.jsonl", labelled(100, seed=3))
    domains = {"one": {"source": "one.jsonl"}, "two": {"source": "two.jsonl", "pretrain": False}}
    for runs, together in (("runs", True), ("alone", False)):
        found = fields(models, "mlm", domains=domains, train__together=together, data__dedupe={"across_domains": False})
        done = command("train", write_recipe(tmp_path / "tiny.yaml", found), "--runs", runs, folder=tmp_path)
        assert done.code == 0, done.err
        assert ("co-training one, two" in done.err) == together
    for domain in ("one", "two"):
        both, alone = (adapter(cell(tmp_path, domain, runs).folder) for runs in ("runs", "alone"))
        assert all(torch.allclose(both[name], alone[name], atol=2e-6) for name in alone)
    assert cell(tmp_path, "one").has(PretrainRecord)
    assert not cell(tmp_path, "two").has(PretrainRecord), "left out there"


def test_the_task_goes_on_from_the_texts(models, tmp_path):
    write(tmp_path)
    found = fields(models, "mlm", train__learning_rate=1e-12)
    assert command("train", write_recipe(tmp_path / "tiny.yaml", found), folder=tmp_path).code == 0
    own = cell(tmp_path)
    begun = load_file(own.begun("pretrain"))
    saved = {name.removeprefix("base_model.model.bert."): each for name, each in adapter(own.folder).items()}
    assert begun.keys() < saved.keys()
    assert all(torch.allclose(saved[name], begun[name], atol=1e-9) for name in begun)
    assert all(bool(each.any()) for name, each in begun.items() if "lora_B" in name)
    record = own.read(PretrainRecord)
    assert record.loss_after < record.loss_before
    assert record.steps == 6


def test_the_head_starts_at_what_the_texts_have_left(models, tmp_path, monkeypatch):
    """A linear probe of the base alone reads vectors that the adapter no longer gives."""
    monkeypatch.setattr(TextClassification, "head_start", lambda *_: 1.0)
    write(tmp_path)
    asked = fields(models, "mlm", train__learning_rate=1e-4, pretrain__learning_rate=0.02)
    write_recipe(tmp_path / "tiny.yaml", asked)
    assert command("train", "tiny.yaml", folder=tmp_path).code == 0
    monkeypatch.setattr("hfadapt.train.cells.Training._head_again", lambda *_: None)
    assert command("train", "tiny.yaml", "--runs", "plain", folder=tmp_path).code == 0
    again, of_base = ((cell(tmp_path, runs=runs).read(TrainRecord)) for runs in ("runs", "plain"))
    assert again.head_start == of_base.head_start == "linear probe"
    assert again.first_loss < 0.9 * of_base.first_loss


def test_a_whole_run_with_the_comparison(models, tmp_path):
    write(tmp_path)
    found = fields(models, "mlm", evaluate__without_pretrain=True)
    found |= {"pretrain": {**found["pretrain"], "general": ["one.jsonl"], "general_share": 0.2}}
    done = command("run", write_recipe(tmp_path / "tiny.yaml", found), folder=tmp_path)
    assert done.code == 0, done.err
    own, card = cell(tmp_path), (cell(tmp_path).folder / "README.md").read_text()
    assert "## Adaptation to texts\n\nBefore its task the adapter learned hidden words (`mlm`) from 63 texts" in card
    assert "## With and without adaptation to texts" in card
    assert "lets them be met: 6 steps" in card
    assert "100 steps are made" not in card
    assert "a section is missing" not in command("card", "check", own.folder).err
    assert own.read(WithoutPretrainRecord).steps == own.train.steps
    assert not (own.folder / "without-pretrain").exists()
    assert "Adaptation to texts" in (own.folder.parents[1] / "report.md").read_text()
    assert own.data.unlabelled.general == round(70 * 0.2 / 0.8)
    phases = {phase.phase for phase in own.plan.cells[0].memory}
    assert phases == {"load", "train", "evaluate", "save", "pretrain"}
    assert own.read(PretrainRecord).memory["pretrain"].measured_peak_bytes > 0
    assert "kept" in command("run", "tiny.yaml", folder=tmp_path).err
    own.begun("pretrain").write_bytes(b"cut")
    again = command("run", "tiny.yaml", folder=tmp_path)
    assert again.code == 0, again.err
    assert "adaptation to texts are not as they were saved" in again.err


# --- what is planned and refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "task", "chosen", "said"),
    [
        ("mlm", "text-classification", "mlm", "saved with the layer that says hidden words"),
        ("encoder", "text-classification", "tsdae", "not mlm: it was saved as BertModel"),
        ("lm", "causal-lm", "clm", "the base writes text"),
    ],
)
def test_the_plan_says_by_what_and_why(models, model, task, chosen, said):
    asked = recipe_fields(models / model, task, pretrain=True)
    plan = make_plan(Recipe.model_validate(asked))
    (planned,) = plan.cells
    decision = planned.decision("pretrain.objective")
    assert decision.value == chosen
    rejected = [f"not {each.value}: {each.reason}" for each in decision.rejected]
    assert said in " ".join((decision.reason, *rejected))
    assert planned.pretrain_seconds > 0
    rate, asked_of = planned.value("pretrain.learning_rate"), planned.value("train.learning_rate")
    assert rate == (asked_of if chosen == "clm" else 2e-4) <= asked_of
    assert next(each for each in planned.memory if each.phase == "pretrain").total_bytes > 0
    assert any("pretrain.general" in warning for warning in planned.warnings) == (chosen == "clm")


def test_an_objective_that_the_base_cannot_is_refused(models):
    asked = recipe_fields(models / "encoder", pretrain={"objective": "mlm"})
    with pytest.raises(RequestError) as caught:
        make_plan(Recipe.model_validate(asked))
    assert "without the layer that says hidden words" in str(caught.value)
    assert "pretrain.objective: tsdae" in str(caught.value)


def test_a_task_without_texts_is_refused(hearing):
    """Its encoder has a vocabulary, of what it writes down."""
    asked = recipe_fields(hearing / "wave", "audio-classification", pretrain={"sources": ["texts.txt"]})
    with pytest.raises(RequestError, match="its task reads no text"):
        make_plan(Recipe.model_validate(asked))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adapter": {"method": "pissa"}}, "pissa cannot go on"),
        ({"pretrain": ["nowhere.jsonl"]}, "there is no such file"),
        ({"pretrain": {"sources": [{"source": "texts.jsonl", "column": "txt"}]}}, "no column for text"),
        ({"pretrain": {"objective": "supervised"}}, "mlm"),
        ({"train": {"objective": "mlm"}}, "supervised"),
        ({"pretrain": False, "evaluate": {"without_pretrain": True}}, "nothing to compare"),
        ({"pretrain": 3}, "true, false, sources, or settings"),
    ],
)
def test_what_cannot_be_is_said_by_the_recipe(models, tmp_path, changes, said):
    write(tmp_path)
    asked = recipe_fields(models / "encoder", pretrain=True) | changes
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path / "tiny.yaml", asked))
    assert said in str(caught.value)


def test_short_ways_to_ask(models, tmp_path):
    write(tmp_path)
    for asked in ("texts.jsonl", ["texts.jsonl"], {"sources": "texts.jsonl"}, {"sources": [{"source": "texts.jsonl"}]}):
        recipe = load_recipe(write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder", pretrain=asked)))
        assert [each.source for each in recipe.pretrain_of("one").sources] == ["texts.jsonl"]
    assert json.loads(recipe.model_dump_json())["pretrain"]["sources"][0]["source"] == "texts.jsonl"
    assert make_tokenizer(mask=True).mask_token
