"""Sentence embeddings: losses and vectors as sentence-transformers has them, negatives of the whole batch, ranks as
worked out by hand, and a whole run whose export sentence-transformers opens."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import command, likenesses, make_lock, make_loop, questions, recipe_fields, train, write_recipe, write_rows

from hfadapt.core.errors import RequestError, RunError
from hfadapt.modalities.text import KIND as TEXT
from hfadapt.run_folder import Cell
from hfadapt.schemas.pairs import KIND as KIND_OF_PAIRS
from hfadapt.tasks import unique_parts
from hfadapt.tasks.embedding.search import METRICS, Search, ndcg, order_losses, rank_scores
from hfadapt.tasks.embedding.sentence import MODES, Sentence
from hfadapt.tasks.embedding.task import KIND

LAYERS = ["query", "key", "value", "dense"]
BODY = {"adapter__modules": [*LAYERS[:3], "attention.output.dense", "intermediate.dense", "output.dense"]}


@pytest.fixture(scope="module")
def tokenizer(models):
    return TEXT.load_processor(str(models / "encoder"), None)


def encoded(rows, tokenizer):
    return KIND.encode(rows, tokenizer, max_length=64)


def vectors_of(examples, seed=0):
    """A random vector for each sequence of the examples, and the places of their parts."""
    parts, places = unique_parts(examples)
    return torch.randn(len(parts), 16, generator=torch.Generator().manual_seed(seed)), places


# --- the loss --------------------------------------------------------------------------------------------------------


class Given(torch.nn.Module):
    """Stands for a SentenceTransformer whose vectors are given."""

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}


def of_sentence_transformers(loss, *columns, labels=None):
    return loss([{"vectors": column} for column in columns], labels)


@pytest.mark.parametrize("negatives", [0, 2])
def test_the_loss_is_that_of_sentence_transformers(tokenizer, negatives):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="extra dev")
    rows = [{**row, "negatives": [f"{row['anchor']} not {n}" for n in range(negatives)]} for row in questions(6)]
    examples = encoded(rows, tokenizer)
    vectors, places = vectors_of(examples)
    found = KIND.joint_losses(vectors, examples, places)
    columns = [vectors[[own[part] for own in places]] for part in range(2 + negatives)]
    expected = of_sentence_transformers(losses.MultipleNegativesRankingLoss(Given()), *columns)
    assert float(found.mean()) == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_of_scores_is_cosent(tokenizer):
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses", reason="extra dev")
    examples = encoded(likenesses(8), tokenizer)
    vectors, places = vectors_of(examples)
    found = KIND.joint_losses(vectors, examples, places)
    columns = [vectors[[own[part] for own in places]] for part in (0, 1)]
    targets = torch.tensor([example.labels[0] for example in examples])
    expected = of_sentence_transformers(losses.CoSENTLoss(Given()), *columns, labels=targets)
    assert found.tolist() == pytest.approx([float(expected)] * 8, rel=1e-5)


def test_pairs_in_the_right_order_cost_little():
    targets = torch.tensor([0.0, 1.0, 5.0])
    assert float(order_losses(torch.tensor([-0.9, 0.1, 0.9]), targets)[0]) < 1e-6
    assert float(order_losses(torch.tensor([0.9, 0.1, -0.9]), targets)[0]) > 30


def test_what_belongs_to_an_anchor_is_no_negative_of_it(tokenizer):
    """The same anchor in other letters, a positive that another row has too, and a negative that is a positive."""
    rows = [
        {"anchor": "the room", "positive": "a warm place"},
        {"anchor": "The  Room", "positive": "a bright place"},
        {"anchor": "a meal", "positive": "A warm place"},
        {"anchor": "a car", "positive": "red metal", "negatives": ["a bright place", "blue metal"]},
    ]
    examples = encoded(rows, tokenizer)
    vectors, places = vectors_of(examples)
    search = Search.of(examples, places)
    assert len(search.documents) == 4
    assert search.targets == [0, 1, 0, 2]
    assert search.relevant == [(0, 1), (0, 1), (0,), (2,)]
    assert search.first == [True, False, True, True]
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    logits = search.logits(unit)
    expected = []
    for row, (target, relevant) in enumerate(zip(search.targets, search.relevant, strict=True)):
        kept = [c for c in range(4) if c == target or c not in relevant]
        expected.append(float(torch.logsumexp(logits[row, kept], 0) - logits[row, target]))
    assert KIND.joint_losses(vectors, examples, places).tolist() == pytest.approx(expected, rel=1e-5)


def gradients(models, folder, rows, micro):
    lock = make_lock(models / "encoder", "embedding", train__micro_batch_rows=micro, **BODY)
    trained = make_loop(lock, folder, rows, labels=())
    loop, job = trained.loop, trained.job
    with torch.no_grad():
        for name, parameter in sorted(job.parameters.items()):
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    found = job.next_batch()
    micros = len(list(loop.passes.micro_batches([(job, found)])))
    sums = loop._gradients([(job, found)])
    return micros, float(sums[id(job)]), torch.cat([p.grad.flatten() for p in job.parameters.values()])


def test_texts_alone_have_no_loss_and_are_no_negatives(tokenizer):
    rows = [{"anchor": "a good film", "positive": "very good"}, {"anchor": "a bad one", "positive": "awful"}]
    mixed = [rows[0], KIND_OF_PAIRS.alone("neither good nor bad"), rows[1]]
    examples = KIND.encode(mixed, tokenizer, max_length=32)
    assert [len(example.parts) for example in examples] == [2, 1, 2]
    parts, places = unique_parts(examples)
    vectors = torch.randn(len(parts), 8, generator=torch.Generator().manual_seed(1))
    found = KIND.joint_losses(vectors, examples, places)
    pairs = KIND.joint_losses(vectors, [examples[0], examples[2]], [places[0], places[2]])
    torch.testing.assert_close(found, torch.stack([pairs[0], torch.tensor(0.0), pairs[1]]))
    assert KIND.joint_losses(vectors, [examples[1]], [places[1]]).tolist() == [0.0]
    # The teacher's vector of it is learned.
    assert KIND.joint_distances(vectors, -vectors, places, None)[1] == pytest.approx(40.0)


def test_negatives_and_gradient_do_not_hang_on_the_micro_batch(models, tmp_path):
    rows = questions(8)
    found = [gradients(models, tmp_path / str(micro), rows, micro) for micro in (1, 4, 8)]
    assert found[0][0] > found[1][0] > found[2][0] == 1
    for _, loss, gradient in found[:-1]:
        assert loss == pytest.approx(found[-1][1], rel=1e-5)
        torch.testing.assert_close(gradient, found[-1][2], rtol=1e-3, atol=1e-5)


def test_dropout_goes_by_the_sequence_whichever_micro_batch_it_is_in(models, tmp_path):
    losses = []
    for micro in (2, 8):
        lock = make_lock(models / "encoder", "embedding", train__micro_batch_rows=micro, adapter__dropout=0.3, **BODY)
        losses.append(train(lock, tmp_path / str(micro), questions(24), labels=()).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_resumed_training_equals_an_uninterrupted_one(models, tmp_path):
    from tiny import same_weights, stop_after

    lock = make_lock(models / "encoder", "embedding", train__micro_batch_rows=3, train__max_steps=5, **BODY)
    rows, held = questions(24), questions(8, seed=5)
    whole = train(lock, tmp_path / "whole", rows, held, labels=())
    with pytest.raises(KeyboardInterrupt):
        train(lock, tmp_path / "cut", rows, held, labels=(), stop=stop_after(2))
    resumed = train(lock, tmp_path / "cut", rows, held, labels=())
    assert resumed.state.resumed_from_step == 2
    assert same_weights(whole.weights, resumed.weights)
    assert whole.lines == resumed.lines


def test_other_objectives_are_refused_before_step_1(models, tmp_path):
    from hfadapt.objectives import Objective

    class Other(Objective):
        name = title = "other"

    lock = make_lock(models / "encoder", "embedding", **BODY)
    with pytest.raises(RequestError, match="whole batches"):
        train(lock, tmp_path, questions(16), labels=(), objective=Other())


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_of_ranks_by_hand():
    ranks = [np.array([1, 3]), np.array([12]), np.array([], dtype=int), np.array([2])]
    scores = rank_scores(ranks, np.ones(4))
    found = {m.name: float(m.value(m.statistics(scores).sum(0))) for m in METRICS}
    first = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert found["ndcg_at_10"] == pytest.approx((first + 0 + 1 / math.log2(3)) / 3)
    assert found["mrr_at_10"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["recall_at_10"] == pytest.approx((1 + 0 + 1) / 3)
    assert ndcg(np.arange(1, 20)) == pytest.approx(1.0)


def test_ranks_are_those_of_sentence_transformers(tokenizer):
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation", reason="extra dev")
    rows = questions(30)
    rows += [{"anchor": rows[n]["anchor"], "positive": rows[n + 7]["positive"]} for n in range(5)]
    examples = encoded(rows, tokenizer)
    vectors, places = vectors_of(examples)
    search = Search.of(examples, places)
    scores = search.scores(torch.nn.functional.normalize(vectors, dim=-1))
    ours = {m.name: float(m.value(m.statistics(scores).sum(0))) for m in METRICS}
    names = {f"q{row}": row for row, first in enumerate(search.first) if first}
    texts = {f"d{column}": str(column) for column in range(len(search.documents))}
    relevant = {name: {f"d{c}" for c in search.relevant[row]} for name, row in names.items()}
    at = {f"{name}_at_k": [10] for name in ("ndcg", "mrr", "precision_recall", "accuracy")}
    judge = evaluation.InformationRetrievalEvaluator(dict.fromkeys(names, ""), texts, relevant, **at)
    similarities = search.logits(torch.nn.functional.normalize(vectors, dim=-1))
    hits = [
        [
            {"corpus_id": f"d{c}", "score": float(similarities[row, c])}
            for c in similarities[row].argsort(descending=True).tolist()
        ]
        for row in names.values()
    ]
    theirs = judge.compute_metrics(hits)
    assert ours["ndcg_at_10"] == pytest.approx(theirs["ndcg@k"][10])
    assert ours["mrr_at_10"] == pytest.approx(theirs["mrr@k"][10])
    assert ours["recall_at_10"] == pytest.approx(theirs["recall@k"][10])


# --- how texts become vectors ----------------------------------------------------------------------------------------


def base_with(models, folder, pooling, normalise=True, **config):
    """A copy of the encoder that says how its tokens become vectors."""
    import shutil

    shutil.copytree(models / "encoder", folder)
    sentence = Sentence(pooling=pooling, normalise=normalise, query="the meal: ", include_prompt=False, **config)
    sentence.write(folder, 64, 64)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
def test_vectors_are_those_of_sentence_transformers(models, tmp_path, pooling):
    library = pytest.importorskip("sentence_transformers", reason="extra dev")
    from transformers import AutoModel

    folder = base_with(models, tmp_path / "base", pooling, normalise=pooling != "cls")
    tokenizer = TEXT.load_processor(str(folder), None)
    known = Sentence.of(tokenizer)
    assert (known.pooling, known.query, known.document, known.known) == (pooling, "the meal: ", "", True)
    (example,) = encoded([{"anchor": "lovely bright room", "positive": "a warm house"}], tokenizer)
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        ours = KIND.label_logits(model, KIND.collate([example], 0))
    if known.normalise:
        ours = torch.nn.functional.normalize(ours, dim=-1)
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    expected = [theirs.encode_query("lovely bright room"), theirs.encode_document("a warm house")]
    torch.testing.assert_close(ours, torch.tensor(np.stack(expected)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", MODES.values())
@pytest.mark.parametrize("normalise", [True, False])
def test_a_file_pools_as_training_does(pooling, normalise):
    """From the mask of the tokens, on whichever side a row is filled up."""
    sentence = Sentence(pooling=pooling, normalise=normalise)
    hidden = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
    found = sentence.vectors(hidden, mask)
    for row in range(3):
        kept = hidden[row, mask[row].bool()]
        expected = torch.tensor(sentence.weights(len(kept), 0)) @ kept
        expected = torch.nn.functional.normalize(expected, dim=-1) if normalise else expected
        torch.testing.assert_close(found[row], expected)


def test_a_file_cannot_leave_prompts_out(monkeypatch):
    sentence = Sentence(query="query: ", include_prompt=False)
    monkeypatch.setattr(Sentence, "of", classmethod(lambda cls, tokenizer: sentence))
    with pytest.raises(RunError, match="cannot tell which tokens it is"):
        KIND.for_file(torch.nn.Identity(), None)


def test_a_base_that_says_nothing_has_the_mean_and_a_note(tokenizer):
    assert Sentence.of(tokenizer) == Sentence(known=False, model_type="bert")
    (note,) = KIND.notes(tokenizer)
    assert "mean" in note


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda f: (f / "1_Pooling/config.json").write_text('{"pooling_mode_max_tokens": true}'), "max"),
        (lambda f: (f / "1_Pooling/config.json").write_text('{"pooling_mode": ["mean", "cls"]}'), "mean, cls"),
        (lambda f: (f / "modules.json").write_text(json.dumps([{"type": "x.Dense", "path": "2_Dense"}])), "Dense"),
        (lambda f: (f / "modules.json").write_text("[{"), "Expecting"),
    ],
)
def test_what_is_not_trained_is_refused_by_name(models, tmp_path, change, found):
    folder = base_with(models, tmp_path / "base", "mean")
    change(folder)
    with pytest.raises(RequestError) as caught:
        Sentence.of(TEXT.load_processor(str(folder), None))
    assert found in str(caught.value)


def test_drift_is_that_of_which_text_is_closest():
    one = torch.randn(12, 16, generator=torch.Generator().manual_seed(1)).double()
    found = KIND.divergence(one, one + 0.1)
    assert (found > 0).all()
    assert float(KIND.divergence(one, 3 * one).abs().max()) < 1e-12
    unit = torch.nn.functional.normalize(torch.stack([one, one + 0.1]), dim=-1)
    p, q = (torch.softmax(20 * (each[0] @ each[1:].T), -1) for each in unit)
    assert float(found[0]) == pytest.approx(float((p * (p / q).log()).sum()))


# --- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    made = tmp_path_factory.mktemp("search")
    for number, name in enumerate(("one", "two")):
        write_rows(
            made / f"{name}.jsonl",
            [{"query": row["anchor"], "passage": row["positive"]} for row in questions(160, seed=number)],
        )
    domains = {name: {"source": f"{name}.jsonl"} for name in ("one", "two")}
    fields = recipe_fields(models / "encoder", "embedding", domains, dtype="float32")
    fields["train"] |= {"max_steps": 30, "batch_rows": 32, "learning_rate": 0.01}
    fields["evaluate"] = {
        "resamples": 200,
        "security": True,
        "drift": True,
        "drift_limits": {"kl_nats": 1e3, "points": 1e3},
    }
    write_recipe(made / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=made)
    assert done.code == 0, done.out + done.err
    return made


@pytest.fixture
def cell(folder):
    return Cell(folder / "runs/tiny/one/this-machine")


def test_a_run_learns_and_says_among_how_many(cell):
    metrics = {metric.name: metric for metric in cell.evaluation.metrics}
    assert list(metrics) == ["ndcg_at_10", "mrr_at_10", "recall_at_10", "loss"]
    assert cell.train.final_loss < cell.train.first_loss
    assert cell.evaluation.baseline == "base"
    assert cell.evaluation.setting == "24 queries, each among the same 24 documents"
    assert {change.metric for change in cell.security.robustness} == {"ndcg_at_10"}
    assert cell.security.membership is not None
    assert all(variant.max_logit_difference > 0 for variant in cell.drift.variants)
    assert cell.drift.labels == 48
    card = (cell.folder / "README.md").read_text()
    assert "each among the same 24 documents" in card
    assert "sentence-similarity" in card


def test_every_adapter_is_tried_on_the_other_domains_queries(cell):
    (target,) = cell.transfer.targets
    values = {found.data: found for found in target.cells}
    assert values.keys() == {"one", "two"}
    own, metric = values["one"], cell.evaluation.metrics[0]
    assert (own.value, own.base, own.rows) == (pytest.approx(metric.adapter), pytest.approx(metric.base), 24)


def test_answers_are_vectors_and_likenesses(cell, folder):
    from hfadapt import load_adapted

    texts = ["a lovely bright film", "bright film", "dull stone"]
    first, near, far = load_adapted(cell.folder).predict(texts)
    assert len(first.vector) == 64
    assert first.number is None
    assert np.linalg.norm(first.vector) == pytest.approx(1, rel=1e-5)
    assert near.number == pytest.approx(float(np.dot(first.vector, near.vector)), abs=1e-5)
    assert near.number > far.number
    done = command("predict", cell.folder, *texts, folder=folder)
    assert done.out.splitlines()[1:] == [f"{near.number:.4g}", f"{far.number:.4g}"]
    assert "64 numbers" in done.out
    done = command("predict", cell.folder, texts[0], "--json", folder=folder)
    assert json.loads(done.out)[0]["vector"] == pytest.approx(first.vector)


def test_an_export_opens_in_sentence_transformers_with_the_same_vectors(cell, tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="extra dev")
    from hfadapt import load_adapted

    texts = ["a lovely bright film", "bright film", "dull stone " * 60]
    adapted = load_adapted(cell.folder)
    ours = [answer.vector for text in texts for answer in adapted.predict(text)]
    done = command(
        "export",
        cell.folder,
        "--format",
        "merged",
        "--variant",
        "merged-float32",
        "--to",
        tmp_path / "out",
        folder=tmp_path,
    )
    assert done.code == 0, done.err
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")} >= {
        *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")
    }
    opened = library.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    np.testing.assert_allclose(opened.encode(texts), ours, rtol=1e-3, atol=1e-4)
    again = [answer.vector for text in texts for answer in load_adapted(tmp_path / "out").predict(text)]
    np.testing.assert_allclose(again, ours, rtol=1e-3, atol=1e-4)
    assert "SentenceTransformer" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("name", ["1_Pooling/config.json", "1_Pooling/more.py", "2_More/config.json"])
def test_an_export_with_another_pooling_is_not_opened(cell, tmp_path, name):
    from hfadapt import load_adapted
    from hfadapt.core.errors import RunError

    done = command("export", cell.folder, "--format", "merged", "--to", tmp_path / "out", folder=tmp_path)
    assert done.code == 0, done.err
    path = tmp_path / "out" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(RunError):
        load_adapted(tmp_path / "out")


def test_scored_pairs_are_judged_by_spearman(models, tmp_path):
    rows = [(row["anchor"], row["positive"], row["label"]) for row in likenesses(160)]
    write_rows(
        tmp_path / "one.jsonl", [dict(zip(("sentence1", "sentence2", "score"), row, strict=True)) for row in rows]
    )
    fields = recipe_fields(models / "encoder", "embedding", dtype="float32")
    fields["train"] |= {"max_steps": 20, "batch_rows": 32, "learning_rate": 0.01}
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    cell = Cell(tmp_path / "runs/tiny/one/this-machine")
    assert cell.data.form == "scored-pairs"
    assert [metric.name for metric in cell.evaluation.metrics] == ["spearman", "loss"]
    assert cell.evaluation.metrics[1].adapter < cell.evaluation.metrics[1].base
    assert Path(cell.folder / "README.md").is_file()
