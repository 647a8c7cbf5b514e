"""Where things lie: a model beside the recipe, projects that move, bases that are gone, two recipes of one name."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from tiny import command, labelled, recipe_fields, write_recipe, write_rows


def project(folder, models, name="tiny", model="encoder", domain="one", task="text-classification"):
    """A folder with a recipe, its data and its model, all named relative to the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "one.jsonl", labelled(80))
    if not (folder / model).exists():
        shutil.copytree(models / model, folder / model)
    fields = recipe_fields(f"./{model}", task, {domain: {"source": "one.jsonl"}})
    fields["evaluate"] |= {"transfer": False, "security": False, "drift": False}
    return write_recipe(folder / f"{name}.yaml", fields | {"name": "tiny"})


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    """A trained project, run from the folder above it."""
    folder = tmp_path_factory.mktemp("places") / "my [1st] #project 100%"
    project(folder, models)
    done = command("run", f"{folder.name}/tiny.yaml", "--runs", f"{folder.name}/runs", folder=folder.parent)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """The same project in another place."""
    shutil.copytree(trained, tmp_path / "moved")
    return tmp_path / "moved"


def test_a_cell_is_used_from_any_folder(trained, tmp_path):
    done = command("predict", str(trained / "runs/tiny"), "a lovely film", folder=tmp_path)
    assert done.code == 0, done.err


def test_the_same_recipe_from_another_folder_trains_nothing_again(trained):
    done = command("train", "tiny.yaml", folder=trained)
    assert done.code == 0, done.err
    assert "done already, kept" in done.err


def test_no_domain_can_be_called_as_a_file_of_the_run(trained):
    from hfadapt.recipe.rules import RUN_FILES

    files = {path.name for path in (trained / "runs/tiny").iterdir() if path.is_file() and path.name[0] != "."}
    assert {"report.json"} < files <= set(RUN_FILES)


def test_a_project_is_moved_with_its_runs(copied, trained, tmp_path):
    hidden = trained.with_name("hidden")
    trained.rename(hidden)
    try:
        done = command("predict", "moved/runs/tiny", "a lovely film", folder=tmp_path)
    finally:
        hidden.rename(trained)
    assert done.code == 0, done.err


def test_a_run_alone_is_copied(trained, tmp_path):
    shutil.copytree(trained / "runs/tiny", tmp_path / "kept")
    done = command("predict", "kept", "a lovely film", folder=tmp_path)
    assert done.code == 0, done.err


def test_a_base_that_is_gone_is_named_with_its_place_and_can_be_given(copied, trained, tmp_path):
    hidden = trained.with_name("hidden")
    trained.rename(hidden)
    (copied / "encoder").rename(tmp_path / "elsewhere")
    try:
        done = command("predict", "runs/tiny", "a lovely film", folder=copied)
        assert done.code == 2
        for said in (f"{trained}/encoder: the base of this adapter is gone", "encoder, sha256", "--base FOLDER"):
            assert said in done.err
        done = command("predict", "runs/tiny", "a lovely film", "--base", "../elsewhere", folder=copied)
    finally:
        hidden.rename(trained)
    assert done.code == 0, done.err


def test_a_bare_name_is_a_folder_above_the_run_before_it_is_one_of_the_hub(copied, trained, tmp_path):
    hidden = trained.with_name("hidden")
    trained.rename(hidden)
    (copied / "encoder").rename(copied / "renamed")
    (tmp_path / "away").mkdir()
    try:
        done = command("predict", copied / "runs/tiny", "a lovely film", "--base", "renamed", folder=tmp_path / "away")
        wrong = command("predict", copied / "runs/tiny", "a lovely film", "--base", "other", folder=tmp_path / "away")
    finally:
        hidden.rename(trained)
    assert done.code == 0, done.err
    assert wrong.code == 2
    for said in (
        "other: the base of this adapter was not found",
        "no folder of that name here or above",
        "--base FOLDER",
    ):
        assert said in wrong.err


def test_a_base_that_was_changed_is_told_by_its_hash(copied, models, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    weights = copied / "encoder/model.safetensors"
    save_file(
        {name: torch.flip(tensor, (0,)) for name, tensor in load_file(weights).items()}, weights, {"format": "pt"}
    )
    done = command("predict", "runs/tiny", "text", "--base", "encoder", folder=copied)
    assert done.code == 1
    got, allowed = (line for line in done.err.splitlines() if line.startswith(("  got:", "  allowed:")))
    assert f"encoder in {copied}/encoder, sha256 of its weights" in got
    assert got.split()[-1] != allowed.split()[-1]


def test_two_recipes_of_one_name_are_told_apart(copied, models, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    project(copied, models, "two", model="lm", domain="other")
    done = command("train", "two.yaml", folder=copied)
    assert done.code == 0, done.err
    assert "runs/tiny/one/this-machine is of another recipe of this name" in done.err
    assert "base" in done.out.split("domain", 1)[1].splitlines()[0]
    cells = {
        cell["domain"]: cell["model"] for cell in json.loads((copied / "runs/tiny/report.json").read_text())["cells"]
    }
    assert cells["other"] is None
    assert cells["one"].endswith("encoder")
    shown = command("report", "runs/tiny", folder=copied)
    assert shown.code == 0, shown.err
    assert "encoder" in shown.out
    assert "lm" in shown.out


def test_a_recipe_is_found_through_a_link(copied, tmp_path):
    (tmp_path / "linked.yaml").symlink_to(copied / "tiny.yaml")
    done = command("train", "linked.yaml", "--runs", copied / "runs", folder=tmp_path)
    assert done.code == 0, done.err
    assert "done already, kept" in done.err


def test_a_run_through_a_link_and_the_folder_of_a_domain(trained, tmp_path):
    (tmp_path / "linked").symlink_to(trained / "runs/tiny")
    for path in ("linked", "linked/one", "linked/one/this-machine"):
        assert command("predict", path, "a lovely film", folder=tmp_path).code == 0
    done = command("predict", trained / "runs", "a lovely film", folder=tmp_path)
    assert done.code == 2
    assert "a folder of the runs tiny" in done.err
    fix = shlex.split(done.err.rpartition("such as ")[2])
    assert command("predict", *fix, "a lovely film", folder=tmp_path).code == 0


def test_the_next_commands_can_be_pasted(trained):
    shown = command("report", trained / "runs/tiny", folder=trained.parent)
    line = next(line for line in shown.out.splitlines() if line.startswith("next: hfadapt predict"))
    assert command(*shlex.split(line)[2:], folder=trained.parent).code == 0
    line = next(line for line in shown.out.splitlines() if "hfadapt publish" in line)
    # The rows are of a file whose licence nobody has said.
    assert line.endswith(" --repo USER/NAME --license ID")
    done = command(*shlex.split(line.replace("--license ID", "--license mit"))[1:], folder=trained.parent)
    assert "license" not in done.err


@pytest.mark.parametrize("spoilt", ["one", "all"])
def test_a_report_names_locks_that_cannot_be_read(copied, models, spoilt):
    project(copied, models, "two", domain="other")
    assert command("prepare", "two.yaml", folder=copied).code == 0
    for domain in ("one", "other")[: 1 if spoilt == "one" else 2]:
        (copied / "runs/tiny" / domain / "this-machine/lock.yaml").write_text("name: ")
    done = command("report", "runs/tiny", folder=copied)
    assert done.code == (0 if spoilt == "one" else 1)
    said = " ".join((done.out + done.err).split())
    assert "one/this-machine/lock.yaml: the file is not as it was written" in said
    assert "hfadapt run RECIPE" in said
