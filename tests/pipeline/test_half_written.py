"""Files of a run that a crash has cut off: every command makes them again or names them with a fix that works."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.core.errors import RunError
from hfadapt.run_folder import Cell, is_whole, read_lock, read_rows, read_steps

CELL = "one/this-machine"
ADAPTER = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "hfadapt.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
MADE = (
    *(
        f"{CELL}/{name}"
        for name in ("cell.json", "lock.yaml", "plan.json", "data.json", "train.json", "evaluation.json")
    ),
    *(f"{CELL}/{name}" for name in ("predictions.parquet", "card.json", "README.md", "security.json", "metrics.jsonl")),
    f"{CELL}/probe.safetensors",
    *(f"{CELL}/data/{name}" for name in ("train.parquet", "validation.parquet", "test.parquet")),
    *(f"{CELL}/adapter/{name}" for name in ADAPTER),
    "report.json",
)
OTHERS = re.compile(
    r"report\.(md|html)|.*(/loss\.svg|adapter/README\.md|\.jinja|data/dropped\.jsonl|checkpoints/.*)|\.lock"
)
"""Nothing reads them, or what they hold is compared with another file."""
SIZES = ("nothing", "half", "all but one byte")
ALIKE = ("data/validation.parquet", "data/test.parquet", "/adapter_config.json", "/tokenizer.json", "_config.json")
"""Ends of files beside which another is cut off that is made by the same stage and seen in the same way."""
COMMANDS = {
    "show": ("show", "run", "runs/tiny"),
    "report": ("report", "runs/tiny"),
    "predict": ("predict", f"runs/tiny/{CELL}", "a lovely film"),
    "card check": ("card", "check", f"runs/tiny/{CELL}"),
    "publish": ("publish", f"runs/tiny/{CELL}", "--to", "out"),
}


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    write_rows(folder / "one.jsonl", labelled(80))
    domains = {"one": {"source": "one.jsonl", "license": "mit"}}
    write_recipe(folder / "tiny.yaml", recipe_fields(models / "encoder", domains=domains, evaluate__drift=False))
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def checked(trained):
    """What checking its card says."""
    return command(*COMMANDS["card check"], folder=trained).err


def cut(trained, tmp_path, name, size):
    """A copy of the project in which the file has only a part of its bytes."""
    shutil.copytree(trained, tmp_path / "cut")
    path = tmp_path / "cut/runs/tiny" / name
    length = path.stat().st_size
    os.truncate(path, {"nothing": 0, "half": length // 2, "all but one byte": length - 1}[size])
    return tmp_path / "cut"


def test_every_file_of_a_run_is_tried(trained):
    files = {
        path.relative_to(trained / "runs/tiny").as_posix()
        for path in (trained / "runs/tiny").rglob("*")
        if path.is_file()
    }
    assert {name for name in files if not OTHERS.fullmatch(name)} == set(MADE)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=pytest.mark.slow if name.endswith(ALIKE) and size != "half" else ())
        for name in MADE
        for size in SIZES
    ],
)
def test_no_command_crashes_on_a_file_that_is_cut_off(trained, tmp_path, name, size):
    folder = cut(trained, tmp_path, name, size)
    chosen = list(COMMANDS) if size == "half" else ["report", "predict"]
    for words in chosen:
        done = command(*COMMANDS[words], folder=folder)
        said = done.err + done.out
        assert "bug in hfadapt" not in said, words
        assert "Traceback" not in said, words
        assert done.code == 0 or "fix:" in done.err, words


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name.endswith(ALIKE) else ()) for name in MADE]
)
def test_a_run_makes_again_what_is_cut_off(trained, checked, tmp_path, name):
    folder = cut(trained, tmp_path, name, "nothing")
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    if not name.endswith(("metrics.jsonl", "probe.safetensors")):
        # The one says what was, and the other is trained anew where it is asked for again.
        assert (folder / "runs/tiny" / name).stat().st_size > 0
    for words in ("show", "report", "predict"):
        assert command(*COMMANDS[words], folder=folder).code == 0
    if name.endswith("metrics.jsonl"):
        assert command("card", "build", f"runs/tiny/{CELL}", folder=folder).code == 0
    assert command(*COMMANDS["card check"], folder=folder).err == checked


@pytest.mark.parametrize("where", ["", "adapter/"])
@pytest.mark.parametrize("share", [0.4, 0.8, "in the user's text"])
def test_a_run_makes_a_card_again_that_is_cut_off(trained, tmp_path, where, share):
    folder = tmp_path / "cut"
    shutil.copytree(trained, folder)
    cell = folder / "runs/tiny" / CELL
    whole = (cell / "README.md").read_text()
    own = "\nMy own remarks, which are kept.\n"
    for path in (cell / "README.md", cell / "adapter/README.md"):
        path.write_text(whole.replace("<!-- user:begin -->\n", f"<!-- user:begin -->{own}"))
    path = cell / f"{where}README.md"
    kept = share == "in the user's text" or where
    text = path.read_text()
    path.write_text(text[: text.index("user:end")] if isinstance(share, str) else text[: int(share * len(text))])
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    assert "files of model card are not as they were saved and are made again" in done.err
    made = (cell / "README.md").read_text()
    assert made == (whole.replace("<!-- user:begin -->\n", f"<!-- user:begin -->{own}") if kept else whole)
    assert (cell / "adapter/README.md").read_text() == made
    assert "made again" not in command("run", "tiny.yaml", folder=folder).err


def test_a_card_that_the_user_has_rewritten_is_left_alone(trained, tmp_path):
    folder = tmp_path / "own"
    shutil.copytree(trained, folder)
    for name in ("README.md", "adapter/README.md"):
        (folder / "runs/tiny" / CELL / name).write_text("# My own card\n")
    done = command("run", "tiny.yaml", folder=folder)
    assert "done already" in done.err
    assert (folder / "runs/tiny" / CELL / "README.md").read_text() == "# My own card\n"


def test_the_report_names_a_record_that_cannot_be_read_and_shows_the_others(trained, tmp_path):
    folder = cut(trained, tmp_path, f"{CELL}/evaluation.json", "half")
    done = command("report", "runs/tiny", "--json", folder=folder)
    assert done.code == 0, done.err
    [cell] = json.loads(done.out)["cells"]
    assert cell["status"] == "failed"
    assert "evaluation.json" in cell["error"]
    assert "hfadapt run RECIPE" in cell["error"]


def test_an_export_is_not_made_of_papers_that_are_cut_off(trained, tmp_path):
    folder = cut(trained, tmp_path, f"{CELL}/card.json", "half")
    done = command("export", f"runs/tiny/{CELL}", "--format", "adapter", "--to", "out", folder=folder)
    assert done.code == 1
    assert f"runs/tiny/{CELL}/card.json" in done.err
    assert "hfadapt card build CELL" in done.err
    assert not (folder / "out").exists()


def test_lines_of_the_log_that_are_cut_off_are_left_out(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [
        '{"step": 1, "epoch": 0.5, "loss": 1.0}',
        '{"step": 2, "epo{"step": 3, "epoch": 1.5}',
        "",
        "7",
        '{"step": 4, "ep',
    ]
    log.write_bytes("\n".join(lines).encode() + b"\xff")
    assert [step["step"] for step in read_steps(log)] == [1]
    assert read_steps(tmp_path / "none") == []
    assert [step.step for step in Cell(tmp_path).steps()] == [1]


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff\xfe", b"a: [", b"model: 3"])
def test_a_lock_or_table_that_is_no_such_thing_is_named(tmp_path, content):
    path = tmp_path / "lock.yaml"
    path.write_bytes(content)
    for read in (read_lock, read_rows):
        with pytest.raises(RunError, match="not as it was written") as found:
            read(path)
        assert str(path) in str(found.value)
        assert "fix:" in str(found.value)
    assert not Cell(tmp_path).planned
    assert not is_whole(path)
    assert not is_whole(tmp_path / "none.parquet")


def test_a_file_that_may_not_be_read_is_no_file_that_is_cut_off(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_lock(tmp_path / "lock.yaml")
    with pytest.raises(IsADirectoryError):
        read_lock(tmp_path)
