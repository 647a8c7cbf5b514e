"""Sources: formats, folders, splits, bad lines, and errors that name what to do."""

import gzip
import json
from pathlib import Path

import datasets
import pytest

from hfadapt import files
from hfadapt.core.errors import DataError
from hfadapt.data import sources, unreadable
from hfadapt.data.rows import Dropped
from hfadapt.files.places import Place
from hfadapt.recipe.schema import Domain, Source

ROWS = [{"text": "first, with a comma", "label": "a"}, {"text": 'second "quoted"\nline', "label": "b"}]


def rows_of(path, folder=None, **settings):
    opened = sources.open_source(Source(source=str(path), **settings), folder or Path(path).parent)
    return list(opened.read())


def write_csv(path, delimiter):
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write(path):
    import pyarrow
    from pyarrow import parquet

    name = path.name.removesuffix(".gz")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if name.endswith((".jsonl", ".ndjson")):
        content = lines.encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    elif name == "lines.json":
        path.write_text(lines)
    elif name == "wrapped.json":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        write_csv(path, {"comma.csv": ",", "semicolon.csv": ";", "tab.tsv": "\t"}[name])


FORMATS = ("a.jsonl", "a.ndjson", "a.jsonl.gz", "a.json", "lines.json", "wrapped.json", "a.parquet")
DELIMITED = ("comma.csv", "semicolon.csv", "tab.tsv")


@pytest.mark.parametrize("name", [*FORMATS, *DELIMITED])
def test_every_format_gives_the_same_rows(tmp_path, name):
    write(tmp_path / name)
    assert [item[:2] for item in rows_of(tmp_path / name)] == list(enumerate(ROWS))


def test_text_file_has_a_row_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\r\n\u00e9t\u00e9\n".encode())
    assert [item[:3] for item in rows_of(tmp_path / "a.txt")] == [
        (0, {"text": "one"}, 1),
        (1, {"text": "\u00e9t\u00e9"}, 2),
    ]


def test_folder_and_glob_number_rows_through(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "2"}\n')
    (tmp_path / "a.jsonl").write_text('{"text": "0"}\n{oops\n')
    (tmp_path / "notes.md").write_text("ignored")
    for source in (".", "*.jsonl"):
        items = rows_of(source, tmp_path)
        assert [item[0] if isinstance(item, tuple) else item.where.row for item in items] == [0, 1, 2]
        assert isinstance(items[1], Dropped)
        assert items[1].reason == "not-json"
        assert items[1].said.startswith("line 2 of a.jsonl is not JSON")


def test_folder_with_named_splits_reads_train_unless_told(tmp_path):
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    assert [item.values["text"] for item in rows_of(".", tmp_path)] == ["train-0.jsonl", "train-1.jsonl"]
    assert [item.values["text"] for item in rows_of(".", tmp_path, split="test")] == ["test.jsonl"]
    with pytest.raises(DataError, match="no such split") as error:
        rows_of(".", tmp_path, split="validation")
    assert "test, train" in str(error.value)


@pytest.mark.parametrize("columns", [False, True])
def test_json_of_several_splits(tmp_path, columns):
    splits = {name: [{"text": f"{name} {n}", "label": "a"} for n in range(3)] for name in ("dev", "train", "test")}
    if columns:
        splits = {name: {key: [row[key] for row in rows] for key in rows[0]} for name, rows in splits.items()}
    (tmp_path / "a.json").write_text(json.dumps({"version": "1.0", **splits}))
    for split, text in ((None, "train 0"), ("test", "test 0"), ("validation", "dev 0"), ("dev", "dev 0")):
        assert rows_of("a.json", tmp_path, split=split)[0][1]["text"] == text
    opened = sources.open_domain(Domain(source="a.json", test="test"), tmp_path)
    assert [(each.name, each.split, len(list(each.read()))) for each in opened] == [
        ("a.json", "", 3),
        ("a.json:test", "test", 3),
    ]
    said = [each.message for source in opened for each in source.noticed]
    assert said == ["a.json: it also has the split dev, which nothing reads"]
    (tmp_path / "b.json").write_text(json.dumps({"test": splits["test"], "dev": splits["dev"]}))
    with pytest.raises(DataError, match="no split to train on") as error:
        rows_of("b.json", tmp_path)
    assert "split: test" in str(error.value)


