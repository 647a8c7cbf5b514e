"""What a plan knows of own data: rows and lengths that check measured, else a look at the sources; never of other data.

The data are a file of labelled rows and a tiny model, as on a user's disk.
"""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest
from tiny import command, labelled, pairs, recipe_fields, write_recipe, write_rows

from hfadapt.data import measured
from hfadapt.pipeline.known_data import known_data
from hfadapt.plan.work import work_of
from hfadapt.recipe.reading import load_recipe
from hfadapt.records.stages import DataRecord
from hfadapt.report.run_view import Run


def recipe(folder: Path, model: Path | str, rows: list[dict[str, Any]] | None = None, **more: Any) -> Path:
    write_rows(folder / "one.jsonl", labelled(120) if rows is None else rows)
    return write_recipe(folder / "tiny.yaml", recipe_fields(model, **more))


def known(path: Path) -> DataRecord:
    """What is known of the domain `one`."""
    return known_data(load_recipe(path), path.parent, Run(path.parent / "runs/tiny"))["one"]


def basis(folder: Path) -> str:
    done = command("plan", "tiny.yaml", "--json", folder=folder)
    assert done.code == 0, done.err
    return str(json.loads(done.out)["cells"][0]["data_basis"])


def test_the_plan_after_check_knows_what_check_found(models, tmp_path):
    recipe(tmp_path, models / "encoder")
    checked = command("check", "tiny.yaml", "--json", folder=tmp_path)
    assert checked.code == 0, checked.err
    [found] = json.loads(checked.out)
    train = found["lengths"]["train"]
    assert basis(tmp_path) == f"80 training rows of {train['mean']:.0f} tokens on average, {train['longest']} max"
    planned = json.loads(command("plan", "tiny.yaml", "train.max_steps=null", "--json", folder=tmp_path).out)
    assert planned["cells"][0]["predicted_seconds"] > 0


def test_lengths_are_never_those_of_other_data_or_of_another_tokenizer(models, tmp_path):
    shutil.copytree(models / "encoder", tmp_path / "encoder")
    path = recipe(tmp_path, tmp_path / "encoder")
    assert command("check", "tiny.yaml", folder=tmp_path).code == 0
    before = known(path)
    assert "test" in before.lengths
    # The same words, of which each is now two tokens more.
    file = tmp_path / "encoder/tokenizer.json"
    rules = json.loads(file.read_text())
    rules["normalizer"] = {"type": "Prepend", "prepend": "qq"}
    file.write_text(json.dumps(rules))
    other = known(path)
    assert other.fingerprint == before.fingerprint
    assert other.lengths["train"].mean > before.lengths["train"].mean
    with (tmp_path / "one.jsonl").open("a") as rows:
        rows.write(json.dumps({"text": "a completely new and bright river", "label": "good"}) + "\n")
    changed = known(path)
    assert changed.fingerprint == ""
    assert changed.splits["train"] == before.splits["train"] + 1


def test_a_run_of_other_rows_tells_nothing(models, tmp_path):
    path = recipe(tmp_path, models / "encoder")
    assert command("prepare", "tiny.yaml", folder=tmp_path).code == 0
    assert basis(tmp_path).startswith("80 training rows")
    write_rows(tmp_path / "one.jsonl", labelled(400, seed=2))
    found = known(path)
    assert found.fingerprint == ""
    assert found.splits == {"train": 360, "validation": 16, "test": 24}


def test_data_that_nobody_prepared_are_counted_and_sampled(models, tmp_path):
    rows = sorted(labelled(3000), key=lambda row: row["label"])
    path = recipe(tmp_path, models / "encoder", rows, data__validation=0.1, data__test=0.1)
    found = known(path)
    assert found.labels == ("bad", "good")  # though the file is sorted by them
    assert found.splits == {"train": 2400, "validation": 300, "test": 300}
    assert (found.lengths["train"].rows, found.lengths["train"].sample) == (1000, True)
    shown = basis(tmp_path)
    assert shown.startswith("not prepared yet: about 2,400 training rows of ")
    assert "in a sample of 1,000" in shown


