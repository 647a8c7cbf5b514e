"""Distillation: a student learns what a teacher says of the rows, from a run or a whole model, of classes and words."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cells import trained
from tiny import LABELS, command, labelled, pairs, questions, recipe_fields, tagged, write_recipe, write_rows

from hfadapt import Run
from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.objectives._teacher import Teacher
from hfadapt.objectives.distill import KIND, _divergence, _likeliest
from hfadapt.run_folder import Cell

SAME = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(scope="module")
def teacher(models, tmp_path_factory) -> Cell:
    train = {"batch_rows": 8, "max_steps": 80, "learning_rate": 3e-3}
    cell = trained(
        tmp_path_factory.mktemp("teacher"), models / "encoder", "text-classification", labelled(160), train=train
    )
    assert cell.evaluation.metrics[0].adapter > 0.8
    return cell


def distilled(folder, model, rows, teacher, task="text-classification", **fields):
    """The cell of a recipe that learns from a teacher."""
    write_rows(folder / "one.jsonl", rows)
    options = {"teacher": str(teacher), **fields.pop("options", {})}
    train = {"batch_rows": 8, "max_steps": 60, "learning_rate": 3e-3, **fields.pop("train", {})}
    fields = recipe_fields(model, task, train={**train, "objective": "distill", "objective_options": options}, **fields)
    write_recipe(folder / "tiny.yaml", fields)
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    assert not (folder / "runs/tiny/one/this-machine/known").exists()
    return Run(folder / "runs/tiny").cell("one", "this-machine")


def answers(cell: Cell, rows) -> np.ndarray:
    """The logits of a cell's adapter for its test rows."""
    from hfadapt.evaluate.context import open_context

    context = open_context(cell, torch.device("cpu"), None, baseline=False)
    found = context.score(context.encode(rows)).probabilities
    assert found is not None
    return found


def test_a_student_follows_its_teacher_where_labels_are_wrong(models, tmp_path, teacher) -> None:
    rows = list(teacher.read_split("test"))
    wanted = answers(teacher, rows).argmax(-1)
    turned = [{**row, "label": LABELS[1 - LABELS.index(row["label"])]} for row in labelled(160)]
    same = {}
    for weight in (0.0, 1.0):
        place = tmp_path / str(weight)
        place.mkdir()
        student = distilled(place, models / "encoder", turned, teacher.folder, options={"weight": weight})
        same[weight] = float((answers(student, rows).argmax(-1) == wanted).mean())
    assert same[1.0] > 0.9
    assert same[0.0] < 0.3


def test_without_weight_it_is_the_task_alone(models, tmp_path, teacher) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    student = distilled(tmp_path / "a", models / "encoder", labelled(160), teacher.folder, options={"weight": 0.0})
    train = {"batch_rows": 8, "max_steps": 60, "learning_rate": 3e-3}
    write_rows(tmp_path / "b/one.jsonl", labelled(160))
    write_recipe(tmp_path / "b/tiny.yaml", recipe_fields(models / "encoder", train=train))
    assert command("train", "tiny.yaml", folder=tmp_path / "b").code == 0
    plain = Run(tmp_path / "b/runs/tiny").cell("one", "this-machine")
    assert student.train.final_loss == pytest.approx(plain.train.final_loss, rel=1e-4)


def test_students_that_are_trained_together_are_what_they_would_be_alone(models, tmp_path, teacher) -> None:
    domains = {"one": {"source": "one.jsonl"}, "two": {"source": "two.jsonl"}}
    for together in (True, False):
        place = tmp_path / str(together)
        place.mkdir()
        write_rows(place / "two.jsonl", labelled(120, seed=4))
        train = {"max_steps": 6, "together": together, "fast": {"bfloat16": False}}
        about = {"domains": domains, "train": train, "data": {"dedupe": {"across_domains": False}}, "dtype": "float32"}
        student = distilled(place, models / "encoder", labelled(160), teacher.folder, **about)
        assert bool(student.train.together) == together
    for domain in domains:
        both, alone = (
            Run(tmp_path / each / "runs/tiny").cell(domain, "this-machine").train for each in ("True", "False")
        )
        assert both.trainable_parameters == alone.trainable_parameters
        assert both.final_loss == pytest.approx(alone.final_loss, rel=1e-4)


def test_the_order_of_a_teachers_labels_is_its_own(models, tmp_path, teacher) -> None:
    domains = {"one": {"source": "one.jsonl", "labels": list(reversed(LABELS))}}
    student = distilled(
        tmp_path, models / "encoder", labelled(160), teacher.folder, domains=domains, options={"weight": 1.0}
    )
    assert student.data.labels == tuple(reversed(teacher.data.labels))
    rows = list(teacher.read_split("test"))
    same = (answers(student, rows)[:, ::-1].argmax(-1) == answers(teacher, rows).argmax(-1)).mean()
    assert same > 0.8


