"""What leaves a run answers in `transformers.pipeline` as hfadapt does: merged, and as an adapter by plain peft."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tiny import command, labelled, recipe_fields, write_recipe, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hfadapt import load_adapted
from hfadapt.export.write import export
from hfadapt.run_folder import Cell

TEXTS = ["lovely bright film superb", "dreadful stale film awful", "the paper window"]


@pytest.fixture(scope="module")
def writer(models, tmp_path_factory):
    """A language model that was trained to write one of two words."""
    folder = tmp_path_factory.mktemp("lm")
    write_rows(folder / "one.jsonl", labelled(100))
    fields = {"dtype": "float32", "template": {"prompt": "{text} :", "completion": " {label}"}}
    fields |= {"train": {"batch_rows": 8, "max_steps": 30, "learning_rate": 0.01}}
    write_recipe(folder / "tiny.yaml", recipe_fields(models / "lm", "causal-lm", **fields))
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return Cell(folder / "runs/tiny/one/this-machine")


def test_a_classifier(classifier, models, tmp_path):
    expected = load_adapted(classifier.folder).predict(TEXTS)
    export(classifier, "merged", tmp_path / "merged", force=True)
    export(classifier, "adapter", tmp_path / "adapter")
    names = dict(enumerate(classifier.data.labels))
    base = AutoModelForSequenceClassification.from_pretrained(
        models / "encoder", num_labels=len(names), id2label=names, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(models / "encoder")
    for asked in (
        pipeline("text-classification", model=str(tmp_path / "merged")),
        pipeline(
            "text-classification",
            model=PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval(),
            tokenizer=tokenizer,
        ),
    ):
        found = asked(TEXTS)
        assert [each["label"] for each in found] == [answer.label for answer in expected]
        assert [each["score"] for each in found] == pytest.approx([each.probability for each in expected], abs=1e-4)


def test_a_language_model(writer, models, tmp_path):
    export(writer, "merged", tmp_path / "merged", variant="merged-float32", force=True)
    export(writer, "adapter", tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(models / "lm", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "lm")
    expected = [answer.label for answer in load_adapted(writer.folder).predict(TEXTS[:2])]
    assert set(expected) == {"good", "bad"}
    for asked in (
        pipeline("text-generation", model=str(tmp_path / "merged")),
        pipeline("text-generation", model=adapted, tokenizer=tokenizer),
    ):
        for text, label in zip(TEXTS, expected, strict=False):
            (said,) = asked(f"{text} :", max_new_tokens=4, do_sample=False, return_full_text=False)
            assert said["generated_text"].split()[0] == label
