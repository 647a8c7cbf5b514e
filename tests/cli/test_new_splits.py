"""`hfadapt new` takes the validation and test rows that data bring along, where these have what is learned."""

import json

from tiny import labelled
from tiny_images import scene, write_folders

from hfadapt.cli.new_recipe import write_recipe
from hfadapt.recipe.reading import load_recipe


def test_a_folder_of_splits_gives_its_validation_and_test_rows(vision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(("Train", "Val", "Test")):
        write_folders(tmp_path / "photos" / split, 12, number)
    path = write_recipe(str(vision / "conv"), "photos")
    domain = load_recipe(path).domains["photos"]
    assert (domain.validation, domain.test) == ("validation", "test")
    assert "validation and test rows are those that photos gives" in path.read_text()


def test_test_rows_without_labels_are_not_taken(models, tmp_path, monkeypatch):
    """As contests give them."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": row["text"], "label": row["label"]} for row in labelled(60)]
    hidden = [{"text": row["text"], "label": None} for row in rows[:20]]
    (tmp_path / "all.json").write_text(json.dumps({"train": rows[20:50], "dev": rows[50:], "test": hidden}))
    domain = load_recipe(write_recipe(str(models / "encoder"), "all.json")).domains["all"]
    assert (domain.validation, domain.test) == ("dev", None)


def test_splits_with_a_column_for_each_class_are_taken(vision, tmp_path, monkeypatch):
    """As tools for labelling export them: a table in each folder of a split."""
    monkeypatch.chdir(tmp_path)
    for number, split in enumerate(("train", "valid", "test")):
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True)
        names = [f"{split}{each}.png" for each in range(12)]
        for each, name in enumerate(names):
            scene(20 * number + each, (32, 32)).save(folder / name)
        lines = (f"{name}, {each % 2}, {each // 2 % 2}" for each, name in enumerate(names))
        (folder / "_classes.csv").write_text("\n".join(["filename, One, Two", *lines]) + "\n")
    domain = load_recipe(write_recipe(str(vision / "conv"), "photos")).domains["photos"]
    assert domain.columns.classes == ("One", "Two")
    assert (domain.validation, domain.test) == ("validation", "test")