def test_words_and_tokens_are_learned_from_a_teacher(models, tmp_path) -> None:
    for task, model, rows in (("causal-lm", "lm", pairs(120)), ("token-classification", "encoder", tagged(120))):
        place = tmp_path / task
        (place / "student").mkdir(parents=True)
        teacher = trained(place, models / model, task, rows, evaluate={"drift": False, "resamples": 200})
        student = distilled(
            *(place / "student", models / model, rows, teacher.folder, task),
            options={"weight": 1.0, "top": 8},
        )
        # A divergence or distance, which is small where the student does as its teacher does.
        assert student.train.final_loss < 0.5 * student.train.first_loss


def test_tokens_are_those_of_the_same_name() -> None:
    """Vocabularies of one family may have other ids, and models more outputs than there are tokens."""
    words = {"<s>": 0, "a": 1, "b": 2, "c": 3}

    def side(vocabulary, size):
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=size))
        tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary)
        return SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(config=config))

    def asked(student, size):
        beginning = SimpleNamespace(task=registry.task("causal-lm"), base=side(student, size))
        return teacher.tokens(beginning)

    teacher = Teacher(SimpleNamespace(eval=lambda: None), side(words, 8), 16, None)
    assert asked(words, 8) is None
    assert asked(words, 4) == [0, 1, 2, 3]
    assert asked({"c": 0, "<s>": 1}, 2) == [3, 0]
    with pytest.raises(RequestError, match=r"1 of 2 tokens that the teacher does not have"):
        asked({"<s>": 0, "d": 1}, 2)


@pytest.mark.parametrize("loss", ["auto", "kl"])
def test_several_classes_of_a_row_are_learned_from_a_teacher(models, tmp_path, loss) -> None:
    task = "multi-label-classification"
    rows = [{**row, "label": [row["label"]] * (number % 4 > 0)} for number, row in enumerate(labelled(160))]
    (tmp_path / "student").mkdir()
    teacher = trained(tmp_path, models / "encoder", task, rows, evaluate={"drift": False, "resamples": 200})
    student = distilled(
        *(tmp_path / "student", models / "encoder", rows, teacher.folder, task), options={"weight": 1.0, "loss": loss}
    )
    assert student.train.final_loss < 0.5 * student.train.first_loss


@pytest.mark.parametrize("loss", ["auto", "kl"])
@pytest.mark.parametrize("task", ["embedding", "reranking"])
def test_vectors_and_rankings_are_learned_from_a_teacher(models, tmp_path, task, loss) -> None:
    (tmp_path / "student").mkdir()
    rows = questions(120)
    teacher = trained(tmp_path, models / "encoder", task, rows, evaluate={"drift": False, "resamples": 200})
    student = distilled(
        *(tmp_path / "student", models / "encoder", rows, teacher.folder, task), options={"weight": 1.0, "loss": loss}
    )
    assert student.train.final_loss < 0.5 * student.train.first_loss


def test_how_far_vectors_and_rankings_are_from_a_teachers(models) -> None:
    torch.manual_seed(0)
    places = [[0, 1], [2, 3, 4]]
    embedding, reranking = registry.task("embedding"), registry.task("reranking")
    one, other, narrow = torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 4)
    scores, shift = torch.randn(5, 1), torch.tensor([1.0, 1.0, -2.0, -2.0, -2.0])[:, None]
    for relations in (None, True):
        assert embedding.joint_distances(3 * one, one, places, relations).abs().max() < 1e-4, "length says nothing"
        assert (embedding.joint_distances(one, other, places, relations) > 0).all()
        # Only differences among the documents of a query rank them.
        assert reranking.joint_distances(scores + shift, scores, places, relations).abs().max() < 1e-5
        assert (reranking.joint_distances(scores, -scores, places, relations) > 0).all()
    by_relations = embedding.joint_distances(one, narrow, places, True)
    torch.testing.assert_close(embedding.joint_distances(one, narrow, places, None), by_relations)
    with pytest.raises(RunError, match="wider or narrower"):
        embedding.joint_distances(one, narrow, places, False)


