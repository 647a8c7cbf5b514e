"""The stages: their order, and one of another package that changes the base, from the run to the exported folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import scaling
import torch
from safetensors.torch import load_file, save_file
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt import load_adapted
from hfadapt.core import registry
from hfadapt.core.errors import RequestError, RunError
from hfadapt.models.base import BaseRef, weights_of
from hfadapt.models.load import load_base
from hfadapt.records.stages import Manifest
from hfadapt.run_folder import Cell
from hfadapt.stages import Stage

TEXTS = ["a lovely bright film", "a dreadful stale film"]


@pytest.fixture(scope="module")
def added() -> Iterator[None]:
    """The stage, as an installed package would add it."""
    entry = EntryPoint("scale", "scaling:KIND", "hfadapt.stages")
    before = registry.entry_points
    registry.entry_points = lambda group: [entry] if group == "hfadapt.stages" else before(group=group)
    for found in (registry.names, registry.load):
        found.cache_clear()
    yield
    registry.entry_points = before
    for found in (registry.names, registry.load):
        found.cache_clear()


@pytest.fixture(scope="module")
def ready(models, added, tmp_path_factory) -> Path:
    """Two domains, trained together on a base of their own, to the end."""
    folder = tmp_path_factory.mktemp("stages")
    for seed, name in enumerate(("one", "two")):
        write_rows(folder / f"{name}.jsonl", labelled(120, seed=seed))
    domains = {name: {"source": f"{name}.jsonl"} for name in ("one", "two")}
    fields = recipe_fields(models / "encoder", domains=domains, dtype="float32")
    fields["train"] |= {"learning_rate": 0.01, "max_steps": 40}
    fields["evaluate"] |= {"security": False}
    write_recipe(folder / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def folder(ready, tmp_path) -> Path:
    return Path(shutil.copytree(ready, tmp_path / "work"))


def cell(folder: Path, domain: str = "one") -> Cell:
    return Cell(folder / "runs/tiny" / domain / "this-machine")


def test_the_order_is_what_the_stages_say():
    names = [stage.name for stage in registry.stages()]
    usual = ["prepare", "plan", "train", "evaluate", "transfer", "card"]
    assert [name for name in names if name in usual] == usual
    assert names.index("plan") < names.index("pretrain") < names.index("train")
    assert names.index("evaluate") < names.index("without-pretrain") < names.index("card")


def test_stages_that_wait_for_each_other_are_refused(monkeypatch):
    class Odd(Stage):
        name, title, needs, before = "odd", "odd", ("card",), ("plan",)

    monkeypatch.setattr(registry, "names", lambda kind: ("plan", "prepare", "train", "evaluate", "card", "odd"))
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda kind, name: Odd() if name == "odd" else load(kind, name))
    with pytest.raises(RequestError, match="wait for each other"):
        registry.stages()


def test_an_unknown_stage_to_stop_at_is_refused(ready):
    from hfadapt.pipeline.flow import stages_until

    with pytest.raises(RequestError) as refused:
        stages_until(registry.stages(), "evaluation")
    assert "did you mean 'evaluate'" in str(refused.value)
    assert stages_until(registry.stages(), "evaluate")[-1].name in ("transfer", "without-pretrain")
    assert stages_until(registry.stages(), "train")[-1].name == "train"


def test_an_added_stage_has_its_place_its_record_and_its_sections(ready):
    names = [stage.name for stage in registry.stages()]
    assert names.index("plan") < names.index("scale") < names.index("train")
    assert names[-2:] == ["card", "track"]
    own = cell(ready)
    assert own.state.status == "done"
    assert own.state.stages.keys() == {each.name for each in registry.stages() if each.wanted(own.lock)}
    assert len(own.read(scaling.ScaleRecord).tensors) > 3
    card = (own.folder / "README.md").read_text()
    assert "## Scaled layer\n\nMultiplied by 1.5.\n" in card
    assert "(stage `scale`, sha256 of the weights" in card
    for name in ("report.md", "report.html"):
        assert "Scaled layers" in (ready / "runs/tiny" / name).read_text()
    assert own.report().memory["scale"].measured_peak_bytes == 4096
    problems = command("card", "check", own.folder).err
    assert "licence" in problems, "of a local base it is not known"
    assert problems.count("fix:") == 1, problems


def test_every_record_knows_the_base(ready):
    own = cell(ready)
    lock = own.lock
    assert lock.base is not None
    assert lock.base.sha256 == own.manifest.base.sha256 == weights_of(own.made_base("scale"))
    assert "folder: bases/scale" in (own.folder / "lock.yaml").read_text()
    changed, original = (load_base(ref, ("bad", "good"), torch.device("cpu")).model.state_dict()
                         for ref in (BaseRef.of(lock), BaseRef.of(lock).original))  # fmt: skip
    differing = {name for name in changed if not changed[name].equal(original[name])}
    assert differing == set(own.read(scaling.ScaleRecord).tensors)
    for name in differing:
        assert changed[name].allclose(original[name] * 1.5)


def test_it_predicts_and_exports_on_the_changed_base(folder, tmp_path):
    answers = [answer.label for answer in load_adapted(cell(folder).folder).predict(TEXTS)]
    assert answers == ["good", "bad"]
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    done = command("export", cell(folder).folder, "--to", whole, "--format", "merged", "--force")
    assert done.code == 0, done.err
    assert [answer.label for answer in load_adapted(whole).predict(TEXTS)] == answers
    done = command("export", cell(folder).folder, "--to", alone, "--format", "adapter")
    assert done.code == 0, done.err
    with pytest.raises(RequestError, match="the base of this adapter was not found"):
        load_adapted(alone)
    base = str(cell(folder).made_base("scale"))
    assert f"--base {base}" in done.out
    assert [answer.label for answer in load_adapted(alone, base=base).predict(TEXTS)] == answers


def test_the_original_is_refused(folder, models, tmp_path):
    done = command("export", cell(folder).folder, "--to", tmp_path / "alone", "--format", "adapter")
    assert done.code == 0, done.err
    # The manifest's sample of tensors may miss those that were changed.
    manifest = Manifest.read(tmp_path / "alone" / Manifest.FILE)
    manifest.model_copy(update={"weights_sha256": None}).write(tmp_path / "alone" / Manifest.FILE)
    with pytest.raises(RunError, match="another base: not the same weights"):
        load_adapted(tmp_path / "alone", base=str(models / "encoder"))


def test_a_base_that_was_changed_by_hand_is_refused(folder):
    path = cell(folder).made_base("scale") / "model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, path, metadata={"format": "pt"})
    with pytest.raises(RunError, match="the base has been changed since the stage scale made it"):
        load_adapted(cell(folder).folder)


def test_a_run_that_was_moved_is_still_one(ready, tmp_path):
    moved = Path(shutil.copytree(ready / "runs", tmp_path / "elsewhere"))
    assert load_adapted(moved / "tiny/one/this-machine").predict(TEXTS[0])[0].label == "good"


def test_all_is_kept_until_the_stage_would_do_something_else(folder, monkeypatch):
    again = command("run", "tiny.yaml", folder=folder)
    assert again.err.count("done already, kept") == 2, again.err
    before = cell(folder).manifest.base.sha256
    monkeypatch.setattr(scaling, "FACTOR", 0.5)
    changed = command("run", "tiny.yaml", "--domain", "one", folder=folder)
    assert changed.code == 0, changed.err
    assert "earlier result kept in" in changed.err
    assert cell(folder).read(scaling.ScaleRecord).factor == 0.5
    assert cell(folder).manifest.base.sha256 != before
    assert "Multiplied by 0.5." in (cell(folder).folder / "README.md").read_text()