def test_given_split_is_a_file_or_a_split_of_the_source(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    opened = sources.open_domain(Domain(source=".", test="test"), tmp_path)
    assert [(each.name, each.split) for each in opened] == [(".", ""), (".:test", "test")]
    opened = sources.open_domain(Domain(source="train.jsonl", test="test.jsonl"), tmp_path)
    assert [(each.name, each.split) for each in opened] == [("train.jsonl", ""), ("test.jsonl", "test")]
    with pytest.raises(DataError, match="used twice"):
        sources.open_domain(Domain(source="train.jsonl", test="train.jsonl"), tmp_path)


def test_recipe_folder_wins_over_working_directory(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "work").mkdir()
    for folder in ("recipes", "work"):
        (tmp_path / folder / "a.txt").write_text(folder)
    (tmp_path / "work" / "b.txt").write_text("work only")
    monkeypatch.chdir(tmp_path / "work")
    assert rows_of("a.txt", tmp_path / "recipes")[0][1] == {"text": "recipes"}
    assert rows_of("b.txt", tmp_path / "recipes")[0][1] == {"text": "work only"}


def test_bad_lines_are_dropped_with_their_number(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LINE_LIMIT_BYTES", 64)
    lines = [b'{"text": "ok"}', b"{oops", b"[1]", b"", b'{"text": "\xff"}', b'{"text": "' + b"x" * 900 + b'"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"text": "end"}']))
    items = rows_of(tmp_path / "a.jsonl")
    assert [each.reason if isinstance(each, Dropped) else each[1]["text"] for each in items] == [
        *("ok", "not-json", "not-json", "empty", "not-utf8", "huge"),
        "end",
    ]
    assert [each.where.row for each in items if isinstance(each, Dropped)] == [1, 2, 3, 4, 5]
    assert items[-1][0] == 6


def test_bad_csv_rows_are_dropped_alone(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\nfine,a\none,two,three\n\xff\xfe,b\n\nlast,b\n")
    items = rows_of(tmp_path / "a.csv")
    assert [each.reason if isinstance(each, Dropped) else each[1]["text"] for each in items] == [
        *("fine", "wrong-fields", "not-utf8", "empty"),
        "last",
    ]


def test_too_many_unreadable_rows_are_refused_by_line():
    bad = [Dropped(Place("a.jsonl", row, row + 1), "not-json", detail=": broken") for row in (3, 5)]
    opened = sources.Opened("a.jsonl", lambda: iter(()), "", Source(source="a.jsonl"))
    unreadable.check_unreadable(opened.split, 20, bad)
    with pytest.raises(DataError) as error:
        unreadable.check_unreadable(opened.split, 19, bad)
    for part in ("2 of 19", "lines 4, 6 of a.jsonl", "line 4 of a.jsonl: broken", "fix:"):
        assert part in str(error.value)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "tweets.csv").write_text("text,label\n")
    with pytest.raises(DataError) as error:
        sources.open_source(Source(source="tweet.csv"), tmp_path)
    assert "tweets.csv" in str(error.value)
    (tmp_path / "only.rst").write_text("x")
    with pytest.raises(DataError, match="not read"):
        sources.open_source(Source(source="only.rst"), tmp_path)


def test_sources_missing_are_all_named(tmp_path):
    with pytest.raises(DataError) as error:
        sources.open_domain(Domain(sources=("a.csv", "b.csv")), tmp_path)
    assert [problem.place for problem in error.value.problems] == ["a.csv", "b.csv"]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_reading_through_datasets(tmp_path, monkeypatch, streaming):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    folder = tmp_path / "set"
    for split in ("train", "test"):
        made = datasets.Dataset.from_dict({"text": [f"{split} 0", f"{split} 1"], "label": [0, 1]}, features=features)
        folder.mkdir(exist_ok=True)
        made.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    opened = sources.open_hub(Source(source=str(folder), split="test"), split="test", streaming=streaming)
    assert [item[:2] for item in opened.read()] == [
        (0, {"text": "test 0", "label": 0}),
        (1, {"text": "test 1", "label": 1}),
    ]
    assert opened.label_names == {"label": ("neg", "pos")}
    assert opened.name == f"{folder}:test"
    with pytest.raises(DataError, match="cannot be loaded"):
        sources.open_hub(Source(source=str(folder), split="nothing"))


def test_class_names_in_parquet_metadata(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    datasets.Dataset.from_dict({"text": ["x"], "label": [1]}, features=features).to_parquet(tmp_path / "a.parquet")
    opened = sources.open_source(Source(source="a.parquet"), tmp_path)
    assert opened.label_names == {"label": ("neg", "pos")}


@pytest.mark.parametrize("from_hub", [False, True])
def test_class_names_of_lists(tmp_path, from_hub):
    """A class for each word, as the datasets library keeps named entities."""
    import datasets

    names = ["O", "B-PER"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    data = datasets.Dataset.from_list([{"tokens": ["Ada", "sleeps"], "ner_tags": [1, 0]}], features=features)
    path = tmp_path / ("data" if from_hub else "rows.parquet")
    if from_hub:
        path.mkdir()
    data.to_parquet(path / "train.parquet" if from_hub else path)
    opened = (sources.open_hub if from_hub else lambda source: sources.open_source(source, tmp_path))(
        Source(source=str(path))
    )
    assert opened.label_names == {"ner_tags": tuple(names)}
