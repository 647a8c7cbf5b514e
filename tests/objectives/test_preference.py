"""Preferences: the loss is DPO's, measured from the model as it stands before step 1, on the path it is trained on."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from tiny import (
    command,
    make_lock,
    preferences,
    preferred_chats,
    recipe_fields,
    stop_after,
    write_recipe,
    write_rows,
)

from hfadapt import Run
from hfadapt.core import registry
from hfadapt.objectives import KNOWN
from hfadapt.objectives.preference import KIND
from hfadapt.tasks.preference.task import REFERENCE
from hfadapt.train import cells
from hfadapt.train.batches import epoch_batches

TASK = registry.task("preference")
TRAIN = {
    "batch_rows": 8,
    "micro_batch_rows": 4,
    "max_steps": 6,
    "learning_rate": 5e-3,
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "evaluate_every_steps": 3,
    "checkpoint_every_steps": 3,
    "fast": {"bfloat16": False},
}


def prepared(folder, model, rows=None, **fields):
    """A recipe of tiny preferences in float32."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "one.jsonl", rows if rows is not None else preferences(80))
    fields = {"dtype": "float32", **fields, "train": {**TRAIN, **fields.pop("train", {})}}
    write_recipe(folder / "tiny.yaml", recipe_fields(model, "preference", **fields))
    return folder


