"""One label per word: words and their tokens, span metrics as seqeval has them, and whole runs."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import (
    LABELS,
    command,
    entities,
    loss_sum,
    make_lock,
    make_tokenizer,
    recipe_fields,
    tagged,
    train,
    write_recipe,
    write_rows,
)

from hfadapt import load_adapted, load_bank
from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.evaluate.metrics.rows import compare, known_metrics, leading
from hfadapt.modalities import IGNORED
from hfadapt.modalities.text import token_ids
from hfadapt.models.attach import open_adapter, save_adapter
from hfadapt.models.load import load_base
from hfadapt.run_folder import Run
from hfadapt.tasks import Scores, ragged
from hfadapt.tasks.token_classification.task import first_tokens, spans, spans_of

TASK = registry.task("token-classification")
CPU = torch.device("cpu")

# --- words and tokens ------------------------------------------------------------------------------------------------


def encoded(words, tokenizer, max_length=96):
    """An example of words, of which word n has the tag n."""
    labels = tuple(map(str, range(len(words))))
    return TASK.encode([{"tokens": words, "tags": labels}], tokenizer, max_length=max_length, labels=labels)[0]


def first_of_words(example):
    return [example.labels.index(n) for n in range(example.label_count)]


@given(st.lists(st.text("aé ♥日🙂.-\u00a0", max_size=6), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_first_token_of_a_word_has_its_tag(words):
    tokenizer = make_tokenizer()
    # Six characters of four bytes and one for their beginning, eight times.
    example = encoded(words, tokenizer, max_length=250)
    assert len(example.labels) == example.size
    named = [n for n in example.labels if n != IGNORED]
    assert named == sorted(set(named)), "a word has two labels, or words changed places"
    assert all(word.strip() == "" for n, word in enumerate(words) if n not in named)
    for n, place in zip(named, [place for place, n in enumerate(example.labels) if n != IGNORED], strict=True):
        text = tokenizer.decode(token_ids(example)[place]).strip()
        # A byte of a character that has several decodes to the mark of what is no text.
        assert "\ufffd" in text or text == "" or text[0] in words[n]


@pytest.mark.parametrize("closed", [False, True])
def test_tokens_are_those_of_running_text(closed):
    """With or without special tokens around; of a cut text the words that were seen carry labels."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    if closed:
        marks = [(mark, tokenizer.convert_tokens_to_ids(mark)) for mark in ("<|bos|>", "<|end|>")]
        template = TemplateProcessing(single="<|bos|> $A <|end|>", special_tokens=marks)
        tokenizer.backend_tokenizer.post_processor = template
    words = ["lovely", "film", "unheardof", "bright"]
    example = encoded(words, tokenizer)
    assert list(token_ids(example)) == tokenizer("lovely film unheardof bright")["input_ids"]
    places = first_of_words(example)
    pieces = [tokenizer.decode(token_ids(example)[place]) for place in places]
    assert [piece.strip()[:1] for piece in pieces] == ["l", "f", "u", "b"]
    assert (pieces[1], pieces[3]) == (" film", " bright")
    cut = encoded(words, tokenizer, max_length=places[2] + 1 + closed)
    assert cut.truncated
    assert [label for label in cut.labels if label != IGNORED] == [0, 1, 2]


def test_no_token_belongs_to_two_words():
    assert first_tokens(["ab", "cd", "", "e"], [(0, 0), (0, 4), (4, 5), (6, 8), (0, 0)]) == [1, 2, None, 3]
    assert first_tokens(["ab", "cd"], [(0, 2)]) == [0, None]


def test_a_tokenizer_that_knows_no_places_is_refused():
    class Slow:
        is_fast = False
        name_or_path = "old"

    with pytest.raises(DataError, match="does not say which word") as error:
        TASK.encode([{"tokens": ["a"], "tags": ["O"]}], Slow(), max_length=8, labels=("O",))
    assert "Slow, which is written in Python" in str(error.value)


def test_an_unknown_tag_names_its_row():
    row = {"tokens": ["a"], "tags": ["B-PRE"], "source": "x.conll", "row": 3}
    with pytest.raises(DataError, match=r"row 4 of x\.conll: a label is not in the label set") as error:
        TASK.encode([row], make_tokenizer(), max_length=8, labels=("B-PER", "O"))
    assert "did you mean 'B-PER'?" in str(error.value)


# --- metrics ---------------------------------------------------------------------------------------------------------

TAGS = ("O", *(f"{mark}-{kind}" for mark in "BIES" for kind in ("PER", "LOC")), "B", "I")
SENTENCE = st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=9)


def scores_of(sentences, names):
    gold, chosen = (
        ragged([np.array([names.index(pair[part]) for pair in each]) for each in sentences]) for part in (0, 1)
    )
    losses = np.ones(len(sentences))
    return Scores(gold, chosen, None, losses, np.array([len(each) for each in sentences]), "tokens", tuple(names))


