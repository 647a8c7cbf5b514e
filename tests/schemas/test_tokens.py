"""Rows of words and tags: read from files and columns, checked, changed word by word."""

from __future__ import annotations

import gzip
import random

import pytest
from tiny import command, entities, write_rows

from hfadapt import check_recipe
from hfadapt.core import registry
from hfadapt.core.errors import DataError
from hfadapt.data import columns, sources
from hfadapt.data.canaries import Answers
from hfadapt.data.clean import pii_scrubber
from hfadapt.data.rows import Dropped, as_row
from hfadapt.files.places import Place
from hfadapt.recipe.schema import Columns, Source
from hfadapt.schemas import Unusable

SCHEMA = registry.schema("tokens")
ROW = {"tokens": ["Ada", "Lovelace", "writes", "."], "tags": ["B-PER", "I-PER", "O", "O"]}

CONLL = """-DOCSTART- -X- O O

# id = 1
Ada NNP I-NP B-PER
Lovelace NNP I-NP I-PER
writes VBZ I-VP O
. . O O

# O
1 O
"""
CONLLU = """# sent_id = 1
# text = vamo-nos já
1-2\tvamo-nos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t_\t_\t_\t_
2\tnos\tnós\tPRON\t_\t_\t_\t_\t_\t_
2.1\tcedo\tcedo\tADV\t_\t_\t_\t_\t_\t_
3\t10 000\t_\tNUM\t_\t_\t_\t_\t_\t_

1\tjá\tjá\t_\t_\t_\t_\t_\t_\t_
"""


def read(path):
    return [item[:2] for item in sources.open_source(Source(source=str(path)), path.parent).read()]


@pytest.mark.parametrize("name", ["a.conll", "a.IOB", "a.bio", "a.conll.gz"])
def test_conll_has_the_word_first_and_the_tag_last(tmp_path, name):
    content = CONLL.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path / name) == [(0, ROW), (1, {"tokens": ["#", "1"], "tags": ["O", "O"]})]


def test_conll_between_tabs(tmp_path):
    (tmp_path / "a.conll").write_text("New York\tB-LOC\n\u00a0\tO\r\n\n\n", encoding="utf-8")
    assert read(tmp_path / "a.conll") == [(0, {"tokens": ["New York", "\u00a0"], "tags": ["B-LOC", "O"]})]


def test_conllu_has_words_but_no_ranges_and_no_empty_nodes(tmp_path):
    (tmp_path / "a.conllu").write_text(CONLLU, encoding="utf-8")
    first, second = read(tmp_path / "a.conllu")
    assert first == (0, {"tokens": ["vamos", "nos", "10 000"], "tags": ["VERB", "PRON", "NUM"]})
    assert second == (1, {"tokens": ["já"], "tags": [None]})


def formatted(values, label_names=(), labels=None):
    shape = columns.recognise(list(values), Columns(), {"tokens"}, "source", False)
    formatter = columns.Formatter("s", shape, None, columns.Labels(labels), label_names, list(values))
    return formatter.row(Place("s", 3), values)


@pytest.mark.parametrize("words", ["tokens", "words", "Forms"])
@pytest.mark.parametrize("tags", ["tags", "ner_tags", "pos_tags", "upos", "labels"])
def test_columns_are_known_by_name(words, tags):
    row = formatted({"id": "7", words: ROW["tokens"], tags: ROW["tags"]})
    assert (row.form, row.columns, row.text) == ("tokens", ROW, "Ada Lovelace writes .")
    assert row.classes == ("B-PER", "I-PER", "O")


def test_numbers_of_classes_and_words_in_one_text():
    row = formatted({"words": "Ada sleeps", "ner_tags": [1, 0]}, label_names=("O", "B-PER"))
    assert row.columns == {"tokens": ["Ada", "sleeps"], "tags": ["B-PER", "O"]}
    assert formatted({"words": "Ada sleeps", "tags": "1 0"}, labels=("O", "PER")).columns["tags"] == ["PER", "O"]


@pytest.mark.parametrize(
    ("values", "reason", "detail"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "unequal-lengths", " has 2 words and 1 tags"),
        ({"tokens": ["a", "b"], "tags": ["O", None]}, "missing-field", " has no tag for word 2, 'b'"),
        ({"tokens": {"a": 1}, "tags": ["O"]}, "wrong-type", ": tokens is no list but"),
    ],
)
def test_rows_that_cannot_be_used_say_why(values, reason, detail):
    dropped = formatted(values)
    assert isinstance(dropped, Dropped)
    assert dropped.reason == reason
    assert dropped.detail.startswith(detail)


def test_a_class_is_not_taken_for_tags():
    """`labels` is a label beside text, and tags beside words."""
    shape = columns.recognise(["text", "labels"], Columns(), {"labelled"}, "source", False)
    assert (shape.form, shape.parts) == ("labelled", {"text": "text", "label": "labels"})
    with pytest.raises(DataError, match="tokens \\+ tags"):
        columns.recognise(["text", "labels"], Columns(), {"tokens"}, "source", False)


