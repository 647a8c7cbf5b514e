"""`hfadapt new` keeps rows of one origin in one split, where a column or the names of files tell it, and says so."""

from __future__ import annotations

import csv

import pytest
from tiny import command, labelled
from tiny_images import png

from hfadapt.cli.new_recipe import write_recipe
from hfadapt.recipe.reading import load_recipe

KITS = [f"Kit {n} 1.0" for n in range(8)]


def table(path, name, group):
    """80 labelled texts beside a column `name` with `group(number, label)`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", name])
        writer.writerows([row["text"], row["label"], group(n, row["label"])] for n, row in enumerate(labelled(80)))


@pytest.mark.parametrize("name", ["kit", "Speaker", "patient_id", "recording", "subject id", "client_id"])
def test_a_column_that_says_of_whom_a_row_is_is_the_group(models, tmp_path, name):
    table(tmp_path / "d.csv", name, lambda n, label: KITS[n % 8])
    done = command("new", "d.csv", "--model", models / "encoder", folder=tmp_path)
    assert done.code == 0, done.err
    assert load_recipe(tmp_path / "d.yaml").domains["d"].columns.group == name
    assert f"Guessed: rows alike in '{name}' stay in one split. Otherwise take `group` out" in " ".join(
        done.out.split()
    )
    assert command("check", "d.yaml", folder=tmp_path).code == 0


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("subject", lambda n, label: KITS[n % 8]),
        ("channel", lambda n, label: KITS[n % 8]),
        ("kit", lambda n, label: KITS[n % 4]),
        ("kit", lambda n, label: f"{label}{n % 8 if label == 'good' else ''}"),
        ("kit", lambda n, label: KITS[n % 8] if n % 3 else ""),
        ("kit", lambda n, label: f"kit {n}"),
    ],
    ids=["a title", "of another name", "too few", "one for a class", "gaps", "one for each row"],
)
def test_what_splits_could_not_be_made_by_is_none(models, tmp_path, name, group):
    table(tmp_path / "d.csv", name, group)
    assert command("new", "d.csv", "--model", models / "encoder", folder=tmp_path).code == 0
    assert load_recipe(tmp_path / "d.yaml").domains["d"].columns.group is None


@pytest.mark.parametrize("answer", ["who is asked", "(none)"])
def test_who_is_asked_can_say_no(models, tmp_path, monkeypatch, answer):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "d.csv", "kit", lambda n, label: KITS[n % 8])

    def ask(what, choices, default):
        return answer if "one split" in what and answer in choices else default

    path = write_recipe(str(models / "encoder"), "d.csv", ask=ask)
    assert load_recipe(path).domains["d"].columns.group == ("kit" if answer != "(none)" else None)


@pytest.mark.parametrize("in_table", [False, True])
@pytest.mark.parametrize(("name", "found"), [("{who}_{n:03}.png", True), ("img_{n:03}.png", False)])
def test_names_of_files_tell_the_group_beside_classes(vision, tmp_path, in_table, name, found):
    people = ("ann", "ben", "cleo", "dan", "eve", "fay")
    lines = ["file,label"]
    for n in range(48):
        label = ("bar", "pole")[n % 2]
        path = tmp_path / "pictures" / label / name.format(who=people[n // 2 % 6], n=n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(n))
        lines.append(f"{path.relative_to(tmp_path)},{label}")
    (tmp_path / "d.csv").write_text("\n".join(lines))
    done = command(
        "new", "d.csv" if in_table else "pictures", "--model", vision / "dino", "-o", "r.yaml", folder=tmp_path
    )
    assert done.code == 0, done.err
    columns = next(iter(load_recipe(tmp_path / "r.yaml").domains.values())).columns
    assert columns.group == ("file" if found else None)
    assert ("Guessed: files alike in field 1 (ann, ben, " in " ".join(done.out.split())) == found
    checked = command("check", "r.yaml", folder=tmp_path)
    assert checked.code == 0, checked.err
    assert ("file as group" in checked.out) == found