def test_chats_count_as_the_rows_that_they_become(models, tmp_path):
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a bright river"}]
    rows = [{"messages": [{"role": "user", "content": row["prompt"]}, *turns[1:], *turns]} for row in pairs(100)]
    path = recipe(tmp_path, models / "lm", rows, task="causal-lm", data__dedupe={"near": False, "exact": False})
    counted = known(path)
    command("check", "tiny.yaml", folder=tmp_path)  # it refuses chats as alike as these, once they are measured
    checked = known(path)
    assert checked.fingerprint
    assert counted.splits == checked.splits
    assert counted.lengths["train"].longest == checked.lengths["train"].longest


def test_data_that_cannot_be_used_are_assumed(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(40))
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder"))
    (tmp_path / "one.jsonl").write_text('{"text": 1\n' * 40)
    assert basis(tmp_path) == "not prepared yet: rows of up to 128 tokens assumed"


def test_nothing_is_fetched_for_a_plan(tmp_path, monkeypatch):
    monkeypatch.setenv("HFADAPT_CACHE", str(tmp_path / "empty"))
    path = recipe(tmp_path, "sample:minilm-l6", labelled(130))
    found = known(path)
    assert found.lengths == {}
    assert work_of(load_recipe(path), "one", found).basis == (
        "not prepared yet: about 90 training rows; up to 128 tokens each assumed"
    )
    assert work_of(load_recipe(path), "one", found).rows == 90
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("limit", ["HASHED_BYTES", "READ_BYTES"])
def test_large_data_are_left_to_check(models, tmp_path, limit, monkeypatch):
    monkeypatch.setattr(f"hfadapt.pipeline.known_data.{limit}", 1000)
    path = recipe(tmp_path, models / "encoder", labelled(120, seed=5))
    assert known_data(load_recipe(path), tmp_path, Run(tmp_path / "runs/tiny")) == {}


@pytest.mark.parametrize("name", ["one.jsonl.gz", "one.parquet"])
def test_small_files_of_many_rows_are_left_to_check(models, tmp_path, name, monkeypatch):
    """What counts is how much there is to read, not how much it is packed to."""
    path = tmp_path / name
    if path.suffix == ".gz":
        rows = labelled(800)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    else:
        pandas.DataFrame([{"text": "the same", "label": "good"}] * 3_000).to_parquet(path)
    monkeypatch.setattr("hfadapt.pipeline.known_data.READ_BYTES", 2 * path.stat().st_size)
    recipe_of = write_recipe(tmp_path / "a.yaml", recipe_fields(models / "encoder", domains={"one": {"source": name}}))
    assert known_data(load_recipe(recipe_of), tmp_path, Run(tmp_path / "runs/tiny")) == {}


def test_what_the_data_lack_stands_in_the_plan(models, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = labelled(120)
    write_rows(folder / "rows.jsonl", [*rows, {"text": "a text of its own kind", "label": "odd"}])
    (folder / "film.mp4").write_bytes(b"film")
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder", domains={"one": {"source": "rows"}}))
    film = "rows: 1 file is not read: 1 .mp4 (film.mp4)"
    odd = "no test row of 'odd': how well they are told is not measured"

    def planned() -> str:
        done = command("plan", "tiny.yaml", folder=tmp_path)
        assert done.code == 0, done.err
        return " ".join(done.out.split())

    before = planned()
    assert (film in before, odd in before) == (True, False)
    assert command("check", "tiny.yaml", folder=tmp_path).code == 0
    after = planned()
    assert (film in after, odd in after) == (True, True)


def test_rows_that_are_not_prepared_are_looked_at_once(models, tmp_path, monkeypatch):
    path = recipe(tmp_path, models / "encoder")
    first = known(path)
    assert first.lengths["train"].mean > 0
    with monkeypatch.context() as patched:
        patched.setattr(measured, "estimated", None)
        patched.setattr(measured, "sampled", None)
        assert known(path) == first
        write_rows(tmp_path / "one.jsonl", labelled(121))
        with pytest.raises(TypeError):
            known(path)
    assert sum(known(path).splits.values()) == 121
