"""Every seeded fault of a card is found, and named for what it is."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hfadapt.card_check import check_card, is_language

EXAMPLES = Path(__file__).parent.parent / "cards" / "examples"
Fault = Callable[[Path], None]


def text(old: str, new: str) -> Fault:
    """Replaces text in README.md; a regular expression, which must match."""

    def seed(folder: Path) -> None:
        readme = folder / "README.md"
        changed, count = re.subn(old, new, readme.read_text(encoding="utf-8"), count=1, flags=re.S | re.M)
        assert count == 1, old
        readme.write_text(changed, encoding="utf-8")

    return seed


def add(sentence: str) -> Fault:
    """Adds a sentence to the limits."""
    return text(r"^## Limits\n", "## Limits\n\n" + sentence.replace("\\", "\\\\") + "\n")


def field(name: str, old: str, new: str) -> Fault:
    """Replaces text in a record."""

    def seed(folder: Path) -> None:
        path = folder / name
        changed, count = re.subn(old, new, path.read_text(encoding="utf-8"), count=1, flags=re.S)
        assert count == 1, old
        path.write_text(changed, encoding="utf-8")

    return seed


def remove(name: str) -> Fault:
    """Deletes a file."""
    return lambda folder: (folder / name).unlink()


def unrun(folder: Path) -> None:
    """Takes away what the snippet printed."""
    path = folder / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"output": None}))


FAULTS: dict[str, tuple[Fault, str]] = {
    "no metadata": (text(r"\A---\n", ""), "metadata cannot be read"),
    "metadata is a list": (text(r"\A---\n.*?\n---\n", "---\n- a\n---\n"), "metadata cannot be read"),
    "numpy float": (
        text(r"value: [\d.]+", "value: !!python/object/apply:numpy.float64 [1]"),
        "metadata cannot be read",
    ),
    "licence misspelt": (text("^license: apache-2.0", "license: apache2.0"), "not a licence id"),
    "other without a name": (text("^license: apache-2.0", "license: other"), "needs a name"),
    "another licence": (text("^license: apache-2.0", "license: mit"), "differs from its records"),
    "language is a word": (text("^- en$", "- english"), "not a language code"),
    "language is false": (text("^- en$", "- no"), "not a language code"),
    "relation": (text("base_model_relation: adapter", "base_model_relation: banana"), "not a known value"),
    "library": (text("library_name: peft", "library_name: pefft"), "not a known value"),
    "pipeline tag": (text("^pipeline_tag: .*?$", "pipeline_tag: text-class"), "not a known value"),
    "base is a path": (text("^base_model: .*?$", "base_model: /srv/models/mini"), "not a name of the Hub"),
    "base is missing": (text("^base_model: .*?\n", ""), "a key is missing"),
    "unknown key": (text("^license:", "licence:"), "unknown key"),
    "data set name": (text("^metrics:", "datasets:\n- not an id!\nmetrics:"), "not a name of the Hub"),
    "tags are a word": (text("^tags:\n(- .*?\n)+", "tags: lora\n"), "not a list of words"),
    "result is NaN": (text(r"value: [\d.]+", "value: .nan"), "not a finite number"),
    "result is infinite": (text(r"value: [\d.]+", "value: .inf"), "not a finite number"),
    "result is text": (text(r"value: [\d.]+", "value: high"), "not a finite number"),
    "result changed": (text(r"value: 0\.\d+", "value: 0.999"), "the card differs"),
    "metric name": (text("- type: (accuracy|f1)\n", "- type: greatness\n"), "not a known metric"),
    "no results": (text("^  results:.*?---", "  results: []\n---"), "results lack"),
    "placeholder of peft": (add("[More Information Needed]"), "placeholder"),
    "to do": (add("TODO: say more"), "placeholder"),
    "filler": (add("Lorem ipsum dolor sit amet."), "placeholder"),
    "not a number in a table": (text(r"\| 0\.\d{3} ", "| nan "), "not a number"),
    "infinity in a sentence": (add("The gain is inf."), "not a number"),
    "home folder": (add("Trained from /home/ada/data."), "a path of a machine"),
    "windows path": (add(r"Trained from C:\Users\ada."), "a path of a machine"),
    "tilde path": (add("See ~/models."), "a path of a machine"),
    "host": (add("Trained on build7.internal."), "a host"),
    "address": (add("Served from 192.168.0.17."), "a host"),
    "secret": (add("Use hf_" + "a" * 34 + "."), "a secret"),
    "number changed": (text(r"\+0\.\d{3}", "+0.999"), "the card differs"),
    "number added": (add("It is 12 % better than all others."), "the card differs"),
    "number taken out": (text(r"[\d,]+ optimizer steps", "Some optimizer steps"), "the card differs"),
    "evaluation changed": (field("evaluation.json", r'"adapter": 0\.\d+', '"adapter": 0.987'), "a value differs"),
    "training changed": (field("train.json", r'"steps": \d+', '"steps": 987654'), "a value differs"),
    "setting changed": (field("lock.yaml", r"rank: \d+", "rank: 3"), "a value differs"),
    "fact changed": (field("card.json", r'"shown": "[\d,]+"', '"shown": "987,654"'), "a value differs"),
    "fact about nothing": (field("card.json", "train.json#/steps", "train.json#/leaps"), "no such field"),
    "fact taken out": (
        field("card.json", r'\{\s*"id": "train\.steps".*?\},', ""),
        "card.json differs",
    ),
    "record lost": (remove("evaluation.json"), "evaluation.json"),
    "card.json lost": (remove("card.json"), "card.json"),
    "card.json cut": (field("card.json", r'"facts".*', ""), "not readable"),
    "card lost": (remove("README.md"), "there is no card"),
    "section lost": (text("^## Limits$", "## Praise"), "a section is missing"),
    "snippet lost": (text("```python.*?```", ""), "no loading snippet"),
    "snippet changed": (text('adapter = "adapter"', 'adapter = "other"'), "the card differs"),
    "snippet never run": (unrun, "never been run"),
    "user marks lost": (text("<!-- user:end -->", ""), "marks around the user's text"),
    "copy is old": (field("adapter/README.md", "## Limits", "## Limit"), "a copy is missing or old"),
    "chart lost": (remove("loss.svg"), "a copy is missing or old"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_found(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(EXAMPLES / "text-classification", folder)
    seed, wanted = FAULTS[name]
    seed(folder)
    problems = check_card(folder)
    assert any(wanted in str(problem) for problem in problems), [str(problem) for problem in problems]
    assert all(problem.place for problem in problems)


def test_the_name_of_this_host_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(EXAMPLES / "text-classification", folder)
    monkeypatch.setattr(socket, "gethostname", lambda: "node-17")
    add("Trained on node-17.")(folder)
    assert any("host" in problem.what for problem in check_card(folder))


def test_a_secret_is_not_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(EXAMPLES / "text-classification", folder)
    secret = "hf_" + "s3cr3t" * 6
    add(f"Use {secret}.")(folder)
    found = [problem for problem in check_card(folder) if "secret" in problem.what]
    assert found
    assert all(secret not in str(problem) for problem in found)


def test_what_users_and_data_say_is_not_taken_for_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(EXAMPLES / "text-classification", folder)
    for path in (folder / "README.md", folder / "adapter" / "README.md"):
        path.write_text(
            path.read_text().replace("<!-- user:begin -->", "<!-- user:begin -->\n42 reasons and 1/2 more.")
        )
    assert check_card(folder) == []


def test_the_command_line_names_problems_and_exits_with_1(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hfadapt.cli import app
    from hfadapt.records import CellState

    folder = tmp_path / "cell"
    shutil.copytree(EXAMPLES / "text-classification", folder)
    CellState().write(folder / "cell.json")
    good = CliRunner().invoke(app, ["card", "check", str(folder)])
    assert good.exit_code == 0, good.output
    add("TODO")(folder)
    bad = CliRunner().invoke(app, ["card", "check", str(folder)])
    assert bad.exit_code == 1
    assert "placeholder" in bad.output


@pytest.mark.parametrize("code", ["en", "no", "pt-BR", "zh-Hans", "yue", "code", "multilingual"])
def test_languages(code: str) -> None:
    assert is_language(code)


@pytest.mark.parametrize("code", ["english", "xx", "EN", "en_US", ""])
def test_what_is_no_language(code: str) -> None:
    assert not is_language(code)
