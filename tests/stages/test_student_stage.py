"""A smaller model of the adapted one, from a recipe to a cell that answers, is exported and is told of in the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import (
    chats,
    command,
    labelled,
    pairs,
    preferences,
    questions,
    recipe_fields,
    tagged,
    write_recipe,
    write_rows,
)

from hfadapt import Run, load_adapted, load_recipe, run
from hfadapt.records.evidence import SecurityRecord
from hfadapt.records.student import StudentRecord
from hfadapt.run_folder import Cell
from hfadapt.stages.student import student_of
from hfadapt.student.beside import Cost

SMALL = {"layers": 1, "ffn": 0.5, "vocabulary": "data", "limit": 100, "epochs": 4.0, "learning_rate": 3e-3}


def recipe(folder, model, task, rows, security=False, **fields) -> None:
    write_rows(folder / "one.jsonl", rows)
    train = {"batch_rows": 8, "max_steps": 60, "learning_rate": 3e-3}
    found = recipe_fields(model, task, train=train, **fields)
    found["evaluate"] |= {"security": security, "drift": False, "general_text": False, "generate_rows": 0}
    if security:
        # Parts of the test rows have to have some.
        found["data"] = {**found.get("data", {}), "test": 80}
    write_recipe(folder / "tiny.yaml", found)


@pytest.fixture(scope="module")
def cell(models, tmp_path_factory) -> Cell:
    folder = tmp_path_factory.mktemp("student")
    recipe(folder, models / "encoder", "text-classification", labelled(260), security=True, student=SMALL)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    return Run(folder / "runs/tiny").cell("one", "this-machine")


def test_it_is_smaller_and_compared_on_the_same_rows(cell) -> None:
    record = cell.read(StudentRecord)
    assert record.made
    assert record.student is not None
    assert record.adapted is not None
    assert (record.student.layers, record.student.width) == (1, 64)
    assert record.student.tokens < record.adapted.tokens
    assert record.student.parameters < 0.7 * record.adapted.parameters
    assert record.rows == cell.data.splits["test"]
    adapted = {each.name: each.adapter for each in cell.evaluation.metrics}
    assert record.metrics[0].base == pytest.approx(adapted[record.metrics[0].name])
    assert record.metrics[0].adapter > 0.7
    assert record.teacher == cell.manifest.files
    for said in ("README.md", "../../report.md"):
        text = (cell.folder / said).read_text()
        assert f"{record.student.parameters:,}" in text, said


def test_the_time_of_a_cell_is_that_of_all_stages(cell) -> None:
    seconds = cell.state.seconds
    assert {"train", "evaluate", "student", "card"} <= seconds.keys()
    assert seconds["student"] > cell.read(StudentRecord).training_seconds
    assert cell.report().seconds >= sum(seconds.values())


def test_the_checks_of_the_adapter_are_made_of_the_student_too(cell) -> None:
    """Leaks, robustness and parts of the rows, side by side in the record and the card."""
    record, own = cell.read(StudentRecord), student_of(cell)
    assert own is not None
    of_both = [each.read(SecurityRecord) for each in (cell, own)]
    assert {each.part for each in record.checks} == {"membership", "robustness"}
    for check in record.checks:
        if check.part == "robustness":
            drops = [next(each.drop.value for each in one.robustness if each.name == check.name) for one in of_both]
        else:
            drops = [max(attack.auc.value for attack in one.membership.attacks) for one in of_both]
        assert [check.adapted, check.student] == drops
    assert {each.metric for each in record.slices} == {record.metric}
    adapted = {(each.by, each.name): each for each in cell.evaluation.slices}
    for each in record.slices:
        known = adapted[each.by, each.name]
        assert (each.rows, each.base) == (known.rows, pytest.approx(known.adapter))
    card = (cell.folder / "README.md").read_text()
    section = card[card.index("## Smaller form") :]
    for said in (
        "| baseline | adapted model | student | difference |",
        "`AUC` of membership inference",
        "lost under `",
        "1 of 2 layers",
        "64 of 128 units",
        "in whole numbers",
        "| part of the test rows | rows | baseline | adapted model | student | difference |",
    ):
        assert said in section
    assert "Where it loses the most" in section


def test_its_files_open_with_plain_transformers(cell) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    student = student_of(cell)
    assert student is not None
    model = AutoModelForSequenceClassification.from_pretrained(student.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(student.adapter)
    assert model.num_parameters() == cell.read(StudentRecord).student.parameters
    rows = list(student.read_split("test"))
    with torch.no_grad():
        found = [int(model(**tokenizer(row["text"], return_tensors="pt")).logits.argmax()) for row in rows]
    right = [student.data.labels[number] == row["label"] for number, row in zip(found, rows, strict=True)]
    accuracy = next(each.adapter for each in cell.read(StudentRecord).metrics if each.name == "accuracy")
    assert sum(right) / len(rows) == pytest.approx(accuracy)


def test_it_answers_and_is_done_already(cell, tmp_path) -> None:
    folder = cell.folder.parents[3]
    done = command("predict", cell.folder / "student", "a lovely bright film", folder=folder)
    assert done.code == 0, done.err
    assert "(" in done.out
    exported = command(
        "export", cell.folder / "student", "--format", "merged", "--to", tmp_path / "out", "--force", folder=folder
    )
    assert exported.code == 0, exported.out + exported.err
    before = (cell.folder / "student.json").stat().st_mtime_ns
    again = command("run", "tiny.yaml", folder=folder)
    assert again.code == 0, again.err
    assert (cell.folder / "student.json").stat().st_mtime_ns == before


def test_another_student_needs_no_other_adapter(models, tmp_path) -> None:
    fields = {"model": models / "encoder", "task": "text-classification", "rows": labelled(160)}
    recipe(tmp_path, **fields, student={**SMALL, "vocabulary": "all"})
    assert command("run", "tiny.yaml", folder=tmp_path).code == 0
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    trained = (cell.folder / "train.json").stat().st_mtime_ns
    recipe(tmp_path, **fields, student={**SMALL, "vocabulary": "all", "ffn": 1.0})
    assert command("run", "tiny.yaml", folder=tmp_path).code == 0
    assert (cell.folder / "train.json").stat().st_mtime_ns == trained
    assert cell.read(StudentRecord).student.width == 128
    assert cell.lock.student.ffn == 1.0


def test_a_language_model_has_one_too(models, tmp_path) -> None:
    student = {**SMALL, "vocabulary": "all", "on_policy": True}
    rows = [{"prompt": f"{row['anchor']} :", "completion": f" {row['positive']}"} for row in questions(160)]
    recipe(tmp_path, models / "lm", "causal-lm", rows, student=student)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    record, own = cell.read(StudentRecord), student_of(cell)
    assert record.student.layers == 1
    assert record.student.tokens == record.adapted.tokens
    learned = own.read_split("train")
    gold = {(row["prompt"], row["completion"]) for row in cell.read_split("train")}
    written = [row for row in learned if (row["prompt"], row["completion"]) not in gold]
    found = record.on_policy
    assert found.rows > 10
    assert found.kept == (found.after <= found.before)
    assert len(written) == (found.rows if found.kept else 0)
    assert {row["prompt"] for row in written} <= {prompt for prompt, _ in gold}
    assert own.lock.train.objective_options["weight"] == (1.0 if found.kept else 0.5)
    assert f"{found.rows} answers of its own" in done.err + done.out


@pytest.mark.parametrize(
    ("model", "task", "rows"),
    [
        ("lm", "causal-lm", pairs(120)),
        ("lm-untied", "causal-lm", chats(120)),
        ("encoder", "token-classification", tagged(120)),
    ],
)
def test_fewer_tokens_are_learned_from_what_is_said_of_these(models, tmp_path, model, task, rows) -> None:
    """The teacher reads the student's tokens by their names, and says of these alone what comes next: a student that
    lacks nothing else says the same before it learns."""
    recipe(tmp_path, models / model, task, rows, student={"vocabulary": "data", "weight": 1.0, "limit": 1e6})
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    record, own = cell.read(StudentRecord), student_of(cell)
    assert record.student.tokens < record.adapted.tokens
    assert own.train.first_loss == pytest.approx(0.0, abs=1e-3)


def test_tokens_that_test_rows_lack_are_said_before_training(models, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hfadapt.student.tokens._others", lambda *_: 0.02)
    recipe(tmp_path, models / "encoder", "text-classification", labelled(80), student={"vocabulary": "data"})
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code != 0
    assert "2.0% of the test rows are cut into other tokens" in done.err
    assert not (tmp_path / "runs/tiny/one/this-machine/train.json").exists()


@pytest.mark.parametrize("task", ["embedding", "reranking"])
def test_what_searches_and_ranks_has_one_too(models, tmp_path, task) -> None:
    recipe(tmp_path, models / "encoder", task, questions(200), student=SMALL)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    record, own = cell.read(StudentRecord), student_of(cell)
    assert record.student.layers == 1
    assert record.student.parameters < 0.8 * record.adapted.parameters
    assert (record.metric, record.rows) == ("ndcg_at_10", cell.data.splits["test"])
    texts = [row["anchor"] for row in own.read_split("test")][:2]
    asked = command("predict", cell.folder / "student", *texts, folder=tmp_path)
    assert asked.code == 0, asked.out + asked.err


def test_texts_that_the_adapted_model_answers_are_learned_too(models, tmp_path) -> None:
    rows, more = labelled(120), labelled(300, seed=5)
    texts = [row["text"] for row in more] + [row["text"] for row in rows]
    (tmp_path / "more.txt").write_text("\n".join(texts) + "\n")
    student = {**SMALL, "texts": "more.txt"}
    recipe(tmp_path, models / "encoder", "text-classification", rows, student=student)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    record, own = cell.read(StudentRecord), student_of(cell)
    assert record.texts == own.data.splits["train"] - cell.data.splits["train"] > 250
    assert own.data.dropped["exact-duplicate"] == cell.data.splits["train"]
    assert own.data.dropped["like-held-out-row"] >= cell.data.splits["test"]
    assert own.data.rows_in == own.data.rows_kept + sum(own.data.dropped.values())
    assert own.data.lengths["train"].rows == own.data.splits["train"]
    answered = [row for row in own.read_split("train") if row["source"].endswith("more.txt")]
    said = load_adapted(cell.folder).predict([row["text"] for row in answered])
    assert [row["label"] for row in answered] == [each.label for each in said]
    held = {row["text"] for split in ("validation", "test") for row in cell.read_split(split)}
    assert not held & {row["text"] for row in answered}
    assert f"learned {record.texts} texts without labels" in (cell.folder / "README.md").read_text()
    # Other texts make another student, of the same adapter.
    (tmp_path / "more.txt").write_text("\n".join(texts[:100]) + "\n")
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    assert cell.read(StudentRecord).texts < record.texts


def test_texts_alone_are_learned_by_their_vectors(models, tmp_path) -> None:
    rows, more = questions(120), questions(200, seed=5)
    texts = [row["anchor"] for row in more] + [row["anchor"] for row in rows]
    (tmp_path / "more.txt").write_text("\n".join(texts) + "\n")
    recipe(tmp_path, models / "encoder", "embedding", rows, student={"layers": 1, "texts": "more.txt", "limit": 100})
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    record, own = cell.read(StudentRecord), student_of(cell)
    assert record.texts == own.data.splits["train"] - cell.data.splits["train"] > 150
    added = [row for row in own.read_split("train") if row["source"].endswith("more.txt")]
    assert {row["positive"] for row in added} == {""}
    train = {row["anchor"] for row in cell.read_split("train")}
    assert not train & {row["anchor"] for row in added}
    assert own.data.dropped["exact-duplicate"] >= len(train)
    assert own.data.lengths["train"].rows == own.data.splits["train"]


def test_a_language_model_answers_texts_in_the_template(models, tmp_path) -> None:
    (tmp_path / "more.txt").write_text("\n".join(row["text"] for row in labelled(40, seed=5)) + "\n")
    student = {**SMALL, "vocabulary": "all", "texts": "more.txt"}
    template = {"prompt": "Text: {text}\nLabel:", "completion": " {label}"}
    recipe(tmp_path, models / "lm", "causal-lm", labelled(160), student=student, template=template)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    own = student_of(Run(tmp_path / "runs/tiny").cell("one", "this-machine"))
    answered = [row for row in own.read_split("train") if row["source"].endswith("more.txt")]
    assert len(answered) > 30
    for row in answered:
        assert row["prompt"].startswith("Text: ")
        assert row["prompt"].endswith("\nLabel:")
        assert row["completion"] == f" {row['label']}"


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("auto", "nothing says how small"),
        ({"layers": 2}, "as large as the adapted model"),
        ({"layers": 1, "limit": 0.0, "learning_rate": 0.9}, "loses more than the limit"),
        ({"layers": 1, "limit": 0.0, "learning_rate": 0.9, "epochs": 2.0}, "student.epochs: 4 in the place of 2"),
        ({"layer": 1}, "layers"),
    ],
)
def test_what_cannot_be_made_is_said(models, tmp_path, student, said) -> None:
    recipe(tmp_path, models / "encoder", "text-classification", labelled(160), student=student)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code != 0
    assert said in done.out + done.err, done.out + done.err
    assert "fault of hfadapt" not in done.out + done.err


def test_what_a_task_or_base_does_not_have_is_said_before_training(models, tmp_path) -> None:
    (tmp_path / "more.txt").write_text("a lovely film\n")
    for model, task, rows, student, said in (
        ("lm", "preference", preferences(60), {"layers": 1}, "answers that are compared"),
        ("encoder", "text-classification", labelled(160), {"layers": 3}, "1 to 2"),
        ("encoder", "text-classification", labelled(160), {"layers": 1, "on_policy": True}, "no answers of its own"),
        ("encoder", "token-classification", tagged(80), {"layers": 1, "texts": "more.txt"}, "make no rows to learn"),
        ("encoder", "reranking", questions(60), {"layers": 1, "texts": "more.txt"}, "make no rows to learn"),
        ("encoder", "text-classification", labelled(160), {"layers": 1, "texts": "no.txt"}, "no.txt"),
    ):
        recipe(tmp_path, models / model, task, rows, student=student)
        done = [command(verb, "tiny.yaml", folder=tmp_path) for verb in ("plan", "check", "run")]
        for each in done:
            assert each.code == 2
            assert said in each.err
        assert len({each.err for each in done}) == 1
        assert not list(tmp_path.glob("runs/tiny/one/*/train.json"))


def test_other_activations_and_rounding_are_learned(models, tmp_path) -> None:
    student = {"activation": "relu6", "int8": True, "limit": 100, "epochs": 4.0, "learning_rate": 3e-3}
    recipe(tmp_path, models / "encoder", "text-classification", labelled(200), student=student)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    record = cell.read(StudentRecord)
    assert (record.adapted.activation, record.student.activation) == ("gelu", "relu6")
    assert record.student.parameters == record.adapted.parameters
    assert record.rounding.trained == pytest.approx(record.steps / 4, abs=1)
    assert json.loads((student_of(cell).adapter / "config.json").read_text())["hidden_act"] == "relu6"
    card = (cell.folder / "README.md").read_text()
    assert "activations are" in card
    assert "it has learned how it is rounded" in card
    assert 0.5 < record.student.integer_share <= 1.0


def test_another_model_can_learn(models, tmp_path) -> None:
    student = {"base": str(models / "mlm"), "limit": 100, "epochs": 4.0, "learning_rate": 3e-3}
    recipe(tmp_path, models / "encoder", "text-classification", labelled(200), student=student)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "this-machine")
    assert cell.read(StudentRecord).base == student["base"]
    assert student_of(cell).lock.model == student["base"]
    assert cell.read(StudentRecord).metrics[0].adapter > 0.7
    recipe(
        *(tmp_path, models / "encoder", "text-classification", labelled(200)),
        student={"base": student["base"], "layers": 1},
    )
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 2
    assert "a student is another model, or cut out of the adapted one" in done.err


def test_rounding_that_costs_too_much_is_learned_where_that_helps(models, tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    fields = {"targets": ["browser-4gb"], "export": {"format": "onnx", "limits": {"points": 100, "kl_nats": 1.0}}}
    cell, found = Run(tmp_path / "tiny").cell("one", "browser-4gb"), []
    for limit, before, after in ((100, 0.1, None), (99, 2.0, 3.0), (98, 2.0, 0.001)):
        costs = iter([Cost(3.0, before), Cost(0.2, after or 0.0)])
        monkeypatch.setattr("hfadapt.student.beside.rounding_cost", lambda *_, costs=costs, **__: next(costs))
        student = {"layers": 1, "limit": limit, "epochs": 2.0, "learning_rate": 3e-3}
        recipe(tmp_path, models / "encoder", "text-classification", labelled(80), student=student, **fields)
        run(load_recipe(tmp_path / "tiny.yaml"), until="student", recipe_folder=tmp_path, folder=tmp_path / "tiny")
        assert cell.state.error is None
        record = cell.read(StudentRecord)
        found.append((record.rounding, record.weights_sha256))
    (never, unrounded), (useless, kept), (learned, rounded) = found
    assert (useless.kl_nats, useless.trained, useless.dismissed) == (2.0, 0, (0.2, 3.0))
    assert unrounded == kept != rounded
    assert never.before is useless.before is learned.dismissed is None
    assert (learned.before, learned.points, learned.kl_nats) == ((3.0, 2.0), 0.2, 0.001)
    assert learned.trained > 0


def test_one_row_of_few_is_no_reason_to_train_again(models, tmp_path, monkeypatch) -> None:
    """As a form that is exported may lose one row, and likewise a student."""
    pytest.importorskip("onnxruntime")
    fields = {"targets": ["browser-4gb"], "export": {"format": "onnx"}}
    monkeypatch.setattr("hfadapt.student.beside.rounding_cost", lambda *_, **__: Cost(1.25, 0.0, 1.25))
    student = {"layers": 1, "limit": 0.1, "epochs": 2.0, "learning_rate": 3e-3}
    recipe(tmp_path, models / "encoder", "text-classification", labelled(80), student=student, **fields)
    run(load_recipe(tmp_path / "tiny.yaml"), until="student", recipe_folder=tmp_path, folder=tmp_path / "tiny")
    record = Run(tmp_path / "tiny").cell("one", "browser-4gb").read(StudentRecord)
    assert (record.rounding.points, record.rounding.trained, record.rounding.before) == (1.25, 0, None)
    assert record.limit == pytest.approx(100 / record.rows)


def test_a_budget_decides_how_small(models, tmp_path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    size = sum(path.stat().st_size for path in Path(models / "encoder").glob("*.safetensors"))
    recipe(
        *(tmp_path, models / "encoder", "text-classification", labelled(200)),
        student={"layers": "auto", "ffn": "auto", "limit": 100, "epochs": 4.0, "learning_rate": 3e-3},
        targets=[{"browser-4gb": {"bytes": size * 85 // 100}}],
        export={"format": "onnx", "storage": "float32", "limits": {"points": 100}},
    )
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Run(tmp_path / "runs/tiny").cell("one", "browser-4gb")
    planned = cell.plan.cells[0]
    said = any("a student is cut out of it" in each for each in planned.warnings)
    assert said != any(each.fits for each in planned.exports if (each.format, each.form) == ("onnx", "float32"))
    record = cell.read(StudentRecord)
    (taken,) = [each for each in record.considered if each.taken]
    tried = [each for each in record.considered if each.tried_steps]
    assert len(tried) == 2
    assert all(each.fits for each in tried)
    assert min(tried, key=lambda each: each.tried_loss) == taken
    card = (cell.folder / "README.md").read_text()
    assert f"| {tried[0].layers} | {tried[0].ffn:.0%}".replace("%", " %") in card
    assert f"| {tried[1].layers} | {tried[1].ffn:.0%}".replace("%", " %") in card
    # Of the tried none has both more layers and more units than another.
    assert tried[0].layers > tried[1].layers
    assert tried[0].ffn < tried[1].ffn
    assert (record.student.layers, record.student.width) == (taken.layers, int(128 * taken.ffn))
    assert tried[0].tried_steps < record.steps
    device = json.loads((cell.folder / "device.json").read_text())
    assert device["bytes"] <= size * 85 // 100
    assert (done.out + done.err).count("rows go through the teacher once") == 2  # of training, and of validation
    assert not (student_of(cell).folder / "answers").exists()


def test_targets_share_what_a_student_has_learned(models, tmp_path, monkeypatch) -> None:
    """The adapter is the same, so that a second training would come to the same; another shape is another student."""
    pytest.importorskip("onnxruntime")
    fields = {"export": {"format": "onnx", "limits": {"points": 100, "kl_nats": 100}}}
    recipe(
        *(tmp_path, models / "encoder", "text-classification", labelled(80)),
        student={"layers": 1, "limit": 100, "epochs": 2.0, "learning_rate": 3e-3},
        targets=["this-machine", "browser-4gb"],
        **fields,
    )
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    one, other = (Run(tmp_path / "runs/tiny").cell("one", name) for name in ("this-machine", "browser-4gb"))
    students = [student_of(one), student_of(other)]
    assert "the student of this-machine is taken" in done.err
    assert [each.train.same_as for each in students] == ["", "this-machine"]
    assert [each.train.target for each in students] == ["this-machine", "browser-4gb"]
    assert students[0].manifest.files == students[1].manifest.files
    assert [each.evaluation.target for each in students] == ["this-machine", "browser-4gb"]
    assert students[0].evaluation.metrics == students[1].evaluation.metrics
    assert one.read(StudentRecord).metrics == other.read(StudentRecord).metrics
    assert other.read(StudentRecord).rounding.trained == 0
    asked = command("predict", other.folder / "student", "a lovely bright film", folder=tmp_path)
    assert asked.code == 0, asked.err
