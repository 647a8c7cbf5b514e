"""`hfadapt new --columns`: which column holds what, as somebody says it; wrong names are told with those there are."""

from __future__ import annotations

import csv

import pytest
from tiny import command, labelled, write_rows
from tiny_images import write_folders
from tiny_sounds import write_sounds

from hfadapt.cli.new_recipe import guesses, write_recipe
from hfadapt.core.errors import DataError
from hfadapt.recipe.reading import load_recipe


def mood_table(path, columns=("body", "summary, long", "mood", "lang")):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number, row in enumerate(labelled(80)):
            writer.writerow([row["text"], row["text"][:12], row["label"], ("en", "de", "fr")[number % 3]])


@pytest.mark.parametrize(
    ("said", "columns", "task"),
    [
        (["text=body,label=mood"], {"text": "body", "label": "mood"}, "text-classification"),
        (["text=body", "label=mood"], {"text": "body", "label": "mood"}, "text-classification"),
        (["label = lang"], {"text": "body", "label": "lang"}, "text-classification"),
        (
            ["text=summary, long,label=mood,group=lang"],
            {"text": "summary, long", "label": "mood", "group": "lang"},
            "text-classification",
        ),
        (["anchor=body,positive=summary, long"], {"anchor": "body", "positive": "summary, long"}, "embedding"),
    ],
)
def test_columns_can_be_said(models, tmp_path, said, columns, task):
    mood_table(tmp_path / "d.csv")
    words = [word for each in said for word in ("--columns", each)]
    done = command("new", "d.csv", "--model", models / "encoder", *words, folder=tmp_path)
    assert done.code == 0, done.err
    recipe = load_recipe(tmp_path / "d.yaml")
    assert recipe.task == task
    assert recipe.domains["d"].columns.model_dump(exclude_none=True) == columns
    assert "could also be" not in (tmp_path / "d.yaml").read_text() or "label" not in columns


def test_a_column_that_is_said_is_written_though_it_would_be_found(models, tmp_path):
    mood_table(tmp_path / "d.csv", ("text", "review", "label", "category"))
    words = "--columns", "text=text,label=label"
    assert command("new", "d.csv", "--model", models / "encoder", *words, folder=tmp_path).code == 0
    assert load_recipe(tmp_path / "d.yaml").domains["d"].columns.parts == {"text": "text", "label": "label"}


@pytest.mark.parametrize(
    ("said", "what", "fix"),
    [
        ("text=bdy", "there is no column for text", "did you mean 'body'?"),
        ("txt=body", "no row has such a part", "did you mean 'text'?"),
        ("body=text", "no row has such a part", "did you mean text=body?"),
        ("body", "a column is given as PART=COLUMN", "write PART=COLUMN, such as text=body"),
        ("text=body,text=mood", "two columns are given for text", "name one of them"),
        ("text=body,group_pattern=x", "group_pattern needs group", "hfadapt explain domains.NAME.columns"),
        ("prompt=body,completion=mood", "no task of this model learns from rows of these parts", "another model"),
    ],
)
def test_a_column_that_is_wrong_is_told_with_those_there_are(models, tmp_path, said, what, fix):
    mood_table(tmp_path / "d.csv")
    done = command("new", "d.csv", "--model", models / "encoder", "--columns", said, folder=tmp_path)
    assert done.code == 2
    assert what in done.err
    assert fix in done.err
    if "pattern" not in said and "prompt" not in said:
        assert "columns: body, summary, long, mood, lang; parts: text, label, prompt" in done.err
    assert not (tmp_path / "d.yaml").exists()


def test_the_columns_stay_where_a_model_is_proposed(tmp_path):
    mood_table(tmp_path / "d.csv")
    done = command("new", "d.csv", "--columns", "text=body,label=mood", folder=tmp_path)
    assert "fix:     hfadapt new d.csv --columns text=body,label=mood --model sample:" in done.err


