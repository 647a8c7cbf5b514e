"""Files as people have them, from the source to the splits: in memory and on a stream alike."""

import json

import pytest

from hfadapt import data
from hfadapt.core.errors import DataError
from hfadapt.recipe.schema import Recipe

from .faults import sentences

ROWS = [{"text": row["text"], "label": ("bad", "good")[n % 2]} for n, row in enumerate(sentences(400))]
WAYS = pytest.mark.parametrize("streaming", [False, True])


def prepare(folder, source, streaming, columns=None, encoding=None, **asked):
    settings = {"streaming": streaming, "dedupe": {"near": False}, **asked}
    recipe = Recipe(
        name="r",
        model="none",
        task="text-classification",
        domains={"d": {"source": source, "columns": columns or {}, "encoding": encoding}},
        data=settings,
    )
    return data.prepare(recipe, recipe_folder=folder, cache=folder / "cache")["d"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@WAYS
def test_a_column_that_begins_late(tmp_path, streaming):
    bare = [{"text": row["text"]} for row in ROWS]
    write(tmp_path / "few.jsonl", [*bare[:30], *ROWS[30:]])
    assert prepare(tmp_path, "few.jsonl", streaming).record.dropped == {"missing-field": 30}
    write(tmp_path / "many.jsonl", [*bare[:150], *ROWS[150:]])
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, "many.jsonl", streaming)
    assert "150 of 400 rows lack columns" in str(caught.value)
    assert "line 1 of many.jsonl has no label, only text" in str(caught.value)
    write(tmp_path / "none.jsonl", bare)
    with pytest.raises(DataError, match="do not fit the task"):
        prepare(tmp_path, "none.jsonl", streaming)


@WAYS
@pytest.mark.parametrize("columns", [None, {"text": "text", "label": "label"}])
def test_a_test_file_without_labels(tmp_path, streaming, columns):
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "new.jsonl", [{"text": f"{row['text']} again"} for row in ROWS[:50]])
    domains = {"d": {"source": "train.jsonl", "test": "new.jsonl", "columns": columns or {}}}
    recipe = Recipe(name="r", model="none", task="text-classification", domains=domains, data={"streaming": streaming})
    with pytest.raises(DataError) as caught:
        data.prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")
    assert "new.jsonl" in str(caught.value)
    assert "leave `test` out" in str(caught.value)
    assert "None" not in str(caught.value)


@WAYS
@pytest.mark.parametrize("unicode", [False, True])
def test_halves_of_characters_are_left_out(tmp_path, streaming, unicode):
    rows = [{**row, "text": row["text"] + "\ud83d"} if n % 10 == 0 else row for n, row in enumerate(ROWS)]
    write(tmp_path / "a.jsonl", rows)
    made = prepare(tmp_path, "a.jsonl", streaming, clean={"unicode": unicode})
    assert made.record.rows_kept == 400
    assert {row["text"] for split in made.record.splits for row in made.rows(split)} == {row["text"] for row in ROWS}


@pytest.mark.parametrize("call", [False, True])
def test_halves_of_characters_in_text_that_holds_json(tmp_path, call):
    arguments = json.dumps({"of": "half \ud83d"})
    calls = [{"type": "function", "function": {"name": "look", "arguments": arguments}}]
    chats = [
        [
            {"role": "user", "content": row["text"] + "\ud83d"},
            {"role": "assistant", "content": "yes", **({"tool_calls": calls} if call else {})},
        ]
        for row in ROWS[:60]
    ]
    write(tmp_path / "a.jsonl", [{"messages": json.dumps(chat)} for chat in chats])
    recipe = Recipe(name="r", model="none", task="causal-lm", domains={"d": {"source": "a.jsonl"}})
    made = data.prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")["d"]
    said = {row["messages"][0]["content"] for split in made.record.splits for row in made.rows(split)}
    assert said == {row["text"] for row in ROWS[:60]}


@WAYS
def test_rows_that_are_left_out_are_said(tmp_path, streaming):
    lines = [f"{row['text']},{row['label']}" for row in ROWS]
    lines[41], lines[91] = '"' + lines[41], '"' + lines[91]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines))
    record = prepare(tmp_path, "a.csv", streaming).record
    assert record.dropped == {"open-quote": 2}
    (found,) = record.noticed
    assert found.code == "rows-left-out"
    assert "2 of 400 rows" in found.message
    assert "line 43 of a.csv opens a quotation mark" in found.message


@WAYS
def test_columns_of_the_same_name(tmp_path, streaming):
    lines = [f"{row['text']},{row['label']},other {row['text']}" for row in ROWS]
    (tmp_path / "a.csv").write_text("text,label,text\n" + "\n".join(lines))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, "a.csv", streaming)
    assert "the same name" in str(caught.value)
    columns = {"text": "text (1 of 2)", "label": "label"}
    assert prepare(tmp_path, "a.csv", streaming, columns).record.rows_kept == 400


@WAYS
def test_a_first_line_that_is_a_row(tmp_path, streaming):
    (tmp_path / "a.csv").write_text("\n".join(f"{row['text']} and some more words,{row['label']}" for row in ROWS))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, "a.csv", streaming)
    assert "if the first line is a row" in str(caught.value)


@WAYS
def test_what_is_no_data_of_a_folder_is_said(tmp_path, streaming):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "rows.jsonl", ROWS)
    (tmp_path / "set" / "README.txt").write_text("About the rows.")
    record = prepare(tmp_path, "set", streaming).record
    assert (record.rows_in, record.noticed[0].code) == (400, "files-left-out")
    assert "README.txt" in record.noticed[0].message


@WAYS
def test_bytes_that_are_no_text(tmp_path, streaming):
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": b"\xff\xfe" + bytes([n]), "label": n % 2} for n in range(40)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="have bytes where text is needed"):
        prepare(tmp_path, "a.parquet", streaming)


@WAYS
def test_another_encoding_is_named(tmp_path, streaming):
    lines = [f"{row['text']} caf\u00e9,{row['label']}" for row in ROWS]
    (tmp_path / "a.csv").write_bytes(("text,label\n" + "\n".join(lines)).encode("cp1252"))
    with pytest.raises(DataError, match="are not UTF-8") as caught:
        prepare(tmp_path, "a.csv", streaming)
    assert "iconv" in str(caught.value)
    assert "byte 0xE9, é in windows-1252" in str(caught.value)
    record = prepare(tmp_path, "a.csv", streaming, encoding="windows-1252").record
    assert record.dropped.get("not-utf8") is None
    assert [each.message for each in record.noticed if each.code == "encoding"] == [
        "a.csv: read as windows-1252, as the recipe says"
    ]


@WAYS
def test_splits_of_a_folder_that_are_not_named_are_said(tmp_path, streaming):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", ROWS[:300])
    write(tmp_path / "set" / "test.jsonl", ROWS[300:])
    write(tmp_path / "set" / "more.jsonl", ROWS[:5])
    record = prepare(tmp_path, "set", streaming).record
    said = {each.code: each for each in record.noticed}
    assert record.rows_in == 300
    assert "more.jsonl" in said["files-left-out"].message
    assert "it also has the split test" in said["splits-left-out"].message
    assert "test: test" in said["splits-left-out"].fix
    domains = {"d": {"source": "set", "test": "test"}}
    recipe = Recipe(name="r", model="none", task="text-classification", domains=domains, data={"streaming": streaming})
    record = data.prepare(recipe, recipe_folder=tmp_path, cache=tmp_path / "cache")["d"].record
    assert (record.rows_in, record.splits["test"]) == (400, 100)
    assert "splits-left-out" not in {each.code for each in record.noticed}