def value(name, scores):
    metric = known_metrics()[name]
    return float(metric.value(metric.statistics(scores).sum(0)))


@given(st.lists(SENTENCE, min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_span_metrics_are_those_of_seqeval(sentences):
    """Its default mode, which is that of conlleval: IOB1, IOB2, IOBES, also tags that contradict each other."""
    seqeval = pytest.importorskip("seqeval.metrics")
    gold, chosen = ([[pair[part] for pair in each] for each in sentences] for part in (0, 1))
    scores = scores_of(sentences, TAGS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("f1", "precision", "recall"):
            wanted = getattr(seqeval, f"{name}_score")(gold, chosen)
            assert value(f"span_{name}", scores) == pytest.approx(wanted, abs=1e-12)
        assert value("token_accuracy", scores) == pytest.approx(seqeval.accuracy_score(gold, chosen))
        for each in gold:
            assert spans(each) == set(seqeval.sequence_labeling.get_entities(each))


def test_spans_by_hand():
    assert spans(["B-PER", "I-PER", "O", "B-PER", "B-PER"]) == {("PER", 0, 1), ("PER", 3, 3), ("PER", 4, 4)}
    assert spans(["I-PER", "I-LOC", "O", "I-LOC"]) == {("PER", 0, 0), ("LOC", 1, 1), ("LOC", 3, 3)}
    assert spans(["B-A", "E-A", "S-A", "O"]) == {("A", 0, 1), ("A", 2, 2)}


@pytest.mark.parametrize(
    ("names", "spanning", "first"),
    [
        (("O", "B-PER", "I-PER"), True, "span_f1"),
        (("O", "I-LOC"), True, "span_f1"),
        (("O", "B", "I"), True, "span_f1"),
        (("ADJ", "NOUN", "INTJ", "SYM"), False, "token_accuracy"),
        (("O", "PER"), False, "token_accuracy"),
    ],
)
def test_the_tags_say_what_leads(names, spanning, first):
    assert spans_of(names) == spanning
    scores = scores_of([[(name, name) for name in names]], names)
    assert leading(TASK.metrics, scores).name == first
    assert compare(first, scores, scores, resamples=20, confidence=0.9, seed=1).adapter == 1.0


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["encoder", "lm"])
def test_reopened_by_hfadapt_and_by_plain_peft_it_says_the_same(models, tmp_path, name):
    import transformers
    from peft import PeftModel

    lock = make_lock(models / name, TASK.name, train__max_steps=3)
    trained = train(lock, tmp_path, tagged(24))
    pad = trained.base.pad_token_id

    def losses(model):
        model.eval()
        with torch.inference_mode():
            return [float(loss_sum(TASK, model, TASK.collate([one], pad))[0]) for one in trained.job.train]

    expected = losses(trained.model)
    assert losses(load_base(lock, LABELS, CPU).model) != pytest.approx(expected, abs=1e-3)
    save_adapter(trained.model, trained.base, lock, tmp_path / "adapter", trained.start)
    opened = open_adapter(load_base(lock, LABELS, CPU), tmp_path / "adapter", "lora", CPU)
    assert losses(opened) == pytest.approx(expected, abs=1e-4)
    plain = transformers.AutoModelForTokenClassification.from_pretrained(models / name, num_labels=2)
    assert losses(PeftModel.from_pretrained(plain, tmp_path / "adapter")) == pytest.approx(expected, abs=1e-4)


# --- whole runs ------------------------------------------------------------------------------------------------------

TEXT = "room lovely bright song awful day"


def ran(models, folder, model, **more):
    for seed, domain in enumerate(("one", "two")):
        write_rows(folder / f"{domain}.jsonl", entities(160, seed=seed))
    domains = {name: {"source": f"{name}.jsonl", "license": "mit"} for name in ("one", "two")}
    training = {"max_steps": 80, "learning_rate": 5e-3, "batch_rows": 8}
    fields = recipe_fields(models / model, TASK.name, domains, train=training, **more)
    write_recipe(folder / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return Run(folder / "runs/tiny")


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """Two domains on an encoder with everything that is measured."""
    return ran(models, tmp_path_factory.mktemp("encoder"), "encoder", data__canaries={"count": 6, "repeats": [1]})


def test_a_run_measures_everything(run):
    cell = run.cell("one", "this-machine")
    record = cell.evaluation
    names = [metric.name for metric in record.metrics]
    assert names == ["span_f1", "token_accuracy", "span_precision", "span_recall", "calibration_error", "loss"]
    assert record.metrics[0].adapter > 0.3
    assert all(metric.low <= metric.delta <= metric.high for metric in record.metrics)
    words = sum(len(row["tokens"]) for row in cell.read_split("test"))
    assert sum(sum(said.values()) for said in record.confusion.values()) == words
    assert sum(one["rows"] for one in record.per_class.values()) == words
    assert sum(one.rows for one in record.calibration.adapter) == words
    assert {one.by for one in record.slices} <= {"class", "length", "source"}
    assert record.failures
    assert {one.name for one in cell.security.robustness} == {"typos", "case"}
    assert [attack.name for attack in cell.security.membership.attacks] == ["loss"]
    assert cell.security.canaries.planted == 6
    assert {variant.name for variant in cell.drift.variants} >= {"merged-bfloat16", "merged-float32"}
    (matrix,) = run.transfer.targets
    assert (len(matrix.cells), matrix.metric) == (4, "span_f1")
    own = {one.adapter: one.value for one in matrix.cells if one.adapter == one.data}
    assert own["one"] == pytest.approx(record.metrics[0].adapter)


def test_the_card_is_sound(run):
    cell = run.cell("one", "this-machine")
    done = command("card", "check", cell.folder)
    assert done.err.count("got:") == 1, done.err
    assert "The licence of the base is not stated" in done.err
    card = (cell.folder / "README.md").read_text()
    assert "| class | words | recall" in card
    assert "\tB-GOOD\n" in card or "\tB-BAD\n" in card, "what the snippet printed"
    assert "['" not in card, "a list that stands as Python writes it"


def test_it_answers_as_it_was_evaluated(run):
    cell = run.cell("one", "this-machine")
    adapted = load_adapted(cell.folder)
    rows, said = cell.read_split("test"), _predictions(cell)
    for row, tags, answer in zip(rows, said, adapted.predict([" ".join(row["tokens"]) for row in rows]), strict=True):
        found = [(" ".join(row["tokens"][start : end + 1]), kind) for kind, start, end in spans(tags)]
        assert sorted(answer.parts) == sorted(found)
    assert adapted.predict("  ")[0].label == "no spans"


def test_a_long_text_is_answered_to_its_end(run):
    adapted = load_adapted(run.cell("one", "this-machine").folder)
    assert len(adapted.tokenizer(TEXT * 20)["input_ids"]) > adapted.max_length
    (answer,) = replace(adapted, labels=tuple("abcde")).predict(" ".join([TEXT] * 20))
    assert [word for word, _ in answer.parts] == TEXT.split() * 20


def test_signs_beside_words_are_words_of_their_own(run):
    adapted = load_adapted(run.cell("one", "this-machine").folder)
    named = replace(adapted, labels=tuple("abcde"))
    (apart,), (joined,) = named.predict("room lovely , bright ."), named.predict("room lovely, bright.")
    assert [word for word, _ in joined.parts] == ["room", "lovely", ",", "bright", "."]
    assert joined.parts == apart.parts
    assert joined.text == "room lovely, bright."


def test_a_mixed_batch_is_every_adapter_alone(run):
    texts, domains = [TEXT, " ".join([TEXT] * 12), TEXT], ["one", "two", "two"]
    mixed = load_bank(run.folder).predict(texts, domains)
    for text, domain, answer in zip(texts, domains, mixed, strict=True):
        assert answer.parts == load_adapted(run.folder, domain).predict(text)[0].parts


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_exported_it_says_the_same(models, run, tmp_path, form):
    cell = run.cell("one", "this-machine")
    done = command("export", cell.folder, "--to", tmp_path / form, "--format", form)
    assert done.code == 0, done.err
    base = models / "encoder" if form == "adapter" else None
    opened = load_adapted(tmp_path / form, base=base and str(base))
    assert opened.predict(TEXT)[0].parts == load_adapted(cell.folder).predict(TEXT)[0].parts


def test_published_to_a_folder(run, tmp_path):
    done = command(
        "publish", run.cell("one", "this-machine").folder, "--to", tmp_path / "out", "--license", "mit", "--yes"
    )
    assert done.code == 0, done.err
    assert "pipeline_tag: token-classification" in (tmp_path / "out" / "README.md").read_text()


def test_a_decoder_with_plain_tags(models, tmp_path):
    """The leading metric is then accuracy of words, and words are answered one by one."""
    checks = {"security": False, "drift": False, "transfer": False}
    write_rows(tmp_path / "pos.jsonl", tagged(120))
    fields = recipe_fields(models / "lm", TASK.name, {"pos": {"source": "pos.jsonl"}}, evaluate=checks)
    fields["train"] = {"max_steps": 40, "learning_rate": 2e-2, "batch_rows": 8}
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    cell = Run(tmp_path / "runs/tiny").cell("pos", "this-machine")
    assert cell.evaluation.metrics[0].name == "token_accuracy"
    assert cell.evaluation.metrics[0].adapter > 0.8
    (answer,) = load_adapted(cell.folder).predict("superb phone")
    assert [word for word, _ in answer.parts] == ["superb", "phone"]
    assert str(answer).startswith("superb [")


def _predictions(cell):
    from pyarrow import parquet

    return parquet.read_table(cell.folder / "predictions.parquet").column("adapter").to_pylist()