def lines(cell):
    found = [json.loads(line) for line in (cell / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def trained(folder, *words, runs="runs"):
    """The lines of metrics.jsonl of the trained cell."""
    done = command("train", "tiny.yaml", "--runs", runs, *words, folder=folder)
    assert done.code == 0, done.out + done.err
    assert not (folder / runs / "tiny/one/this-machine/known").exists()
    return lines(folder / runs / "tiny/one/this-machine")


def losses(found, name="loss"):
    return [line[name] for line in found if name in line]


def test_before_anything_is_learned_the_loss_is_log_2_on_every_path(models, tmp_path):
    """Padded by the libraries, packed, and with layers below the adapter that run once."""
    paths = {
        "plain": ["train.fast=false"],
        "packed": [],
        "frozen": ["adapter.layers=1", "train.fast.frozen_cache=true", "train.epochs=2"],
        "dropped": ["adapter.dropout=0.3"],
    }
    prepared(tmp_path, models / "lm")
    found = {name: trained(tmp_path, *words, runs=name) for name, words in paths.items()}
    for each in found.values():
        assert losses(each)[0] == pytest.approx(math.log(2), abs=1e-5)
        assert losses(each)[-1] < 0.9 * math.log(2)
    assert losses(found["packed"]) == pytest.approx(losses(found["plain"]), rel=1e-4)
    assert losses(found["packed"], "validation_loss") == pytest.approx(losses(found["plain"], "validation_loss"), 1e-4)
    uncached = trained(tmp_path, "adapter.layers=1", "train.epochs=2", "train.fast.frozen_cache=false", runs="uncached")
    assert losses(found["frozen"]) == pytest.approx(losses(uncached), rel=1e-4)
    record = Run(tmp_path / "frozen/tiny").cell("one", "this-machine").train
    assert record.frozen_layers == 1


def test_a_reference_of_another_model_is_noticed(models, tmp_path, monkeypatch):
    known = KIND.known

    def other(self, beginning, rows, examples):
        return [{REFERENCE: each[REFERENCE] + [0.3, 0.0]} for each in known(beginning, rows, examples)]

    monkeypatch.setattr(type(KIND), "known", other)
    prepared(tmp_path, models / "lm")
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == 1
    assert "the loss before step 1 is not what it is before anything was learned" in done.err
    assert "allowed: 0.6931" in done.err


def test_after_texts_were_learned_the_reference_is_the_adapter_as_it_is_then(models, tmp_path):
    prepared(tmp_path, models / "lm", pretrain={"max_steps": 8, "learning_rate": 5e-3})
    done = command("evaluate", "tiny.yaml", "evaluate.security=false", "evaluate.drift=false", folder=tmp_path)
    assert done.code == 0, done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    assert losses(lines(cell.folder))[0] == pytest.approx(math.log(2), abs=1e-5)
    metrics = {metric.name: metric for metric in cell.evaluation.metrics}
    # The base is not the reference here: it has a margin of its own.
    assert abs(metrics["chosen_log_ratio"].base) > 0.01
    assert metrics["reward_accuracy"].adapter > 0.8
    # Without the second phase the adapter is its own reference.
    assert command("train", "tiny.yaml", "train.learning_rate=1e-9", "--runs", "still", folder=tmp_path).code == 0
    done = command("evaluate", "tiny.yaml", "train.learning_rate=1e-9", "evaluate.security=false",
                   "evaluate.drift=false", "--runs", "still", folder=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    still = Run(tmp_path / "still/tiny").cell("one", "this-machine").evaluation
    assert next(m.adapter for m in still.metrics if m.name == "reward_margin") == pytest.approx(0.0, abs=1e-3)


def test_a_resumed_training_equals_an_uninterrupted_one_and_keeps_its_reference(models, tmp_path, monkeypatch):
    prepared(tmp_path, models / "lm", adapter={"dropout": 0.2})
    whole = trained(tmp_path, runs="whole")
    made = cells.Loop.of
    for runs in ("parts", "lost"):
        with monkeypatch.context() as patch:
            stopping = lambda *given, **more: made(*given, **{**more, "stop": stop_after(4)})  # noqa: E731
            patch.setattr(cells.Loop, "of", stopping)
            assert command("train", "tiny.yaml", "--runs", runs, folder=tmp_path).code == 130
        assert (tmp_path / runs / "tiny/one/this-machine/known/train.safetensors").exists()
    assert trained(tmp_path, runs="parts") == whole
    (tmp_path / "lost/tiny/one/this-machine/known/train.safetensors").unlink()
    done = command("train", "tiny.yaml", "--runs", "lost", folder=tmp_path)
    assert done.code == 1
    assert "what the model said of its rows before step 1 is gone" in done.err


def test_adapters_that_are_trained_together_are_what_they_would_be_alone(models, tmp_path):
    write_rows(tmp_path / "two.jsonl", preferences(70, seed=1))
    domains = {name: {"source": f"{name}.jsonl"} for name in ("one", "two")}
    prepared(tmp_path, models / "lm", domains=domains, train={"together": True})
    trained(tmp_path)
    for name in domains:
        alone = command("train", "tiny.yaml", "train.together=false", "--runs", "alone", "-d", name, folder=tmp_path)
        assert alone.code == 0, alone.err
        mine, theirs = (lines(tmp_path / runs / f"tiny/{name}/this-machine") for runs in ("alone", "runs"))
        for key in ("loss", "validation_loss"):
            assert losses(theirs, key) == pytest.approx(losses(mine, key), rel=1e-4)
    assert Run(tmp_path / "runs/tiny").cell("one", "this-machine").train.together == ("one", "two")


class Likely:
    """A task that has these log-probabilities and tokens."""

    def __init__(self, logp, tokens):
        self.found = torch.tensor(logp), torch.tensor(tokens)

    def log_probabilities(self, model, batch):
        return self.found


@pytest.mark.parametrize(("beta", "nll"), [(0.1, 0.0), (0.5, 0.0), (0.1, 0.7)])
def test_the_loss_is_that_of_the_paper(beta, nll):
    logp, reference, tokens = [-10.0, -12.0, -30.0, -8.0], [-11.0, -10.0, -31.0, -9.5], [5.0, 4.0, 10.0, 2.0]
    batch = {KNOWN + REFERENCE: torch.tensor(reference)}
    found, rows = KIND.losses(Likely(logp, tokens), None, batch, KIND.Options(beta=beta, nll=nll))
    assert rows.tolist() == [0, 1]
    for row, loss in enumerate(found.tolist()):
        margin = (logp[2 * row] - reference[2 * row]) - (logp[2 * row + 1] - reference[2 * row + 1])
        wanted = math.log1p(math.exp(-beta * margin)) - nll * logp[2 * row] / tokens[2 * row]
        assert loss == pytest.approx(wanted, rel=1e-6)
    without, _ = KIND.losses(Likely(logp, tokens), None, {}, KIND.Options())
    assert without.tolist() == pytest.approx([2.5, 3.5])


@pytest.mark.parametrize("form", ["texts", "chats"])
def test_losses_are_those_of_trl_step_by_step(models, tmp_path, form):
    """The same rows in the same order from the same adapter, by `DPOTrainer` with its own reference."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer

    from hfadapt.models.attach import attach_adapter
    from hfadapt.models.load import load_base

    rows = preferences(80) if form == "texts" else preferred_chats(80)
    # TRL also learns the line break that this template puts after an answer, which hfadapt leaves to the next turn.
    template = shutil.copytree(models / "lm", tmp_path / "lm") / "chat_template.jinja"
    template.write_text(template.read_text().replace("\n{% endfor %}", "{% endfor %}"))
    prepared(tmp_path, tmp_path / "lm", rows, train={"fast": False})
    mine = losses(trained(tmp_path))[:5]
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    lock, train = cell.lock, list(cell.read_split("train"))
    base = load_base(lock, (), torch.device("cpu"))
    examples = TASK.encode(train, base.tokenizer, max_length=lock.data.max_length)
    order = epoch_batches([example.size for example in examples], 8, lock.train.seed, 0)[:5]
    told = [train[row] for batch in order for row in batch]
    if form == "texts":
        told = [{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in told]
    else:
        plain = [{"prompt": row["messages"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in told]
        told = [{name: [{key: turn[key] for key in ("role", "content")} for turn in turns]
                 for name, turns in row.items()} for row in plain]  # fmt: skip

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *given):
            return SequentialSampler(self.train_dataset)

    settings = DPOConfig(
        output_dir=str(tmp_path / "trl"),
        per_device_train_batch_size=8,
        max_steps=5,
        learning_rate=lock.train.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=lock.train.max_grad_norm,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        gradient_checkpointing=False,
        disable_dropout=True,
        beta=0.1,
        max_length=None,
        save_strategy="no",
        bf16=False,
    )
    trainer = InOrder(
        attach_adapter(base, lock), args=settings, train_dataset=Dataset.from_list(told),
        processing_class=base.tokenizer,
    )  # fmt: skip
    first = trainer.get_train_dataset()[0] if hasattr(trainer, "get_train_dataset") else trainer.train_dataset[0]
    own = examples[order[0][0]].parts
    assert [*first["prompt_ids"], *first["chosen_ids"]] == list(own[0].inputs["input_ids"])
    trainer.train()
    theirs = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    assert theirs[0] == pytest.approx(math.log(2), abs=1e-4)
    assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train__objective": "supervised"}, "the objective supervised does not learn from rows of preference"),
        ({"train__objective": "distill"}, "the objective distill does not learn from rows of preference"),
        ({"task": "causal-lm", "train__objective": "preference"}, "or use task: preference"),
        ({"train__objective_options": {"beta": 0}}, "greater than 0"),
        ({"train__objective_options": {"gamma": 1.0}}, "no such option"),
        ({"data__augment": {"typos": 0.1}}, "learns from what was said of the rows as they are"),
    ],
)
def test_what_cannot_be_is_refused(models, tmp_path, changes, said):
    write_rows(tmp_path / "one.jsonl", preferences(80))
    fields = recipe_fields(models / "lm", "preference")
    for name, value in changes.items():
        section, _, key = name.partition("__")
        fields[section] = {**fields[section], key: value} if key else value
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("plan", "tiny.yaml", folder=tmp_path)
    assert done.code == 2
    assert said in done.err


def test_the_objective_of_a_task_is_the_default_in_python_too(models):
    from hfadapt.recipe.schema import Recipe

    given = {"name": "x", "model": "y", "task": "preference", "domains": {"one": {"source": "one.jsonl"}}}
    assert Recipe.model_validate(given).train.objective == "preference"
    assert Recipe.model_validate({**given, "train": {"epochs": 2}}).train.objective == "preference"
    assert Recipe.model_validate({**given, "task": "causal-lm"}).train.objective == "supervised"
    assert make_lock(models / "lm", "preference").train.objective == "preference"


def test_pairs_are_scored_against_the_model_before_training():
    from hfadapt.evaluate.metrics.rows import find, usable
    from hfadapt.tasks import Scores

    sides = np.array(
        [
            [[-10.0, -12.0, 5], [-20.0, -20.0, 10]],  # the better answer has gained 2
            [[-10.0, -9.0, 5], [-5.0, -9.0, 10]],  # it has lost 1, and the worse one has gained 4
            [[-7.0, -7.0, 5], [-8.0, -8.0, 10]],  # nothing was learned
        ]
    )
    scores = Scores(None, None, None, np.ones(3), np.ones(3), sides=sides)

    def value(name):
        metric = find(name)
        return float(metric.value(metric.statistics(scores).sum(0)))

    assert value("reward_accuracy") == pytest.approx(1.5 / 3)
    assert value("reward_margin") == pytest.approx((2 - 5 + 0) / 3)
    assert value("ranking_accuracy") == pytest.approx(2 / 3)
    assert value("chosen_log_ratio") == pytest.approx((2 - 1 + 0) / 15)
    assert value("rejected_log_ratio") == pytest.approx((0 + 4 + 0) / 30)
    assert TASK.worst(scores, 5) == [1]
    alone = Scores(None, None, None, np.ones(3), np.ones(3), sides=np.where([True, False, True], sides, np.nan))
    assert usable(find("ranking_accuracy"), alone)
    assert not usable(find("reward_accuracy"), alone)
    assert not usable(find("ranking_accuracy"), Scores(None, None, None, np.ones(3), np.ones(3)))
    assert TASK.warnings({"chosen_log_ratio": -0.5}) == []
    assert "less likely by 1.50 nats per token" in TASK.warnings({"chosen_log_ratio": -1.5})[0]


@pytest.mark.parametrize("make", [preferences, preferred_chats])
def test_a_whole_run_is_evaluated_told_and_asked(models, tmp_path, make):
    prepared(tmp_path, models / "lm", make(120), train={"max_steps": 30}, evaluate={"resamples": 200})
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    metrics = {metric.name: metric for metric in cell.evaluation.metrics}
    assert metrics["reward_accuracy"].base == 0.5
    assert metrics["reward_accuracy"].low > 0
    assert metrics["reward_margin"].base == metrics["chosen_log_ratio"].base == 0
    assert cell.evaluation.general_text is not None
    assert "24 pairs" in cell.evaluation.setting
    card = (cell.folder / "README.md").read_text()
    assert "| `reward_accuracy` | 0.500" in card
    assert "24 pairs, better answers of" in card
    answer = command("predict", str(cell.folder), "room film phone :", folder=tmp_path)
    assert answer.code == 0, answer.err
    done = command("export", str(cell.folder), "--format", "merged", "--to", "merged", folder=tmp_path)
    assert done.code == 0, done.err


def test_an_adapter_on_the_pairs_of_another_domain_is_measured_from_the_same_model(models, tmp_path):
    write_rows(tmp_path / "two.jsonl", preferences(80, seed=1))
    domains = {name: {"source": f"{name}.jsonl"} for name in ("one", "two")}
    evaluate = {"resamples": 200, "security": False, "drift": False}
    prepared(tmp_path, models / "lm", domains=domains, evaluate=evaluate)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    run = Run(tmp_path / "runs/tiny")
    assert run.transfer is not None
    (target,) = run.transfer.targets
    own = {name: run.cell(name, "this-machine").evaluation.metrics[0].adapter for name in domains}
    for cell in target.cells:
        assert cell.base == 0.5
        if cell.adapter == cell.data:
            assert cell.value == pytest.approx(own[cell.data])