def test_words_are_changed_by_themselves_and_none_goes_away():
    changed = SCHEMA.changed(ROW, lambda word, place: "" if place == 2 else word.upper())
    assert changed == {**ROW, "tokens": ["ADA", "LOVELACE", "writes", "."]}
    assert SCHEMA.rewritten(ROW, str.lower) == {**ROW, "tokens": ["ada", "lovelace", "writes", "."]}
    assert SCHEMA.stated(ROW) == ["Ada Lovelace writes ."]


def test_personal_data_goes_and_the_word_stays():
    pytest.importorskip("phonenumbers")
    row = {"tokens": ["write", "a.b@example.com", "."], "tags": ["O", "B-MAIL", "O"]}
    scrub = pii_scrubber()
    assert SCHEMA.rewritten(row, lambda text: scrub(text)[0])["tokens"] == ["write", "[EMAIL]", "."]


def test_a_canary_has_random_words_and_tags():
    answers = Answers({}, labels=("O", "B-PER", "I-PER"))
    rows = [SCHEMA.canary(random.Random(seed), None, answers) for seed in range(20)]
    assert all(len(row["tokens"]) == len(row["tags"]) == 8 for row in rows)
    assert {tag for row in rows for tag in row["tags"]} == set(answers.labels)


def test_rows_of_the_same_words_must_agree_in_all_tags():
    assert as_row(ROW, "tokens").label == "B-PER I-PER O O"
    assert as_row(ROW, "tokens").stratum == ""
    with pytest.raises(Unusable):
        SCHEMA.make({"tokens": [1], "tags": [1.5, 2]}, str)


@pytest.mark.parametrize("kind", ["jsonl", "conll", "parquet"])
def test_a_recipe_is_written_for_such_a_file(models, tmp_path, kind):
    rows = entities(60)
    path = tmp_path / f"ner.{kind}"
    if kind == "jsonl":
        write_rows(path, rows)
    elif kind == "conll":
        sentences = ("\n".join(map(" ".join, zip(row["tokens"], row["tags"], strict=True))) for row in rows)
        path.write_text("\n\n".join(sentences), encoding="utf-8")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for model in ("encoder", "lm"):
        done = command("new", "--model", models / model, "--data", path, "-o", f"{model}.yaml", folder=tmp_path)
        assert done.code == 0, done.err
        assert "task: token-classification" in (tmp_path / f"{model}.yaml").read_text()


TEXT = "Ada Lovelace met Babbage, in London."


@pytest.mark.parametrize(
    ("column", "spans"),
    [
        ("label", [[26, 29, "X"], [0, 12, "PER"], [17, 24, "PER"]]),
        ("entities", [{"id": 1, "start_offset": 0, "end_offset": 12, "label": "PER"}, [17, 24, "PER"], [26, 29, "X"]]),
        (
            "spans",
            '[[0, 12, "PER"], {"start": 17, "end": 24, "label": "PER"}, {"start": 26, "end": 29, "labels": ["X"]}]',
        ),
    ],
)
def test_spans_of_characters_become_tags_of_words(column, spans):
    values = {"id": 1, "text": TEXT, column: spans}
    shape = columns.recognise(list(values), Columns(), registry.task("token-classification").schemas, "d", False)
    row = columns.Formatter("d", shape, None, columns.Labels(None), (), tuple(values)).row(Place("d", 0), values)
    assert (row.form, row.columns["tokens"]) == (
        "tokens",
        ["Ada", "Lovelace", "met", "Babbage", ",", "in", "London", "."],
    )
    assert row.columns["tags"] == ["B-PER", "I-PER", "O", "B-PER", "O", "B-X", "O", "O"]


def test_two_spans_in_one_word_cut_it():
    found = registry.schema("spans").reread({"text": "Paris-Berlin", "label": [[0, 5, "LOC"], [6, 12, "LOC"]]})
    assert found == ("tokens", {"tokens": ["Paris", "-", "Berlin"], "tags": ["B-LOC", "O", "B-LOC"]})


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ("good", "no-spans"),
        (["good", "bad"], "no-spans"),
        ([[0.5, 2, "PER"]], "no-spans"),
        ([[60, 70, "PER"]], "span-outside"),
        ([[0, 12, "PER"], [4, 12, "X"]], "shared-word"),
    ],
)
def test_what_is_no_span_is_refused(spans, reason):
    with pytest.raises(Unusable) as raised:
        registry.schema("spans").reread({"text": TEXT, "label": spans})
    assert raised.value.reason == reason


def test_texts_with_classes_are_not_learned_as_spans(models, tmp_path):
    write_rows(tmp_path / "d.jsonl", [{"text": f"{TEXT} {n}", "label": "ab"[n % 2]} for n in range(40)])
    recipe = {"name": "r", "model": str(models / "encoder"), "task": "token-classification"}
    with pytest.raises(DataError, match="no spans of characters") as raised:
        check_recipe({**recipe, "domains": {"d": str(tmp_path / "d.jsonl")}})
    assert "set task: text-classification" in str(raised.value)
