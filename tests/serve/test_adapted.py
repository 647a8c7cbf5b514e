"""`load_adapted`: the same answers as in the evaluation, in any order and batch, for classes, choices and text."""

from __future__ import annotations

import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow import parquet
from tiny import NO_CHECKS, command, labelled, recipe_fields, run_of_chats, write_recipe, write_rows

from hfadapt import Run, load_adapted
from hfadapt.core.errors import RequestError, RunError
from hfadapt.modalities.text import token_ids
from hfadapt.serve.adapted import Adapted
from hfadapt.tasks.causal_lm.task import KIND, asked_ids, question


def trained(folder, rows, model, task, **fields):
    write_rows(folder / "one.jsonl", rows)
    fields = recipe_fields(model, task, **fields)
    fields["evaluate"] |= {**NO_CHECKS, "general_text": False}
    write_recipe(folder / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder / "runs/tiny/one/this-machine"


@pytest.fixture(scope="module")
def classifier(models, tmp_path_factory):
    more = {"train": {"batch_rows": 8, "max_steps": 12, "learning_rate": 0.01}}
    return trained(tmp_path_factory.mktemp("cls"), labelled(100), models / "encoder", "text-classification", **more)


@pytest.fixture(scope="module")
def chooser(models, tmp_path_factory):
    template = {"prompt": "{text} :", "completion": " {label}"}
    return trained(tmp_path_factory.mktemp("lm"), labelled(100), models / "lm", "causal-lm", template=template)


def test_rows(cell):
    return parquet.read_table(cell / "data/test.parquet").to_pylist(), parquet.read_table(
        cell / "predictions.parquet"
    ).to_pylist()


test_rows.__test__ = False


def test_a_classifier_answers_as_it_was_evaluated(classifier):
    rows, said = test_rows(classifier)
    adapted = load_adapted(classifier)
    answers = adapted.predict([row["text"] for row in rows])
    assert [answer.label for answer in answers] == [row["adapter"] for row in said]
    assert [answer.probability for answer in answers] == pytest.approx([row["confidence"] for row in said], abs=1e-4)
    assert adapted.predict(rows[0]["text"])[0].label == answers[0].label
    assert not any(parameter.requires_grad for parameter in adapted.model.parameters())


@pytest.mark.parametrize("kept", ["dicts", "frame", "arrow", "data set"])
@pytest.mark.parametrize("which", ["classifier", "chooser"])
def test_rows_of_a_table_are_asked_by_their_columns_and_no_name_of_a_column_is(request, which, kept):
    import datasets
    import pandas
    import pyarrow

    adapted = load_adapted(request.getfixturevalue(which))
    rows = [{"id": n, "text": row["text"]} for n, row in enumerate(labelled(6))]
    tables = {
        "dicts": rows,
        "frame": pandas.DataFrame(rows),
        "arrow": pyarrow.Table.from_pylist(rows),
        "data set": datasets.Dataset.from_list(rows),
    }
    expected = [answer.label for answer in adapted.predict([row["text"] for row in rows])]
    assert [answer.label for answer in adapted.predict(tables[kept])] == expected
    assert [answer.label for answer in adapted.predict(rows[0])] == expected[:1]


def test_a_row_without_what_is_asked_about_is_told(classifier):
    with pytest.raises(RequestError, match="row 1 has no text, only id"):
        load_adapted(classifier).predict([{"text": "a film"}, {"id": 3}])


def test_a_run_or_a_cell_stands_for_its_folder(classifier):
    run = Run(classifier.parent.parent)
    assert load_adapted(run).labels == load_adapted(run.cells()[0]).labels == load_adapted(str(classifier)).labels


def test_plain_peft_gives_the_same_answers(classifier, models):
    """As a stranger would: transformers, peft, the folder, and nothing of hfadapt."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    rows, said = test_rows(classifier)
    base = AutoModelForSequenceClassification.from_pretrained(models / "encoder", num_labels=2)
    model = PeftModel.from_pretrained(base, classifier / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier / "adapter")
    batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert [("bad", "good")[i] for i in logits.argmax(-1)] == [row["adapter"] for row in said]


def test_a_language_model_chooses_as_it_was_evaluated(chooser):
    rows, said = test_rows(chooser)
    adapted = load_adapted(chooser)
    assert adapted.labels == ("bad", "good")
    texts = [row["prompt"].removesuffix(" :") for row in rows]
    answers = adapted.predict(texts)
    assert [answer.label for answer in answers] == [row["adapter"] for row in said]
    assert [answer.probability for answer in answers] == pytest.approx([row["confidence"] for row in said], abs=5e-3), (
        "bfloat16 rounds otherwise in another batch"
    )


def test_a_prompt_is_left_open_as_in_training():
    """By a tokenizer that closes every text."""

    def closing(text, **_):
        return {"input_ids": [len(word) for word in text.split()] + [9]}

    closing.eos_token_id = 9
    adapted = Adapted(None, closing, "causal-lm", (), {}, 64, prompt="to {text} :")
    assert asked_ids(adapted, "what") == [2, 4, 1]


@pytest.mark.parametrize("cell", ["classifier", "chooser"])
def test_a_tokenizer_without_a_pad_token(cell, request):
    """Padding is masked, so that any token will do."""
    adapted, texts = load_adapted(request.getfixturevalue(cell)), ["lovely bright film superb", "awful"]
    known = adapted.predict(texts)
    adapted.tokenizer.pad_token = None
    assert adapted.tokenizer.pad_token_id is None
    assert adapted.predict(texts) == known


def test_a_text_that_is_too_long_loses_its_beginning_as_in_training(chooser):
    adapted = load_adapted(chooser)
    asked = question(adapted, "lovely bright " * 200)
    assert len(token_ids(asked)) <= adapted.max_length
    assert token_ids(asked)[-4:] == token_ids(question(adapted, "lovely bright"))[-4:]


def test_a_prompt_that_is_too_long_is_continued_from_its_end(chooser):
    """Where text is written freely, as where one of a few answers is chosen; what fits stays as it is."""
    adapted = replace(load_adapted(chooser), choices={}, labels=())
    whole = asked_ids(replace(adapted, max_length=1 << 20), "lovely bright " * 200)
    assert len(whole) > adapted.max_length
    with mock.patch("hfadapt.models.generate.continuations", return_value=[[5]]) as written:
        adapted.predict("lovely bright " * 200)
        adapted.predict("lovely bright")
    (long,), (short,) = (call.args[2] for call in written.call_args_list)
    assert long == whole[-len(long) :]
    assert len(long) == adapted.max_length - 2, "one token and the end of the answer"
    assert short == asked_ids(adapted, "lovely bright")


def test_answers_that_differ_in_white_space_alone(models, tmp_path):
    rows = [
        {"prompt": row["text"], "completion": f"{' ' * (i // 2 % 2)}{row['label']}"}
        for i, row in enumerate(labelled(80))
    ]
    cell = trained(tmp_path, rows, models / "lm", "causal-lm")
    adapted = load_adapted(cell)
    assert set(adapted.choices) == {"good", "bad"}
    assert {row["adapter"] for row in test_rows(cell)[1]} <= {"good", "bad"}


def test_rare_answers_that_differ_in_white_space_alone_are_all_choices():
    """Of too few rows each to be classes."""
    rows = [{"completion": text} for text in ("yes", " yes", "no")]
    texts = KIND.answer_texts("completion", {}, lambda split: rows)
    assert sorted(texts.values()) == [" yes", "no", "yes"]


def test_a_chat_model_generates_and_stops(models, tmp_path):
    turns = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for row in labelled(80)
    ]
    # At some seeds so little is not learned, with or without the fast path; at this one it is by a wide margin.
    more = {"train": {"batch_rows": 8, "max_steps": 90, "learning_rate": 0.01, "seed": 2}}
    cell = trained(tmp_path, turns, models / "lm", "causal-lm", **more)
    answers = load_adapted(cell).predict(["lovely bright film superb", "dreadful stale film awful"], max_new_tokens=20)
    assert [answer.generated for answer in answers] == ["good", "bad"], "learned the answer, and to stop after it"
    assert (answers[0].label, str(answers[0])) == (None, "good")


def test_an_adapter_whose_file_was_changed_is_not_loaded(classifier, tmp_path):
    import shutil

    copied = shutil.copytree(classifier, tmp_path / "one/this-machine")
    with (copied / "adapter/adapter_model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x80\x7f")
    with pytest.raises(RunError, match="has been changed"):
        load_adapted(copied)


ODD = ("", " ", "\n\n", "\0", "\u200b", "a\ud800b", "\ud83d\ude00", "👩‍👩‍👧", "word " * 5000)


@pytest.mark.parametrize("kind", ["classifier", "chooser", "writer"])
def test_any_text_is_answered(kind, classifier, chooser):
    adapted = load_adapted(classifier if kind == "classifier" else chooser)
    adapted = replace(adapted, choices={}, prompt=None) if kind == "writer" else replace(adapted, prompt=None)
    together = adapted.predict(ODD, max_new_tokens=4)
    alone = [adapted.predict(text, max_new_tokens=4)[0] for text in ODD]
    assert [(each.label, each.generated) for each in together] == [(each.label, each.generated) for each in alone]
    assert together[ODD.index("\ud83d\ude00")].text == "😀"
    assert adapted.predict([]) == []
    cut = [each.cut for each in together]
    assert not any(cut[:6])
    assert cut[-1].length > 5000 > adapted.max_length >= cut[-1].read > 0
    assert isinstance(cut[-1].length, int)


@pytest.mark.parametrize("wrong", [5, None, b"text", ["text", None], [["text"]]])
def test_what_is_no_text_is_refused(classifier, wrong):
    with pytest.raises(RequestError, match="a text is expected"):
        load_adapted(classifier).predict(wrong)


def test_an_exported_adapter_of_a_folder_asks_no_hub(classifier, models, tmp_path, monkeypatch):
    from hfadapt.export.write import export
    from hfadapt.run_folder import Cell

    export(Cell(classifier), "adapter", tmp_path / "away/out")
    monkeypatch.chdir(tmp_path)
    with (
        mock.patch("hfadapt.models.manifest.load_base", side_effect=AssertionError("asked")),
        pytest.raises(RequestError, match="base of this adapter was not found") as found,
    ):
        load_adapted("away/out")
    assert "no folder encoder here" in str(found.value)
    assert "--base FOLDER" in str(found.value)
    shutil.copytree(models / "encoder", tmp_path / "encoder")
    assert load_adapted("away/out").predict("a lovely film")


def test_what_is_no_text_is_named_by_its_row(classifier):
    adapted = load_adapted(classifier)
    for wrong, words in (
        (["good", 5], ("row 1: a text is expected", "5")),
        (b"good", ("a text is expected", "b'good'")),
        (np.zeros((2, 3)), ("an array (2, 3) of float64",)),
        (pd.DataFrame({"text": ["good", np.nan]}), ("row 1 has no text, only nothing",)),
    ):
        with pytest.raises(RequestError) as caught:
            adapted.predict(wrong)
        assert all(each in str(caught.value) for each in words), str(caught.value)
    with pytest.raises(RequestError, match="does not write texts: its task is text-classification"):
        adapted.reply("good day")


def test_some_answers_show_themselves_as_all_do(classifier):
    answers = load_adapted(classifier).predict(np.array(["good", "bad", "so it goes"]))
    assert answers[1] == list(answers)[1]
    assert answers[:2]._repr_html_().count("<tr>") == 3


def test_a_chat_may_be_one_message(models, tmp_path):
    adapted = load_adapted(run_of_chats(tmp_path, models, "train"))
    assert adapted.reply("good day", 4) == adapted.reply([{"role": "user", "content": "good day"}], 4)
    with pytest.raises(RequestError, match="the chat has no turns"):
        adapted.reply([])
    for ask in (adapted.reply, adapted.predict):
        with pytest.raises(RequestError, match="at least one token is to be written"):
            ask("good day", max_new_tokens=0)
