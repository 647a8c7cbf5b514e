"""Fields of objects in rows are columns."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from hfadapt.core.errors import RequestError
from hfadapt.data.prepared import prepare
from hfadapt.data.split_files import read_split
from hfadapt.files.nested import spread
from hfadapt.files.reading import column_names
from hfadapt.recipe.reading import load_recipe

PICTURE = {"bytes": b"x", "path": "a.png"}
TURNS = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "spread_out"),
    [
        ({"text": "a", "label": "b"}, {"text": "a", "label": "b"}),
        ({"review": {"body": "a", "by": {"name": "b"}}}, {"review.body": "a", "review.by.name": "b"}),
        # Flags, files, chats and what is empty are read as they are; their fields can be named all the same.
        (
            {"tags": {"ui": True, "speed": False}},
            {"tags": {"ui": True, "speed": False}, "tags.ui": True, "tags.speed": False},
        ),
        ({"image": PICTURE}, {"image": PICTURE}),
        (
            {"chat": {"messages": TURNS, "id": "a"}},
            {"chat": {"messages": TURNS, "id": "a"}, "chat.messages": TURNS, "chat.id": "a"},
        ),
        ({"more": {}, "text": None}, {"more": {}, "text": None}),
        # A column that is there already stays.
        ({"a": {"b": "new"}, "a.b": "old"}, {"a.b": "old"}),
    ],
)
def test_fields_of_objects_become_columns(row, spread_out):
    assert spread(row) == spread_out


def test_an_object_that_is_named_stays_beside_its_fields():
    assert spread({"a": {"b": "c"}}, {"a"}) == {"a": {"b": "c"}, "a.b": "c"}


def test_columns_of_json_and_parquet_have_the_fields(tmp_path):
    rows = [{"id": 1, "translation": {"en": "yes", "fr": "oui"}, "image": PICTURE | {"bytes": None}}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        names = column_names(tmp_path / name)
        assert {"id", "translation.en", "translation.fr", "image"} <= set(names)
        assert not any(each.startswith("image.") for each in names)


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def recipe(folder, models, rows, task="text-classification", **domain):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {"name": "nested", "model": str(models / "lm" if task == "causal-lm" else models / "encoder"), "task": task}
    (folder / "r.yaml").write_text(
        json.dumps({**base, "domains": {"one": {"source": "a.jsonl", **domain}}, "data": {"dedupe": {"near": False}}})
    )
    return load_recipe(folder / "r.yaml")


def learned(folder, models, *given, **domain):
    asked = recipe(folder, models, *given, **domain)
    found = prepare(asked, recipe_folder=folder, cache=folder / "cache")["one"]
    return [row for split in ("train", "validation", "test") for row in read_split(found.folder, split)]


def test_they_are_recognised_by_their_own_names_where_no_column_has_these(models, tmp_path):
    rows = [
        {"review": {"body": f"{word} {other}", "id": 3}, "meta": {"sentiment": "ab"[len(word) % 2]}}
        for word in WORDS
        for other in WORDS
    ]
    made = learned(tmp_path, models, rows)
    assert {(row["text"], row["label"]) for row in made} == {
        (row["review"]["body"], row["meta"]["sentiment"]) for row in rows
    }


def test_the_recipe_and_its_template_name_them(models, tmp_path):
    rows = [{"translation": {"en": f"{word} {other}", "fr": f"le {word} {other}"}} for word in WORDS for other in WORDS]
    template = {"prompt": "{translation.en} =", "completion": " {translation.fr}"}
    made = learned(tmp_path, models, rows, "causal-lm", template=template)
    first = rows[0]["translation"]
    assert {"prompt": f"{first['en']} =", "completion": f" {first['fr']}"} in [
        {part: row[part] for part in ("prompt", "completion")} for row in made
    ]
    columns = {"prompt": "translation.en", "completion": "translation.fr"}
    made = learned(tmp_path, models, rows, "causal-lm", columns=columns)
    assert {"prompt": first["en"], "completion": first["fr"]} in [
        {part: row[part] for part in ("prompt", "completion")} for row in made
    ]


def test_a_field_that_is_not_there_is_named(models, tmp_path):
    with pytest.raises(RequestError, match=r"translation\.en") as caught:
        recipe(tmp_path, models, [{"translation": {"en": "a", "fr": "b"}}], columns={"text": "translation.de"})
    assert "did you mean 'translation.en'" in str(caught.value)