SUMMARIES = [
    {"id": n, "url": f"x.org/{n}", "details": f"{row['text']} and so on", "summary": row["text"][:30] + f" {n}"}
    for n, row in enumerate(labelled(60))
]


@pytest.mark.parametrize(
    ("model", "rows", "task", "parts", "why"),
    [
        (
            "encoder",
            [{"story": row["text"], "tags": [row["label"], "abc"[n % 3]]} for n, row in enumerate(labelled(60))],
            "multi-label-classification",
            {"text": "story", "label": "tags"},
            "label is the column 'tags', whose values are lists",
        ),
        (
            "encoder",
            [{"id": n, "story": row["text"], "weight": n / 7} for n, row in enumerate(labelled(60))],
            "text-regression",
            {"text": "story", "label": "weight"},
            "label is the column 'weight', the only one of numbers with decimals",
        ),
        ("lm", SUMMARIES, "causal-lm", {"prompt": "details", "completion": "summary"}, "one of two with texts"),
        ("encoder", SUMMARIES, "embedding", {"anchor": "summary", "positive": "details"}, "one of two with texts"),
        ("lm", [{"en": f"day of {row['text']}", "de": f"Tag von {row['text']}"} for row in labelled(60)], "causal-lm",
         {"prompt": "en", "completion": "de"}, "completion is the column 'de', one of two with texts"),
    ],
)  # fmt: skip
def test_lists_numbers_and_two_texts_are_guessed_and_said(models, tmp_path, model, rows, task, parts, why):
    write_rows(tmp_path / "d.jsonl", rows)
    done = command("new", "d.jsonl", "--model", models / model, folder=tmp_path)
    assert done.code == 0, done.err
    recipe = load_recipe(tmp_path / "d.yaml")
    assert (recipe.task, recipe.domains["d"].columns.parts) == (task, parts)
    assert why in " ".join(done.out.split())


@pytest.mark.parametrize(
    "column",
    [
        [f"2024-01-{n:02d} 10:00" for n in range(1, 29)],
        [f"photos/a b/{n:05d}.txt" for n in range(28)],
        ["the same two words"] * 28,
    ],
)
def test_dates_addresses_and_what_is_always_the_same_are_no_second_text(models, tmp_path, column):
    rows = [
        {"story": f"{row['text']} {row['label']}", "other": each, "id": n}
        for n, (row, each) in enumerate(zip(labelled(28), column, strict=True))
    ]
    write_rows(tmp_path / "d.jsonl", rows)
    assert command("new", "d.jsonl", "--model", models / "lm", folder=tmp_path).code == 0
    assert load_recipe(tmp_path / "d.yaml").domains["d"].columns.parts == {"text": "story"}


def test_somebody_who_is_asked_says_what_answers_the_text(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "d.jsonl", SUMMARIES)
    asked = []

    def ask(question, options, default):
        asked.append((question, default))
        return default

    parts = load_recipe(write_recipe(str(models / "lm"), "d.jsonl", None, ask)).domains["d"].columns.parts
    assert asked[-1] == ("column of what answers the text, or belongs to it", "summary")
    assert parts == {"prompt": "details", "completion": "summary"}


def test_columns_of_files_and_classes_are_told_by_their_values(vision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "pics", 24)
    rows = [
        f"{path.relative_to(tmp_path)},{path.parent.name},{number}"
        for number, path in enumerate(sorted(tmp_path.rglob("*.png")))
    ]
    (tmp_path / "liste.csv").write_text("\n".join(["Datei,Motiv,Nummer", *rows]))
    path = write_recipe(str(vision / "conv"), "liste.csv")
    assert load_recipe(path).domains["liste"].columns.parts == {"image": "Datei", "label": "Motiv"}
    assert "Guessed: image is the column 'Datei', whose values are names of images" in path.read_text()
    (tmp_path / "prices.csv").write_text("Datei,Preis\n" + "\n".join(f"pics/{n}.png,{n / 7:.2f}" for n in range(24)))
    with pytest.raises(DataError, match="the columns do not fit"):
        write_recipe(str(vision / "conv"), "prices.csv")


