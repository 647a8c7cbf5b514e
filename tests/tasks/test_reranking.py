"""Reranking: the documents of a query, losses by hand, and a whole run whose export sentence-transformers opens."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import command, questions, recipe_fields, write_recipe, write_rows

from hfadapt.core.errors import RequestError
from hfadapt.modalities.text import KIND as TEXT
from hfadapt.run_folder import Cell
from hfadapt.tasks import unique_parts
from hfadapt.tasks.reranking.task import CANDIDATES, KIND, _documents


def test_documents_are_the_rows_own_then_given_then_drawn():
    rows = [{**row, "negatives": ["a dull stone", "A cold river"]} for row in questions(40)]
    rows[1] = {**rows[1], "anchor": rows[0]["anchor"]}
    found = list(_documents(rows))
    assert {len(own) for own in found} == {CANDIDATES}
    assert [own[:3] for own in found] == [[row["positive"], *row["negatives"]] for row in rows]
    assert rows[1]["positive"] not in found[0]
    assert rows[0]["positive"] not in found[1]
    shuffled = random.Random(1).sample(list(enumerate(rows)), len(rows))
    again = dict(zip((number for number, _ in shuffled), _documents([row for _, row in shuffled]), strict=True))
    assert [again[number] for number in range(len(rows))] == found
    asked_otherwise = list(_documents([{**row, "anchor": row["anchor"].upper()} for row in rows]))
    assert asked_otherwise == found


def test_the_loss_is_the_cross_entropy_of_the_positive(models):
    tokenizer = TEXT.load_processor(str(models / "encoder"), None)
    examples = KIND.encode(questions(5), tokenizer, max_length=64)
    parts, places = unique_parts(examples)
    outputs = torch.randn(len(parts), 1, generator=torch.Generator().manual_seed(0))
    expected = [float(torch.nn.functional.cross_entropy(outputs[own, 0], torch.tensor(0))) for own in places]
    assert KIND.joint_losses(outputs, examples, places).tolist() == pytest.approx(expected, rel=1e-5)
    batch = KIND.collate(examples[:2], 0)
    assert batch["labels"].tolist() == [1.0, *[0.0] * 4] * 2


def test_a_score_that_is_shared_is_no_hit(models):
    tokenizer = TEXT.load_processor(str(models / "encoder"), None)
    examples = KIND.encode(questions(5), tokenizer, max_length=64)

    class Same:
        def __call__(self, input_ids, **others):
            return type("Output", (), {"logits": torch.ones(len(input_ids), 1)})

    scores = KIND.score(Same(), examples, lambda parts: [(range(len(parts)), KIND.collate(parts, 0))])
    assert [ranks.tolist() for ranks in scores.predictions] == [[5]] * 5


@pytest.fixture(scope="module")
def cell(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerank")
    write_rows(folder / "one.jsonl", questions(140))
    fields = recipe_fields(models / "encoder", "reranking", dtype="float32")
    fields["train"] |= {"max_steps": 12, "learning_rate": 0.01}
    fields["evaluate"] = {"resamples": 200, "security": True, "drift": True,
                          "drift_limits": {"kl_nats": 1e3, "points": 1e3}}  # fmt: skip
    write_recipe(folder / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.out + done.err
    return Cell(folder / "runs/tiny/one/this-machine")


def test_a_run_is_compared_with_a_probe(cell):
    metrics = {metric.name: metric for metric in cell.evaluation.metrics}
    assert list(metrics) == list(KIND.metrics)
    assert cell.evaluation.baseline == "linear probe"
    assert cell.train.final_loss < cell.train.first_loss
    assert f"each among {CANDIDATES} documents" in cell.evaluation.setting
    assert (cell.folder / "README.md").is_file()


def test_answers_are_scores_of_documents_for_the_first_text(cell, tmp_path):
    from hfadapt import load_adapted

    adapted = load_adapted(cell.folder)
    query, one, other = adapted.predict(["a lovely bright film", "bright film", "dull stone"])
    assert query.number is None
    assert str(query) == "query: a lovely bright film"
    assert one.number != other.number
    with pytest.raises(RequestError, match="a query and a document"):
        adapted.predict("alone")
    rows = [{"query": "a lovely bright film", "document": text} for text in ("bright film", "dull stone")]
    assert [answer.number for answer in adapted.predict(rows)] == [one.number, other.number]
    with pytest.raises(RequestError, match="row 1 has nothing beside its query"):
        adapted.predict([rows[0], {"query": "a lovely bright film"}])
    library = pytest.importorskip("sentence_transformers", reason="extra dev")
    done = command("export", cell.folder, "--format", "merged", "--variant", "merged-float32", "--to",
                   tmp_path / "out", folder=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    opened = library.CrossEncoder(str(tmp_path / "out"), device="cpu", activation_fn=torch.nn.Identity())
    pairs = [("a lovely bright film", "bright film"), ("a lovely bright film", "dull stone")]
    assert opened.predict(pairs).tolist() == pytest.approx([one.number, other.number], abs=1e-4)
