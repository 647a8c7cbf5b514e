"""A recipe whose rows, columns or base cannot be used is refused through the command line, before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tiny import chats, command, labelled, pairs, recipe_fields, write_recipe, write_rows


def refused(tmp_path, model, rows, code, *words, task="text-classification", **fields):
    """Runs a recipe over `rows` and checks that it ends with `code` and all `words`, before training."""
    write_rows(tmp_path / "one.jsonl", rows)
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(model, task, **fields))
    done = command("train", "tiny.yaml", folder=tmp_path)
    assert done.code == code, done.err
    for word in words:
        assert word in done.err
    assert "Traceback" not in done.err + done.out
    assert "step 1/" not in done.err
    assert not (tmp_path / "runs/tiny/one/this-machine/adapter").exists()


def test_no_rows(models, tmp_path):
    refused(tmp_path, models / "encoder", [], 2, "one.jsonl", "fix:")


def test_one_class_only(models, tmp_path):
    rows = [{**row, "label": "good"} for row in labelled(60)]
    refused(tmp_path, models / "encoder", rows, 2, "good", "fix:")


def test_an_unknown_column(models, tmp_path):
    domains = {"one": {"source": "one.jsonl", "columns": {"text": "txt", "label": "label"}}}
    refused(tmp_path, models / "encoder", labelled(60), 2, "txt", "did you mean 'text'?", domains=domains)


def test_columns_that_do_not_fit_the_task(models, tmp_path):
    refused(tmp_path, models / "encoder", pairs(60), 2, "prompt", "fix:")


def test_all_labels_masked(models, tmp_path):
    """Chats that are cut before the first answer begins."""
    long = [
        {"messages": [{"role": "user", "content": " ".join(["river"] * 40)}, *row["messages"][1:2]]}
        for row in chats(60)
    ]
    for number, row in enumerate(long):
        row["messages"][0]["content"] += f" {number}"
    refused(
        tmp_path,
        models / "lm",
        long,
        1,
        "label",
        "fix:",
        task="causal-lm",
        data__max_length=16,
        data__dedupe={"near": False},
    )


def test_a_base_without_chat_template(models, tmp_path):
    bare = Path(shutil.copytree(models / "lm", tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    refused(tmp_path, bare, chats(60), 1, "no chat template", task="causal-lm")


def test_a_tokenizer_whose_library_gives_up(models, tmp_path):
    """Libraries in Rust end with what is no Exception of Python."""
    folder = shutil.copytree(models / "encoder", tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "pre_tokenizer": split}))
    rows = [{**row, "text": f"{'x' * 30} {row['text']}"} for row in labelled(60)]
    refused(tmp_path, folder, rows, 1, "a library gave up", "fix:")
