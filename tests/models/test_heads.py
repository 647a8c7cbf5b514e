"""A checkpoint's own head: its rows are what its config calls them, whatever the recipe lists at their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import command, labelled, make_lock, make_tokenizer, write_recipe, write_rows

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.models.attach import attach_adapter
from hfadapt.models.base import BaseRef
from hfadapt.models.heads import BaseHead
from hfadapt.models.load import load_base
from hfadapt.models.merge import save_base

CPU = torch.device("cpu")
STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")
IDS = torch.tensor([[7, 8, 9, 10], [20, 21, 22, 23]])


def classifier(folder: Path, names: tuple[str, ...], kind: str = "bert", problem_type: str | None = None) -> Path:
    """A tiny classifier with a head for these classes, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes: dict[str, Any] = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **sizes, intermediate_size=64, max_position_embeddings=256, pad_token_id=0)
    config.num_labels = len(names)
    config.id2label, config.problem_type = dict(enumerate(names)), problem_type
    torch.manual_seed(3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def own_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification

    return logits(AutoModelForSequenceClassification.from_pretrained(folder))


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
@pytest.mark.parametrize(
    ("names", "labels", "rows"),
    [
        (("good", "bad"), ("bad", "good"), [1, 0]),
        (("Good", " BAD"), ("bad", "good"), [1, 0]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("2", "1", "0"), [2, 1, 0]),
        (STARS, ("5 stars", "1_star"), [4, 0]),
        (("bad", "good"), ("bad", "good"), [0, 1]),
    ],
)
def test_rows_follow_the_names(tmp_path, kind, names, labels, rows):
    folder = classifier(tmp_path / "base", names, kind)
    base = load_base(make_lock(folder, "text-classification"), labels, CPU)
    torch.testing.assert_close(logits(base.model), own_logits(folder)[:, rows])
    assert base.model.config.id2label == dict(enumerate(labels))
    assert base.model.num_labels == base.model.config.num_labels == len(labels)
    assert base.fresh_modules == ()
    assert bool(base.sorted_modules) is bool(base.head_note) is (rows != [0, 1])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("names", "problem_type"),
    [(STARS, None), (("a", "b"), None), (("bad", "good"), "multi_label_classification"), (("bad",), None)],
)
def test_a_head_for_something_else_is_new(tmp_path, kind, names, problem_type):
    folder = classifier(tmp_path / "base", names, kind, problem_type)
    lock = make_lock(folder, "text-classification")
    base = load_base(lock, ("bad", "good"), CPU)
    assert base.fresh_modules == ("classifier",)
    assert "new" in str(base.head_note)
    assert names[0] in str(base.head_note)
    assert logits(base.model).shape == (2, 2)
    if len(names) == 2:
        assert not torch.allclose(logits(base.model), own_logits(folder))
    again = load_base(lock, ("bad", "good"), CPU)
    torch.testing.assert_close(logits(base.model), logits(again.model))


def test_a_few_numbers_are_not_the_first_of_many_unnamed_classes(tmp_path):
    folder = classifier(tmp_path / "base", tuple(f"LABEL_{number}" for number in range(12)))
    base = load_base(make_lock(folder, "text-classification"), ("0", "1"), CPU)
    assert base.fresh_modules == ("classifier",)
    assert "new" in str(base.head_note)


def test_a_head_in_another_order_goes_with_the_adapter(tmp_path):
    folder = classifier(tmp_path / "base", ("good", "bad"))
    lock = make_lock(folder, "text-classification")
    model = attach_adapter(load_base(lock, ("bad", "good"), CPU), lock)
    assert "classifier" in model.peft_config["default"].modules_to_save


def test_a_base_made_by_a_stage_keeps_a_sorted_head(tmp_path):
    folder = classifier(tmp_path / "base", ("good", "bad"))
    ref = BaseRef.of(make_lock(folder, "text-classification"))
    base = load_base(ref, ("bad", "good"), CPU)
    made = save_base(base, tmp_path / "made", parent=ref, made_by="prune", how="nothing")
    again = load_base(made, ("bad", "good"), CPU)
    torch.testing.assert_close(logits(again.model), logits(base.model))
    assert again.head_note is None


def test_a_number_is_kept_where_the_base_gives_one(tmp_path):
    folder = classifier(tmp_path / "base", ("LABEL_0",), problem_type="regression")
    base = load_base(make_lock(folder, "text-regression"), (), CPU)
    torch.testing.assert_close(logits(base.model), own_logits(folder))
    several = classifier(tmp_path / "several", ("LABEL_0", "LABEL_1"))
    assert load_base(make_lock(several, "text-regression"), (), CPU).fresh_modules == ("classifier",)


def test_a_classifier_of_texts_is_none_of_tokens(tmp_path):
    head = BaseHead(architecture="BertForSequenceClassification", classes=("O", "B-X"))
    task = registry.task("token-classification")
    assert head.rows(task, ("O", "B-X"), "BertForTokenClassification") is None


def test_a_head_of_other_rows_than_names_is_refused(tmp_path):
    folder = classifier(tmp_path / "base", STARS)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}))
    for labels in (("bad", "good"), ("good", "bad")):
        with pytest.raises(RequestError, match="do not have the sizes") as error:
            load_base(make_lock(folder, "text-classification"), labels, CPU)
        assert "classifier.bias [5] instead of [2]" in str(error.value)


@pytest.mark.parametrize("names", [("good", "bad"), STARS])
def test_from_the_plan_to_the_card(tmp_path, names):
    """The card's snippet runs, with plain transformers and peft, and what became of the head is said and kept."""
    classifier(tmp_path / "base", names)
    write_rows(tmp_path / "rows.jsonl", labelled(96))
    fields = {
        "name": "t",
        "model": "./base",
        "task": "text-classification",
        "domains": {"d": "rows.jsonl"},
        "train": {"max_steps": 2, "batch_rows": 8, "learning_rate": 1e-6},
        "evaluate": {"security": False, "drift": False, "transfer": False, "resamples": 200},
    }
    write_recipe(tmp_path / "r.yaml", fields)
    done = command("run", "r.yaml", folder=tmp_path)
    assert done.code == 0, done.out + done.err
    said = "the base's own head is used" if len(names) == 2 else "the head is new"
    assert f"note: {said}" in done.out + done.err
    cell = tmp_path / "runs" / "t" / "d" / "this-machine"
    assert said in (cell / "README.md").read_text()
    assert "ignore_mismatched_sizes=True" in (cell / "README.md").read_text()
    assert said in command("plan", "r.yaml", folder=tmp_path).out.replace("\n", " ").replace("  ", " ")
