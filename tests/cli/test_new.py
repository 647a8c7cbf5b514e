"""`hfadapt new`: whatever files and columns are called, the recipe that it writes loads, and says what was left out."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from tiny import chats, command, labelled, pairs, tagged, write_rows
from tiny_images import write_folders

import hfadapt
from hfadapt.cli.new_recipe import _name, _without_endings, write_recipe
from hfadapt.recipe.reading import load_recipe

NAMES = (
    *("123.csv", "1e3.csv", "null.csv", "no.csv", "0x1F.csv", "2024-01-01.csv", "1_000.csv", "~.csv", ".5.csv"),
    *('my "best" data.csv', "it's.csv", "a: b.csv", "a # b.csv", "[1].csv", "{x}.csv", "*.csv", "&a.csv", "-.csv"),
    *(
        "ü.csv",
        "日本.csv",
        "a\\b.csv",
        "100%.csv",
        "report.json.csv",
        "Transfer.json.csv",
        "x" * 90 + ".csv",
        "a\tb.csv",
    ),
)


def table(path, columns=("text", "label")):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([row["text"], row["label"]] for row in labelled(80))


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.JSONL.zst", "rows.tsv.csv.xz", "rows.tar.gz", "v1.2"])
def test_the_domain_has_no_ending_of_the_file(name):
    assert _without_endings(f"folder.csv/{name}") == name[:4]


def test_letters_of_a_name_stay_letters():
    assert _name("Stempel Übung / Größe") == "Stempel-Ubung-Grosse"


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_file_gives_a_recipe_that_loads(models, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / name)
    done = command("new", "--model", models / "encoder", "--data", f"./{name}", folder=tmp_path)
    assert done.code == 0, done.err
    [path] = tmp_path.glob("*.yaml")
    assert shlex.split(done.out.rpartition("hfadapt run ")[2]) == [path.name]
    recipe = load_recipe(path)
    [(domain, asked)] = recipe.domains.items()
    assert (tmp_path / asked.source).samefile(tmp_path / name)
    assert recipe.name == domain


@pytest.mark.parametrize(
    "output", ["my recipe.yaml", "ü.yaml", "1.yaml", "sub folder/r.yaml", "report.json.yaml", "plain"]
)
def test_any_name_of_a_recipe(models, tmp_path, output):
    table(tmp_path / "data.csv")
    shutil.copytree(models / "encoder", tmp_path / "model")
    done = command("new", "--model", "./model", "--data", "data.csv", "-o", output, folder=tmp_path)
    assert done.code == 0, done.err
    written = (tmp_path / output).read_text()
    assert f"#   hfadapt run {shlex.quote(output)}\n" in written
    assert Path(load_recipe(tmp_path / output).model).samefile(tmp_path / "model")


@pytest.mark.parametrize(
    "columns", [("null", "no"), ("1", "2"), ("a: b", "# c"), ("it's", '"x"'), ("text", "off"), ("{a}", "[b]")]
)
def test_any_name_of_a_column(models, tmp_path, columns):
    table(tmp_path / "d.csv", columns)
    done = command("new", "--model", models / "encoder", "--data", "d.csv", folder=tmp_path)
    assert done.code == 0, done.err
    asked = load_recipe(tmp_path / "d.yaml").domains["d"].columns
    assert (asked.text or "text", asked.label) == columns
    assert command("check", "d.yaml", folder=tmp_path).code == 0


def test_any_label_can_be_named_in_the_comment(models, tmp_path):
    names = {"bad": "a\nname: x\x07\u2028", "good": "b\r# c: d" + "y" * 900}
    write_rows(tmp_path / "d.jsonl", [{**row, "label": names[row["label"]]} for row in labelled(80)])
    done = command("new", "--model", models / "encoder", "--data", "d.jsonl", folder=tmp_path)
    assert done.code == 0, done.err
    assert load_recipe(tmp_path / "d.yaml").name == "d"


@pytest.mark.parametrize(
    ("task", "flag"),
    [("text-classification", lambda n: 1 - n % 2), ("multi-label-classification", lambda n: int(n % 3 == 0))],
)
def test_columns_of_0_and_1_are_classes(models, tmp_path, task, flag):
    texts = enumerate(row["text"] for row in labelled(80))
    write_rows(tmp_path / "d.jsonl", [{"id": f"x{n}", "text": text, "a": n % 2, "b": flag(n)} for n, text in texts])
    done = command("new", "--model", models / "encoder", "--data", "d.jsonl", folder=tmp_path)
    assert done.code == 0, done.err
    assert load_recipe(tmp_path / "d.yaml").task == task
    assert command("check", "d.yaml", folder=tmp_path).code == 0


def test_a_column_that_is_left_out_is_named_with_a_template_that_works(models, tmp_path):
    rows = [
        {"question": row["prompt"], "reply": f"{row['prompt'][::-1]} and on", "note": f"of {row['prompt']}"[:12]}
        for row in pairs(80)
    ]
    write_rows(tmp_path / "qa.jsonl", rows)
    assert command("new", "--model", models / "lm", "--data", "qa.jsonl", folder=tmp_path).code == 0
    lines = (tmp_path / "qa.yaml").read_text().splitlines()
    assert "# Not used: question, note." in lines
    [line] = (line for line in lines if "template: " in line)
    kept = [line if not line.startswith("  qa:") else "  qa: qa.jsonl" for line in lines]
    (tmp_path / "qa.yaml").write_text("\n".join([*kept, line[line.index("template: ") :]]) + "\n")
    done = command("check", "qa.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    shown, _, learned = done.out.rpartition("marked:")[2].partition("»")
    assert shown.strip() in [row["question"] for row in rows]
    assert "and on<|end|>«" in learned


def test_chats_need_a_model_with_a_chat_template(models, tmp_path):
    write_rows(tmp_path / "chat.jsonl", chats(80))
    shutil.copytree(models / "lm", tmp_path / "lm")
    assert command("new", "--model", "./lm", "--data", "chat.jsonl", "-o", "a.yaml", folder=tmp_path).code == 0
    (tmp_path / "lm/chat_template.jinja").unlink()
    done = command("new", "--model", "./lm", "--data", "chat.jsonl", folder=tmp_path)
    assert done.code == 2
    assert "no chat template" in done.err
    assert not (tmp_path / "chat.yaml").exists()


@pytest.mark.parametrize("config", [{"base_model_name_or_path": "some/base"}, {}, []])
def test_an_adapter_is_no_model(tmp_path, config):
    table(tmp_path / "d.csv")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    done = command("new", "--model", "./adapter", "--data", "d.csv", folder=tmp_path)
    assert done.code == 2
    assert "this is an adapter, not a model" in done.err
    assert ("--model some/base" in done.err) == bool(config)


def test_a_recipe_that_would_not_load_is_not_left_behind(models, tmp_path, monkeypatch):
    from hfadapt.cli import new_recipe

    table(tmp_path / "d.csv")
    monkeypatch.setattr(new_recipe, "_text", lambda *_: "name: 1\n")
    assert command("new", "--model", models / "encoder", "--data", "d.csv", folder=tmp_path).code == 2
    assert not (tmp_path / "d.yaml").exists()


# --- for people and editors -------------------------------------------------------------------------------------------


def test_the_license_of_the_data_is_written(models, tmp_path):
    table(tmp_path / "rows.csv")
    data = str(tmp_path / "rows.csv")
    path = write_recipe(str(models / "encoder"), data, tmp_path / "a.yaml", license="other")
    assert [domain.license for domain in load_recipe(path).domains.values()] == ["other"]
    assert "To publish" not in path.read_text()
    assert "To publish" in write_recipe(str(models / "encoder"), data, tmp_path / "b.yaml").read_text()
    for license, near in (("cc-by-4", "cc-by-4.0"), ("mine", "allowed names")):
        done = command(
            "new", data, "--model", models / "encoder", "--license", license, "-o", "c.yaml", folder=tmp_path
        )
        assert done.code == 2
        assert near in done.err
    assert not (tmp_path / "c.yaml").exists()


def test_editors_find_the_schema_beside_the_recipe(models, tmp_path):
    (tmp_path / "data").mkdir()
    table(tmp_path / "data/d.csv")
    done = command("new", "--model", models / "encoder", "--data", "data/d.csv", "-o", "data/r.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    text = (tmp_path / "data/r.yaml").read_text()
    key, _, path = text.splitlines()[0].partition("$schema=")
    assert key == "# yaml-language-server: "
    schema = json.loads((tmp_path / "data" / path).read_text())
    assert [*Draft202012Validator(schema).iter_errors(yaml.safe_load(text))] == []
    assert str(tmp_path) not in json.dumps(schema)


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ([{"text": f"film {n}", "label": n % 2} for n in range(40)], ["film 0", "film 1", "film 2"]),
        ([{"text": f"film {n}", "label": ["bad", "good"][n // 20]} for n in range(40)], ["film 0", "film 20", "good"]),
        (pairs(40), [pairs(40)[0]["prompt"][:20], pairs(40)[0]["completion"].strip()]),
        (chats(20), [chats(20)[0]["messages"][-1]["content"][:20]]),
        (tagged(40), [" ".join(tagged(40)[0]["tags"])]),
        ([{"text": f"a plain text, number {n}"} for n in range(40)], ["a plain text, number 2"]),
    ],
)
def test_three_rows_are_shown_as_training_will_see_them(models, tmp_path, monkeypatch, rows, shown):
    monkeypatch.setenv("COLUMNS", "200")
    write_rows(tmp_path / "d.jsonl", rows)
    model = "lm" if "prompt" in rows[0] or "messages" in rows[0] else "encoder-mask"
    model = model if (models / model).exists() else "encoder"
    done = command("new", "--model", models / model, "--data", "d.jsonl", folder=tmp_path)
    assert done.code == 0, done.err
    head, _, table_text = done.out.partition("Rows as training will see them")
    assert head == ""
    told = " ".join(table_text.split())
    for each in shown:
        assert each in told


def answers(given):
    """Somebody who answers, and what was asked."""
    asked = []

    def ask(question, options, default):
        asked.append((question, tuple(options), default))
        answer = given.get(question, default)
        assert answer in options
        return answer

    return ask, asked


def test_what_the_columns_say_is_not_asked(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "d.csv")
    ask, asked = answers({})
    write_recipe(str(models / "encoder"), "d.csv", None, ask)
    assert asked == []


def test_columns_that_say_nothing_are_asked_with_a_guess(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"a": row["text"], "b": row["label"], "c": f"note {n % 3}"} for n, row in enumerate(labelled(80))]
    write_rows(tmp_path / "d.jsonl", rows)
    ask, asked = answers({"column of the label": "c"})
    path = write_recipe(str(models / "encoder"), "d.jsonl", None, ask)
    assert asked[:2] == [
        ("column of the text", ("a", "b", "c"), "a"),
        ("column of the label", ("b", "c", "(none)"), "b"),
    ]
    assert load_recipe(path).domains["d"].columns.parts == {"text": "a", "label": "c"}


def test_the_task_is_asked_among_those_that_the_data_allow(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "d.jsonl", [{"text": row["text"], "label": n % 40} for n, row in enumerate(labelled(80))])
    ask, asked = answers({})
    default = load_recipe(write_recipe(str(models / "encoder"), "d.jsonl", Path("a.yaml"), ask)).task
    [(question, tasks, first)] = asked
    assert (question, first) == ("task", default)
    assert {*tasks} == {"text-classification", "text-regression"}
    for task in tasks:
        ask, _ = answers({"task": task})
        assert load_recipe(write_recipe(str(models / "encoder"), "d.jsonl", Path(f"{task}.yaml"), ask)).task == task


@pytest.mark.parametrize(("typed", "label"), [("\n\n\n", "b"), ("a\nbb\nc\n\n", "c"), ("a\nc\n\n", "c")])
def test_a_terminal_asks(models, tmp_path, typed, label):
    """In a real one: Enter takes the default, and what there is not is asked again."""
    rows = [{"a": row["text"], "b": row["label"], "c": f"note {n % 3}"} for n, row in enumerate(labelled(80))]
    write_rows(tmp_path / "d.jsonl", rows)
    ours, its = pty.openpty()
    words = [sys.executable, "-m", "hfadapt", "new", "--model", models / "encoder", "--data", "d.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(Path(hfadapt.__file__).parents[1])}
    with subprocess.Popen(words, stdin=its, stdout=its, stderr=its, cwd=tmp_path, env=environment) as process:
        os.close(its)
        os.write(ours, typed.encode())
        said = b""
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                said += part
    os.close(ours)
    text = said.decode()
    assert process.returncode == 0, text
    assert "column of the text (a, b, c) [a]:" in text
    assert ("there is no 'bb'; did you mean 'b'?" in text) == ("bb" in typed)
    assert load_recipe(tmp_path / "d.yaml").domains["d"].columns.label == label


# --- files ----------------------------------------------------------------------------------------------------------


def new(model, data, folder):
    return command("new", "--model", model, "--data", data, "-o", "r.yaml", folder=folder)


@pytest.mark.parametrize("data", ["pictures", "pictures.tar", "pictures.zip", "table.csv"])
def test_classes_of_pictures_give_a_recipe(vision, tmp_path, data):
    write_folders(tmp_path / "pictures", 24)
    shutil.make_archive(
        str(tmp_path / "pictures"), data.rpartition(".")[2] if "pictures." in data else "tar", tmp_path / "pictures"
    )
    paths = [path.relative_to(tmp_path) for path in sorted((tmp_path / "pictures").glob("*/*.png"))]
    lines = ["file_name,label,note", *(f"{path},{path.parent.name},what is seen on it" for path in paths)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    done = new(vision / "dino", data, tmp_path)
    assert done.code == 0, done.err
    recipe, text = load_recipe(tmp_path / "r.yaml"), (tmp_path / "r.yaml").read_text()
    assert recipe.task == "image-classification"
    assert "# Labels: bar 12, pole 12." in text
    assert "Not used: file" not in text
    done = command("check", "r.yaml", "data.validation=4", "data.test=4", folder=tmp_path)
    assert "24" in done.out, done.err


def test_the_model_decides_where_both_could_be(models, vision, tmp_path):
    """A table of texts, names of files and classes."""
    path = write_folders(tmp_path, 2) / "bar" / "000.png"
    rows = [{**row, "file_name": str(path)} for row in labelled(40)]
    write_rows(tmp_path / "both.jsonl", rows)
    for model, task in ((models / "encoder", "text-classification"), (vision / "vit", "image-classification")):
        assert new(model, "both.jsonl", tmp_path).code == 0
        assert load_recipe(tmp_path / "r.yaml").task == task
        (tmp_path / "r.yaml").unlink()


def test_what_does_not_go_together_is_said_in_one_sentence(models, vision, tmp_path):
    write_folders(tmp_path / "pictures", 6)
    for model in ("encoder", "lm"):
        done = new(models / model, "pictures", tmp_path)
        assert done.code == 2
        assert "the rows are images, and the model is one of texts" in done.err
        assert "name a model of images with --model" in done.err
    write_rows(tmp_path / "texts.jsonl", labelled(40))
    done = new(vision / "vit", "texts.jsonl", tmp_path)
    assert "the rows are texts, and the model is one of images" in done.err
    assert not (tmp_path / "r.yaml").exists()


def test_pictures_without_classes_are_told_what_to_do(vision, tmp_path):
    write_folders(tmp_path / "classes", 6)
    done = new(vision / "dino", "classes/bar", tmp_path)
    assert done.code == 2
    assert "the images have no classes" in done.err
    assert (
        "a folder for each class, such as CLASS/1.png, or give a table with the columns file_name and label" in done.err
    )


TICKETS = ("Nr", "Kanal", "Beschreibung", "Kategorie")


def tickets(path, encoding="utf-8-sig", columns=TICKETS, gaps=3):
    """A table as a spreadsheet writes it: semicolons, a mark at the beginning, an id, gaps in one column."""
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(columns)
        for n, row in enumerate(labelled(80)):
            channel = "" if gaps and n % gaps == 0 else ("Web", "Post")[n % 2]
            writer.writerow([1000 + n, channel, f"Grüße,\r\n{row['text']}", ("gut", "müde", "böse")[n % 3]])


def test_what_a_run_would_refuse_is_told_at_once(models, tmp_path):
    russian = "".join(f"{'да' if n % 2 else 'нет'},сегодня хороший день {n}\n" for n in range(80))
    (tmp_path / "old.csv").write_bytes(("label,text\n" + russian).encode("cp1251"))
    done = command("new", "old.csv", "--model", models / "encoder", folder=tmp_path)
    assert done.code == 2
    assert "80 of 80 rows are not UTF-8" in done.err
    assert "line 2 of old.csv is not UTF-8: byte 0xED" in done.err
    assert "encoding: windows-1252 (Western letters) or windows-1251 (Cyrillic) beside its source" in done.err
    assert not [*tmp_path.glob("*.yaml")]
    done = command("new", "old.csv", "--model", models / "encoder", "--encoding", "windows-1251", folder=tmp_path)
    assert done.code == 0, done.err
    assert "сегодня хороший день" in done.out
    assert load_recipe(tmp_path / "old.yaml").domains["old"].encoding == "windows-1251"
    tickets(tmp_path / "gaps.csv", columns=("Nr", "label", "text", "x"))
    done = command("new", "gaps.csv", "--model", models / "encoder", folder=tmp_path)
    assert done.code == 0, done.err
    assert "Guessed: 27 rows without a label" in done.out
    assert "# Labels: (empty) 27, Post 27, Web 26." in (tmp_path / "gaps.yaml").read_text()


def test_the_columns_that_were_taken_are_shown(models, tmp_path):
    tickets(tmp_path / "d.csv")
    done = command("new", "d.csv", "--model", models / "encoder", folder=tmp_path)
    assert "text is 'Beschreibung'; label is 'Kategorie'; not read: Nr, Kanal" in done.out


def test_a_model_that_is_left_out_is_named_for_the_data(tmp_path):
    tickets(tmp_path / "d.csv")
    write_rows(tmp_path / "chats.jsonl", chats(20))
    write_rows(tmp_path / "pairs.jsonl", [{"q": f"how {n}", "chosen": "so", "rejected": "no"} for n in range(20)])
    write_folders(tmp_path / "photos", 4)
    fitting = {"d.csv": "minilm-l6", "chats.jsonl": "smollm2-135m", "photos": "dinov2-small"}
    for data, model in {**fitting, "pairs.jsonl": "smollm2-135m"}.items():
        done = command("new", data, folder=tmp_path)
        assert (done.code, f"fix:     hfadapt new {data} --model sample:{model}" in done.err) == (2, True), done.err
    for words in (("new",), ("new", "d.csv", "--data", "other.csv")):
        done = command(*words, folder=tmp_path)
        assert (done.code, "which data to look at is not clear" in done.err) == (2, True)


def test_data_where_a_recipe_or_a_model_belongs(models, tmp_path):
    tickets(tmp_path / "d.csv")
    done = command("run", "d.csv", folder=tmp_path)
    assert done.code == 2
    assert "a file of rows, not a recipe" in done.err
    assert "hfadapt new d.csv" in done.err
    done = command("new", "d.csv", "--model", "d.csv", folder=tmp_path)
    assert done.code == 2
    assert "a file of rows is the source of a domain" in done.err


# --- what files are taken for ----------------------------------------------------------------------------------------


def test_a_table_in_a_text_file_is_said(models, tmp_path):
    lines = ["body\tmood", *(f"{row['text']}\t{row['label']}" for row in labelled(80))]
    (tmp_path / "d.txt").write_text("\n".join(lines))
    done = command("new", "d.txt", "--model", models / "encoder", folder=tmp_path)
    assert done.code == 0, done.err
    said = "d.txt: read as a table with the columns body, mood, as every line has 2 fields set apart by tabs"
    assert said in " ".join(done.out.split())
    assert f"# {said}\n" in (tmp_path / "d.yaml").read_text()
    assert load_recipe(tmp_path / "d.yaml").task == "text-classification"
    checked = command("check", "d.yaml", folder=tmp_path)
    assert "text-as-table" in checked.out


def test_an_encoding_that_is_guessed_is_said_and_written(models, tmp_path):
    tickets(tmp_path / "old.csv", encoding="cp1252")
    done = command("new", "old.csv", "--model", models / "encoder", folder=tmp_path)
    assert done.code == 0, done.err
    said = r"Guessed: encoding windows-1252, as old\.csv is not UTF-8; it then has the word '\w+'\. Otherwise add --enc"
    assert re.search(said, done.out)
    assert "Guessed: text is the column 'Beschreibung', whose values are the longest" in done.out
    assert "as the recipe says" not in done.out
    assert re.search(f"# {said}", (tmp_path / "old.yaml").read_text())
    assert load_recipe(tmp_path / "old.yaml").domains["old"].encoding == "windows-1252"
    done = command("new", "old.csv", "--encoding", "latin-17", "--model", models / "encoder", folder=tmp_path)
    assert done.code == 2
    assert "--encoding: this is no encoding of texts" in done.err


def test_another_sheet_is_taken_as_it_says(models, tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for name in ("Old ones", "Tickets"):
        sheet = book.create_sheet(name)
        sheet.append(["text", "label"])
        for row in labelled(40):
            sheet.append([f"{name} {row['text']}", row["label"]])
    book["Sheet"].sheet_state = "hidden"
    book.active = 1
    book.save(tmp_path / "book.xlsx")
    done = command("new", "book.xlsx", "--model", models / "encoder", folder=tmp_path)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert (
        "'Old ones' is read, and not 'Tickets'; to read another one set split: Tickets, or say --split Tickets" in said
    )
    assert "hidden sheets of the workbook are not read: 'Sheet'" in said
    asked = ("new", "book.xlsx", "--model", models / "encoder", "-o", "other.yaml", "--split")
    done = command(*asked, "Tickets", folder=tmp_path)
    assert done.code == 0, done.err
    assert load_recipe(tmp_path / "other.yaml").domains["book"].split == "Tickets"
    assert "Tickets " in done.out
    assert "Old ones" not in done.out
    done = command(*asked, "Tikets", folder=tmp_path)
    assert done.code == 2
    assert "no such sheet" in done.err
    (tmp_path / "parts.json").write_text(json.dumps({"test": labelled(30), "val": labelled(30)}))
    done = command("new", "parts.json", "--model", models / "encoder", folder=tmp_path)
    assert "with hfadapt new --split test" in done.err
    done = command("new", "parts.json", "--model", models / "encoder", "--split", "test", folder=tmp_path)
    assert done.code == 0, done.err
    assert load_recipe(tmp_path / "parts.yaml").domains["parts"].split == "test"


def test_the_label_is_guessed_by_its_name_and_by_being_filled(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tickets(tmp_path / "named.csv", gaps=0)
    tickets(tmp_path / "filled.csv", columns=("Nr", "a", "b", "c"))
    tickets(tmp_path / "doubtful.csv", columns=("Nr", "a", "b", "c"), gaps=0)
    encoder = str(models / "encoder")
    named, filled, doubtful = (write_recipe(encoder, f"{name}.csv") for name in ("named", "filled", "doubtful"))
    assert load_recipe(named).domains["named"].columns.parts == {"text": "Beschreibung", "label": "Kategorie"}
    assert load_recipe(filled).domains["filled"].columns.parts == {"text": "b", "label": "c"}
    assert "could also" not in named.read_text()
    assert "# The label could also be a: then change columns.label." in filled.read_text()
    assert "# The label could also be c: then change columns.label." in doubtful.read_text()