def test_one_column_from_another_is_offered_of_texts_rather_than_numbers(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"nr": n, "q": f"{row['text']} {n} and more", "a": row["text"], "b": f"so {row['text'][:9]}"}
        for n, row in enumerate(labelled(80))
    ]
    write_rows(tmp_path / "d.jsonl", rows)
    text = write_recipe(str(models / "lm"), "d.jsonl").read_text()
    assert "template: {prompt: '{q}', completion: '{a}'}" in text


@pytest.mark.parametrize("column", ["file", "file_name", "take"])
def test_a_table_may_call_the_column_of_its_files_as_people_do(hearing, tmp_path, column):
    paths = sorted(write_sounds(tmp_path / "takes", 60).glob("*/*.wav"))
    with (tmp_path / "drums.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column, "instrument", "kit"])
        writer.writerows([path.relative_to(tmp_path), path.parent.name, f"kit {n % 5}"] for n, path in enumerate(paths))
    done = command("new", "drums.csv", "--model", hearing / "whisper", folder=tmp_path)
    assert done.code == 0, done.err
    recipe = load_recipe(tmp_path / "drums.yaml")
    assert recipe.task == "audio-classification"
    assert recipe.domains["drums"].columns.parts == {"audio": column, "label": "instrument"}


FAQ = [
    {"#": n, "Frage / Question": f"how do I {('ask', 'find')[n % 2]} it {n}?", "Antwort / Answer": f"Press {n % 7}."}
    for n in range(60)
]


@pytest.mark.parametrize(
    ("model", "rows", "task", "parts"),
    [
        ("lm", FAQ, "causal-lm", {"prompt": "Frage / Question", "completion": "Antwort / Answer"}),
        (
            "encoder",
            [{"Search query": f"where is it {n}", "Best document": f"in house {n} of the town"} for n in range(60)],
            "embedding",
            {"anchor": "Search query", "positive": "Best document"},
        ),
    ],
)
def test_texts_that_belong_together_are_known_by_a_word_in_the_names_of_their_columns(
    models, tmp_path, model, rows, task, parts
):
    write_rows(tmp_path / "d.jsonl", rows)
    path = write_recipe(str(models / model), str(tmp_path / "d.jsonl"), tmp_path / "d.yaml")
    recipe = load_recipe(path)
    assert (recipe.task, recipe.domains["d"].columns.parts) == (task, parts)
    [told] = guesses(path)
    for part, column in parts.items():
        assert f"{part} is the column {column!r}, by the word " in told


@pytest.mark.parametrize(
    "rows",
    [
        # Numbers ask nothing; which of two is meant is not known.
        [{"Question ID": f"Q-{n}", "Answer": f"Press the button {n} and wait"} for n in range(60)],
        [{**row, "Answer (old)": row["Antwort / Answer"]} for row in FAQ],
    ],
)
def test_a_word_in_a_name_is_not_enough(models, tmp_path, rows):
    write_rows(tmp_path / "d.jsonl", rows)
    path = write_recipe(str(models / "lm"), str(tmp_path / "d.jsonl"), tmp_path / "d.yaml")
    assert "by the word" not in path.read_text()


@pytest.mark.parametrize(
    "rows", [[{}] * 9, [{"": n} for n in range(9)], [{"text": f"a {n}", "label": "[[1]]"} for n in range(9)]]
)
def test_rows_without_columns_and_labels_of_lists_in_lists_are_no_fault_of_the_program(models, tmp_path, rows):
    write_rows(tmp_path / "d.jsonl", rows)
    done = command("new", "d.jsonl", "--model", models / "encoder", folder=tmp_path)
    assert done.code in (0, 2)
    assert "bug in hfadapt" not in done.err
