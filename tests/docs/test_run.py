"""The commands and Python of README.md and docs/ are run in the order of their page, with small recipes and data."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import PAGES, ROOT, blocks, not_run, words
from tiny import command, labelled, write_rows
from tiny_images import write_folders

SMALL: Mapping[str, Any] = {
    "train": {"max_steps": 4},
    "evaluate": {"resamples": 100, "security": False, "transfer": False},
}
RUN_FIRST = "hfadapt run recipes/sentiment.yaml -d tweets -d movies"


def small(path: Path, folder: Path) -> None:
    """A recipe of the tree with few rows in each domain, and few steps."""
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name in said["domains"]:
        seed = sum(map(ord, name))
        write_rows(folder / f"{name}.jsonl", labelled(80, seed=seed))
        said["domains"][name] = {"source": str(folder / f"{name}.jsonl"), "license": "cc0-1.0"}
    said.pop("data", None)
    (folder / "recipes" / path.name).write_text(yaml.safe_dump({**said, **SMALL}))


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """What the pages suppose: tickets of one's own, pictures, and the recipe with which they begin."""
    (tmp_path / "recipes").mkdir()
    small(ROOT / "recipes/sentiment.yaml", tmp_path)
    with (tmp_path / "tickets.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["body", "mood"])
        rows.writerows([each["text"], each["label"]] for each in labelled(120))
    (tmp_path / "rows.csv").write_text("text\nWhat a day!\nNever again.\n")
    theirs = (ROOT / "tests/converters/examples/axolotl/qlora-1b.yml").read_text(encoding="utf-8")
    for name, own in (("NousResearch/Llama-3.2-1B", str(models / "lm")), ("teknium/GPT4-LLM-Cleaned", "alpaca.jsonl")):
        theirs = theirs.replace(name, own)
    (tmp_path / "qlora.yml").write_text(theirs)
    write_rows(tmp_path / "alpaca.jsonl", [{"instruction": f"Add {n} and 1", "output": str(n + 1)} for n in range(60)])
    return tmp_path


def told(page: Path, *languages: str) -> list[str]:
    """The blocks of a page in these languages."""
    return [block.text for block in blocks(*languages) if block.page == page]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if told(page, "console", "python")], ids=lambda page: page.name
)
def test_a_page_is_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    text = "".join(told(page, "console", "python"))
    if "photos" in text:
        write_folders(folder / "photos", 420)
        for new, old in (("new_3.png", "photos/bar/000.png"), ("new_7.png", "photos/pole/001.png")):
            shutil.copy(folder / old, folder / new)
    if "runs/sentiment/" in text or "runs/sentiment" in "".join(told(page, "python")):
        first = command(*words(RUN_FIRST)[1:], folder=folder)
        assert first.code == 0, first.err
    lines = [line for block in blocks("console") if block.page == page for line in block.commands()]
    written: set[str] = set()
    for number, line in enumerate(line for line in lines if not not_run(line)):
        if line.startswith("hfadapt new"):
            # A page may begin twice with the same.
            if line in written:
                continue
            written.add(line)
        done = command(*(word.replace("FOLDER", f"out-{number}") for word in words(line)[1:]), folder=folder)
        assert done.code == 0, f"{line}\n{done.out}\n{done.err}"
    for block in blocks("python"):
        if block.page == page:
            exec(compile(block.text, block.name, "exec"), {})