def test_of_a_vocabulary_the_rest_is_one(models) -> None:
    torch.manual_seed(0)
    teacher, student = torch.randn(5, 40), torch.randn(5, 40)
    whole = torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    kept = _likeliest(teacher, 39)
    torch.testing.assert_close(_divergence(student, kept["tokens"].long(), kept["chances"]), whole, **SAME)
    few = _likeliest(teacher, 4)
    partial = _divergence(student, few["tokens"].long(), few["chances"])
    assert (partial >= 0).all()
    assert (partial <= whole + 1e-5).all()
    itself = _divergence(teacher, few["tokens"].long(), few["chances"])
    torch.testing.assert_close(itself, torch.zeros(5), atol=1e-5, rtol=0)


def test_at_a_high_temperature_kl_is_half_the_squared_distance(models) -> None:
    """Hinton et al. 2015, section 2.1: for centred logits T² KL tends to the squared distance over 2C."""
    task = registry.task("text-classification")
    torch.manual_seed(0)
    one, other = (torch.randn(6, 3, dtype=torch.float64) for _ in range(2))
    one, other = (x - x.mean(-1, keepdim=True) for x in (one, other))
    t = 1000.0
    torch.testing.assert_close(
        task.divergence(one / t, other / t) * t * t, (one - other).square().mean(-1) / 2, rtol=2e-2, atol=1e-3
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teacher": "nowhere"}, "there is no such teacher"),
        ({}, "teacher"),
        ({"teacher": "TEACHER", "weight": 2}, "weight"),
        ({"teacher": "TEACHER", "augment": True}, "learns from what was said"),
        ({"teacher": "OTHER"}, "its labels are"),
        ({"teacher": "TEACHER", "task": "multi-label-classification"}, "it was trained on text-classification"),
        ({"teacher": "MODEL"}, "it was saved as BertForMaskedLM"),
    ],
)
def test_what_cannot_be_learned_is_refused(models, tmp_path, teacher, options, said) -> None:
    rows = labelled(120)
    if options.get("teacher") == "OTHER":
        rows = [{**row, "label": f"is {row['label']}"} for row in rows]
    write_rows(tmp_path / "one.jsonl", rows)
    data = {"validation": 16, "test": 24} | ({"augment": {"drop": 0.1}} if options.pop("augment", False) else {})
    if options.get("teacher") in ("TEACHER", "OTHER"):
        options["teacher"] = str(teacher.folder)
    if options.get("teacher") == "MODEL":
        shutil.copytree(models / "encoder", tmp_path / "model")
        config = json.loads((tmp_path / "model/config.json").read_text())
        (tmp_path / "model/config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
        options["teacher"] = str(tmp_path / "model")
    task = options.pop("task", "text-classification")
    fields = recipe_fields(models / "encoder", task, data=data)
    fields["train"] |= {"objective": "distill", "objective_options": options}
    write_recipe(tmp_path / "tiny.yaml", fields)
    # Nothing is trained, and what the rows have no part in is said before they are read.
    for verb in ("check", "train"):
        done = command(verb, "tiny.yaml", folder=tmp_path)
        assert done.code != 0
        assert said in done.out + done.err, done.out + done.err
        assert "fault of hfadapt" not in done.err
        assert "training" not in done.err
        if said.startswith("it was"):
            assert "reading one" not in done.out + done.err


def test_the_teachers_answers_are_asked_for_once(models, tmp_path, teacher, monkeypatch) -> None:
    asked = []
    known = KIND.known
    monkeypatch.setattr(type(KIND), "known", lambda self, *given: (asked.append(len(given[1])), known(*given))[1])
    cell = distilled(tmp_path, models / "encoder", labelled(120), teacher.folder)
    # Once for training, once for validation rows, however many epochs.
    assert asked == [cell.data.splits["train"], cell.data.splits["validation"]]


def test_what_the_teacher_takes_is_planned(models, tmp_path, teacher) -> None:
    """It lies in memory beside the student while it answers, and answers every row once."""
    write_rows(tmp_path / "one.jsonl", labelled(120))
    fields = recipe_fields(models / "encoder", data={"validation": 16, "test": 24})
    run = teacher.folder.parents[1]
    fields["train"] |= {"objective": "distill", "objective_options": {"teacher": str(teacher.folder)}}
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("plan", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    assert "answers all rows once before step 1: about" in " ".join(done.out.split())
    (run / "two/this-machine").mkdir(parents=True)
    for name in ("cell.json", "lock.yaml", "train.json"):
        shutil.copy(teacher.folder / name, run / "two/this-machine" / name)
    fields["train"]["objective_options"] = {"teacher": str(run)}
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("plan", "tiny.yaml", folder=tmp_path)
    shutil.rmtree(run / "two")
    assert done.code == 2
    assert f"teacher: {run}/one/this-machine" in done.err
