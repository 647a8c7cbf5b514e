"""From sources to splits as a whole: accounting, cache, delivery, determinism, streaming."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfadapt import data
from hfadapt.core import registry
from hfadapt.core.errors import DataError, RunError
from hfadapt.data import joins, prepared
from hfadapt.data.rows import text_key, tokens
from hfadapt.data.split_files import file_hashes
from hfadapt.data.stream import SeenKeys
from hfadapt.recipe.schema import Recipe
from hfadapt.records.stages import DataRecord

from .faults import chats, pairs, sentences

SPLITS = ("train", "validation", "test")


def recipe(domains, task="text-classification", **asked):
    return Recipe(name="r", model="none", task=task, domains=domains, **asked)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def prepare(folder, domains, task="text-classification", cache="cache", **asked):
    return data.prepare(recipe(domains, task, **asked), recipe_folder=folder, cache=folder / cache)


def dropped_of(made):
    return [json.loads(line) for line in (made.folder / "data" / "dropped.jsonl").open(encoding="utf-8")]


WORDS = ("red", "blue", "tall", "small", "house", "river", "cloud", "stone")
LINE = st.one_of(
    st.builds(
        lambda words, label: json.dumps({"text": " ".join(words), "label": label}),
        st.lists(
            st.sampled_from(["red", "blue", "tall", "small", "house", "river", "cloud", "stone"]),
            min_size=0,
            max_size=9,
        ),
        st.sampled_from(["a", "b", None]),
    ),
    st.sampled_from(["{broken", "[]", "", '{"text": "no label here"}']),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINE, min_size=1, max_size=12), st.booleans(), st.sampled_from([None, 20]), st.booleans())
def test_rows_are_accounted_for_exactly(tmp_path_factory, lines, streaming, train_rows, near):
    folder = tmp_path_factory.mktemp("rows")
    good = [json.dumps(row) for row in sentences(120)]
    every = [line for pair in zip(good, [*lines, *[None] * 120], strict=False) for line in pair if line is not None]
    (folder / "a.jsonl").write_text("\n".join(every) + "\n")
    asked = {"streaming": streaming, "train_rows": train_rows, "dedupe": {"near": near}}
    made = prepare(folder, {"d": "a.jsonl"}, data=asked)["d"]
    record, dropped = made.record, dropped_of(made)
    assert record.rows_in == len(every)
    assert record.rows_in == record.rows_kept + sum(record.dropped.values())
    assert record.dropped == dict(Counter(each["reason"] for each in dropped))
    kept = {split: made.rows(split) for split in SPLITS}
    assert record.splits == {split: len(rows) for split, rows in kept.items()}
    places = [row["row"] for rows in kept.values() for row in rows] + [each["row"] for each in dropped]
    assert sorted(places) == list(range(len(every)))
    for rows in kept.values():
        assert all(json.loads(every[row["row"]])["text"] == row["text"] for row in rows)


def test_nothing_alike_is_left_across_splits(tmp_path):
    rows = sentences(300)
    rows += [{**row, "text": row["text"].replace("were", "are")} for row in rows[:100]] + rows[100:120]
    for near in (True, False):
        made = prepare(tmp_path, {"d": write(tmp_path / "a.jsonl", rows)}, data={"dedupe": {"near": near}})["d"]
        everything = [(row["text"], split) for split in SPLITS for row in made.rows(split)]
        join = joins.Join([tokens(text) for text, _ in everything], 0.8)
        assert not [pair for pair in join.pairs() if everything[pair.first][1] != everything[pair.second][1]]
    assert made.record.rows_kept == 400


def test_deliver_read_and_record(tmp_path):
    write(tmp_path / "a.jsonl", sentences(60))
    made = prepare(tmp_path, {"d": "a.jsonl"})["d"]
    record = made.copy_into(tmp_path / "cell")
    assert DataRecord.read(tmp_path / "cell" / "data.json") == record
    rows = data.read_split(tmp_path / "cell", "train")
    assert list(rows[0]) == ["text", "label", "source", "row", "line", "in_file"]
    assert (rows[0]["source"], rows[0]["line"], rows[0]["in_file"]) == ("a.jsonl", rows[0]["row"] + 1, None)
    assert record.files == file_hashes(tmp_path / "cell")
    assert data.read_split(tmp_path / "cell", "train", limit=20) == rows[::3]
    assert {path.name for path in (tmp_path / "cell" / "data").iterdir()} == {
        *(f"{split}.parquet" for split in SPLITS),
        "dropped.jsonl",
    }
    (tmp_path / "cell" / "data" / "train.parquet").write_bytes(b"changed in the cell")
    assert made.rows("train") == rows
    with pytest.raises(RunError, match="not been prepared"):
        data.read_split(tmp_path / "nowhere", "train")
    with pytest.raises(RunError):
        data.read_split(tmp_path / "cell", "nonsense")


def test_cache_is_reused_until_content_or_settings_change(tmp_path):
    write(tmp_path / "a.jsonl", sentences(60))
    said = []
    first = data.prepare(recipe({"d": "a.jsonl"}), recipe_folder=tmp_path, cache=tmp_path / "c", progress=said.append)
    assert any("writing d" in line for line in said)
    said.clear()
    asked = recipe({"d": "a.jsonl"}, quant="nf4", data={"max_length": 64, "augment": {"typos": 0.1}})
    again = data.prepare(asked, recipe_folder=tmp_path, cache=tmp_path / "c", progress=said.append)
    assert again["d"].folder == first["d"].folder
    assert not any("writing" in line for line in said)
    assert prepare(tmp_path, {"d": "a.jsonl"}, cache="c", data={"seed": 1})["d"].folder != first["d"].folder
    write(tmp_path / "a.jsonl", sentences(61))
    assert prepare(tmp_path, {"d": "a.jsonl"}, cache="c")["d"].folder != first["d"].folder


@pytest.mark.parametrize("streaming", [False, True])
def test_same_bytes_in_another_process(tmp_path, streaming):
    write(tmp_path / "a.jsonl", sentences(150))
    here = prepare(tmp_path, {"d": "a.jsonl"}, data={"streaming": streaming})["d"]
    code = (
        "import sys, pathlib\nfrom hfadapt import data\nfrom hfadapt.recipe.schema import Recipe\n"
        "p = pathlib.Path(sys.argv[1])\n"
        "r = Recipe(name='r', model='none', task='text-classification', domains={'d': 'a.jsonl'},"
        " data={'streaming': sys.argv[2] == 'True'})\n"
        "print(data.prepare(r, recipe_folder=p, cache=p / 'other')['d'].record.files)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(streaming)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "4242"},
    )
    assert done.stdout.strip() == str(here.record.files), done.stderr


def test_import_is_cheap():
    heavy = "torch transformers datasets numpy pyarrow rapidfuzz"
    code = f"import sys, hfadapt.data; print([name for name in '{heavy}'.split() if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_domains_are_compared_and_weights_and_limits_hold(tmp_path):
    rows = sentences(200)
    write(tmp_path / "a.jsonl", rows[:100])
    write(tmp_path / "b.jsonl", rows[50:])
    made = prepare(
        tmp_path,
        {"one": "a.jsonl", "two": {"sources": [{"source": "b.jsonl", "rows": 120}]}},
        data={"train_rows": 30, "validation": 10, "test": 10},
    )
    one, two = made["one"].record, made["two"].record
    assert one.dropped == {"over-train-rows": 50}
    assert two.rows_in == 120
    assert two.dropped["exact-duplicate"] == 50
    assert all(each["duplicate_of"]["source"] == "a.jsonl" for each in dropped_of(made["two"]) if each["duplicate_of"])
    assert two.splits == {"train": 30, "validation": 10, "test": 10}
    assert two.steps["dedupe"]["of_other_domains"] == 50


def test_several_formats_come_out_the_same(tmp_path):
    write(tmp_path / "a.jsonl", pairs(30))
    alpaca = [
        {"instruction": row["prompt"] + " Say!", "input": "", "output": row["completion"]} for row in pairs(60)[30:]
    ]
    write(tmp_path / "b.jsonl", alpaca)
    write(tmp_path / "c.jsonl", chats(30))
    made = prepare(tmp_path, {"d": {"sources": ["a.jsonl", "b.jsonl"]}}, "causal-lm")["d"]
    assert made.record.form == "completion"
    made = prepare(tmp_path, {"d": {"sources": ["a.jsonl", "b.jsonl", "c.jsonl"]}}, "causal-lm")["d"]
    assert made.record.form == "messages"
    assert all(turn.keys() == {"role", "content"} for row in made.rows("train") for turn in row["messages"])


def test_template_makes_labelled_completions(tmp_path):
    write(tmp_path / "a.jsonl", sentences(60))
    template = {"prompt": "Review: {text}\nIt is", "completion": " {label}"}
    made = prepare(tmp_path, {"d": "a.jsonl"}, "causal-lm", template=template)["d"]
    assert made.record.labels == ("bad", "good")
    assert made.record.completions == {"bad": " bad", "good": " good"}
    row = made.rows("train")[0]
    assert row["prompt"].startswith("Review: ")
    assert row["completion"] == f" {row['label']}"
    with pytest.raises(DataError, match="cannot learn from what the template makes"):
        prepare(tmp_path, {"d": "a.jsonl"}, template=template)


def test_given_splits_are_respected_and_cleaned_of_leaks(tmp_path):
    rows = sentences(120)
    write(tmp_path / "train.jsonl", rows[:100])
    write(tmp_path / "held.jsonl", [*rows[90:], rows[119]])
    made = prepare(tmp_path, {"d": {"source": "train.jsonl", "test": "held.jsonl"}})["d"]
    assert made.record.splits["test"] == 30
    assert {row["source"] for row in made.rows("test")} == {"held.jsonl"}
    leaks = [each for each in dropped_of(made) if each["source"] == "train.jsonl"]
    assert sorted(each["row"] for each in leaks) == list(range(90, 100))
    assert all(each["duplicate_of"]["source"] == "held.jsonl" for each in leaks)
    assert made.record.steps["split"]["given"] == ["test"]


def test_all_problems_of_all_domains_are_named(tmp_path):
    write(tmp_path / "one.jsonl", [{**row, "label": "same"} for row in sentences(40)])
    write(tmp_path / "few.jsonl", sentences(2))
    with pytest.raises(DataError) as error:
        prepare(tmp_path, {"a": "one.jsonl", "b": "few.jsonl"})
    assert "domains.a" in str(error.value)
    assert "domains.b" in str(error.value)
    with pytest.raises(DataError) as error:
        prepare(tmp_path, {"a": "missing.csv", "b": "gone.csv"})
    assert "domains.a: missing.csv" in str(error.value)
    assert "domains.b: gone.csv" in str(error.value)
    assert not list((tmp_path / "cache").glob("prepared/.tmp*"))


def test_empty_source(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="there are no rows"):
        prepare(tmp_path, {"d": "a.jsonl"})


def test_sample_brings_its_provenance(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    from hfadapt.core import samples

    parquet.write_table(pyarrow.Table.from_pylist(sentences(60)), tmp_path / "rows.parquet")
    fields = {"name": "vader/tweets", "package": "p", "version": "1", "sha256": "f" * 64, "archive": "sdist"}
    fields |= {"files": (), "prepare": "vader", "license": "mit", "language": "en", "citation": "Someone 2014"}
    sample = samples.Sample(**fields, path=tmp_path / "rows.parquet", url="https://example.org")
    monkeypatch.setattr(samples, "dataset", lambda name: sample)
    source = prepare(tmp_path, {"d": "sample:vader/tweets"})["d"].record.sources[0]
    assert (source.source, source.rows, source.license, source.citation) == (
        "sample:vader/tweets",
        60,
        "mit",
        "Someone 2014",
    )
    assert source.sha256 == "f" * 64


def test_stream_drops_exact_duplicates_and_splits_by_hash(tmp_path):
    rows = sentences(2000)
    write(tmp_path / "a.jsonl", [*rows, *rows[:50], {**rows[2], "label": "bad"}])
    made = prepare(tmp_path, {"d": "a.jsonl"}, data={"streaming": True, "test": 0.2, "validation": 37})["d"]
    assert made.record.dropped == {"exact-duplicate": 50, "label-conflict": 1}
    assert made.record.splits["validation"] == 37
    assert 340 < made.record.splits["test"] < 460
    assert made.record.labels == ("bad", "good")


def test_a_class_is_written_in_one_way_in_all_chunks_of_a_stream(tmp_path, monkeypatch):
    """In the first chunk without, in the second with a blank before it; scoring finds each row among the choices."""
    monkeypatch.setattr("hfadapt.data.stream.CHUNK_ROWS", 200)
    rows = [
        {"prompt": row["text"], "completion": f"{' ' * (number >= 200)}{row['label']}"}
        for number, row in enumerate(sentences(400))
    ]
    write(tmp_path / "a.jsonl", rows)
    domain = {"source": "a.jsonl", "labels": ["good", "bad"]}
    made = prepare(tmp_path, {"d": domain}, "causal-lm", data={"streaming": True, "test": 0.2})["d"]
    assert made.record.completions == {"bad": "bad", "good": "good"}
    assert {row["completion"] for split in SPLITS for row in made.rows(split)} == {"bad", "good"}


@pytest.mark.parametrize("form", ["messages", "completion"])
@pytest.mark.parametrize("count", [0.1, 30])
def test_rows_of_a_stream_that_begin_alike_are_spread_over_the_splits(tmp_path, form, count):
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Hello!"},
                {"role": "assistant", "content": "How can I help?"},
                *each,
            ]
        }
        if form == "messages"
        else {"prompt": f"Say something{'.!'[n % 2]}", "completion": each[0]["content"]}
        for n, each in enumerate(row["messages"] for row in chats(300))
    ]
    write(tmp_path / "a.jsonl", rows)
    settings = {"streaming": True, "test": count, "validation": count}
    splits = prepare(tmp_path, {"d": {"source": "a.jsonl"}}, "causal-lm", data=settings)["d"].record.splits
    assert splits["train"] > 200
    assert all(15 <= splits[name] <= 50 for name in ("test", "validation"))


def test_rows_of_a_stream_with_the_same_prompt_stay_together(tmp_path):
    rows = [{"prompt": f"Where is {n // 4}?", "completion": f"at {n}"} for n in range(400)]
    write(tmp_path / "a.jsonl", rows)
    made = prepare(tmp_path, {"d": {"source": "a.jsonl"}}, "causal-lm", data={"streaming": True})["d"]
    prompts = [{row["prompt"] for row in made.rows(split)} for split in SPLITS]
    assert sum(map(len, prompts)) == 100


def test_what_an_older_version_prepared_is_not_delivered(tmp_path, monkeypatch):
    """Version 1 left answers that differ in white space alone as they were."""
    write(tmp_path / "a.jsonl", sentences(60))
    monkeypatch.setattr(prepared, "CODE_VERSION", 1)
    old = prepare(tmp_path, {"d": "a.jsonl"})["d"]
    monkeypatch.undo()
    now = prepare(tmp_path, {"d": "a.jsonl"})["d"]
    assert now.folder != old.folder
    monkeypatch.setattr(registry, "made_by", lambda kind, name: "a package 1.0")
    assert prepare(tmp_path, {"d": "a.jsonl"})["d"].folder != now.folder


def test_a_stream_with_an_empty_split_counts_its_rows(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": f"row {i} of {i * 7919}", "label": "ab"[i % 2]} for i in range(300)])
    write(tmp_path / "v.jsonl", [{"text": "row 1 of 7919", "label": "b"}, {"text": "seen nowhere else", "label": "c"}])
    write(tmp_path / "t.jsonl", [{"text": "row 1 of 7919", "label": "b"}])
    domain = {"source": "a.jsonl", "validation": "t.jsonl", "test": "v.jsonl"}
    with pytest.raises(DataError) as error:
        prepare(tmp_path, {"d": domain}, data={"streaming": True})
    assert "the validation split is empty" in str(error.value)
    assert "train 299, validation 0, test 2" in str(error.value)
    assert "'c' only in test: 1 row" in str(error.value)


def test_a_stream_says_that_it_takes_no_mean_of_numbers(tmp_path):
    rows = [{"text": f"row {i} of {i * 7919}", "score": i / 10} for i in range(60)]
    write(tmp_path / "a.jsonl", [*rows, {"text": "row 5 of 39595", "score": 0.6}])
    domain = {"source": "a.jsonl", "columns": {"label": "score"}}
    said = []
    asked = recipe({"d": domain}, "text-regression", data={"streaming": True})
    made = data.prepare(asked, recipe_folder=tmp_path, cache=tmp_path / "cache", progress=said.append)["d"]
    assert any("takes no mean" in line for line in said[:3])
    (found,) = [each for each in made.record.noticed if each.code == "numbers-not-averaged"]
    assert ": 1 of the rows; a stream takes no mean" in found.message
    kept = [row["label"] for split in SPLITS for row in made.rows(split) if row["text"] == "row 5 of 39595"]
    assert kept == [0.5]
    quiet = prepare(tmp_path, {"d": domain}, "text-regression", data={"streaming": True, "conflicts": "keep"})["d"]
    assert not [each for each in quiet.record.noticed if each.code == "numbers-not-averaged"]
    assert quiet.record.rows_kept == made.record.rows_kept + 1


def test_seen_keys_over_many_runs(monkeypatch):
    seen = SeenKeys()
    keys = [text_key(str(number)) for number in range(300_000)]
    assert all(map(seen.add, keys))
    assert not any(map(seen.add, keys[::1000]))
    assert len(seen._runs) <= 3


@pytest.mark.parametrize(("count", "level"), [(12, "hard"), (3, "soft")])
def test_a_class_that_is_left_out_whole_is_said_with_why(tmp_path, count, level):
    alike = [{"text": f"the same old hum of a machine in hall number {n}", "label": "noise"} for n in range(count)]
    hum = [{"text": f"the same old hum of a machine in hall number {n + count}", "label": "hum"} for n in range(30)]
    rows = [*sentences(60), *hum, *alike]
    [made] = prepare(tmp_path, {"one": write(tmp_path / "one.jsonl", rows)}).values()
    found = {each.code: each for each in made.record.noticed}
    assert found["class-lost"].level == level
    assert f"every row of 'noise' ({count} near-duplicate) was left out" in found["class-lost"].message
    assert "data.dedupe.near: false" in found["class-lost"].fix
    assert "no_label: [noise] of the domain, where that is no class" in found["class-lost"].fix
    without = prepare(tmp_path, {"one": {"source": "one.jsonl", "no_label": ["noise"], "labels": None}})["one"]
    assert not any(each.code == "class-lost" for each in without.record.noticed)
    assert "noise" not in without.record.labels
    kept = prepare(tmp_path, {"one": "one.jsonl"}, data={"dedupe": {"near": False}})["one"]
    assert not any(each.code == "class-lost" for each in kept.record.noticed)
    assert kept.record.label_counts["train"]["noise"] > 0


@pytest.mark.parametrize(("count", "level"), [(12, "hard"), (3, "soft")])
def test_a_stream_says_too_that_a_class_is_left_out_whole(tmp_path, count, level):
    rows = sentences(60)
    again = [{"text": row["text"], "label": "again"} for row in rows[:count]]
    write(tmp_path / "one.jsonl", [*rows, *again])
    domain = {"source": "one.jsonl", "labels": None}
    made = prepare(tmp_path, {"one": domain}, data={"streaming": True})["one"]
    found = {each.code: each for each in made.record.noticed}["class-lost"]
    assert (found.level, found.classes, found.rows) == (level, ("again",), tuple(range(60, 60 + count)))
    assert f"every row of 'again' ({count} label-conflict) was left out" in found.message
    assert "data.conflicts: keep" in found.fix
    kept = prepare(tmp_path, {"one": domain}, data={"streaming": True, "conflicts": "keep"})["one"]
    assert not any(each.code == "class-lost" for each in kept.record.noticed)
