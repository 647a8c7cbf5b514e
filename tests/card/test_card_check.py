"""Every seeded fault of a card is found, and named for what it is."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import evidence_records
import pytest

from hfadapt.card.build import build_card
from hfadapt.card.check import check_card, is_language
from hfadapt.run_folder import Cell

EXAMPLES = Path(__file__).parents[2] / "cards" / "examples"
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


# --- faults of the evidence ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's cell with every record of evidence and a sound card."""
    folder = tmp_path_factory.mktemp("proved") / "cell"
    shutil.copytree(EXAMPLES / "text-classification", folder)
    evidence_records.put(folder)
    build_card(Cell(folder), execute=False)
    return folder


def stated(seed: Fault) -> Fault:
    """A fault of a record, with a card that says what the wrong record says."""

    def both(folder: Path) -> None:
        seed(folder)
        build_card(Cell(folder), execute=False)

    return both


def inside(name: str, change: Callable[[dict], object]) -> Fault:
    """Changes the content of a record."""
    return lambda folder: evidence_records.edit(folder / name, change)


def put(name: str, path: str, value: object) -> Fault:
    """Sets a field, such as `membership/auc/value`, in a record."""

    def change(content: dict) -> None:
        *parts, last = path.split("/")
        for part in parts:
            content = content[int(part)] if isinstance(content, list) else content[part]
        content[int(last) if isinstance(content, list) else last] = value

    return inside(name, change)


NAN = float("nan")
EVIDENCE_FAULTS: dict[str, tuple[Fault, str]] = {
    # the card and its records
    "drift differs": (put("drift.json", "variants/1/kl_nats", 0.0009), "a value differs"),
    "drift number in the card": (text(r"\| 0\.063 \|", "| 0.001 |"), "the card differs"),
    "refusal taken out of the card": (text(r"\*\*refused\*\*: [^|]+\|", "within the limits |"), "the card differs"),
    "warning taken out of the card": (text(r" \*\*Do not use\*\*: `merged-nf4`\.", ""), "the card differs"),
    "attack differs": (put("security.json", "membership/attacks/0/auc/value", 0.62), "a value differs"),
    "leak made small": (text(r"\*\*Training rows can be told[^*]*\*\*", "Nothing leaks"), "the card differs"),
    "privacy section lost": (text("^## Privacy$.*?(?=^## )", ""), "a section is missing"),
    "robustness section lost": (text("^## Robustness$.*?(?=^## )", ""), "a section is missing"),
    "drift section lost": (text("^## Merging and storage$.*?(?=^## )", ""), "a section is missing"),
    "other domains lost": (text("^## Other domains and general text$.*?(?=^## )", ""), "a section is missing"),
    "efficiency lost": (text("^## Efficiency$.*?(?=^## )", ""), "a section is missing"),
    "security.json came later": (
        lambda folder: [
            (folder / "security.json").rename(folder / "kept"),
            build_card(Cell(folder), execute=False),
            (folder / "kept").rename(folder / "security.json"),
        ],
        "the card differs",
    ),
    "security.json lost": (remove("security.json"), "no such field"),
    "drift.json lost": (remove("drift.json"), "no such field"),
    "transfer.json lost": (remove("transfer.json"), "no such field"),
    "transfer differs": (put("transfer.json", "cells", 1), "does not match its schema"),
    "energy differs": (put("train.json", "energy/joules", 99.0), "a value differs"),
    "compute differs": (put("train.json", "compute/base_flops", 1e25), "a value differs"),
    "emissions in words": (text("emissions: 0.57", "emissions: little"), "not a number of grams"),
    "emissions are NaN": (text("emissions: 0.57", "emissions: .nan"), "not a number of grams"),
    "emissions below zero": (text("emissions: 0.57", "emissions: -3"), "not a number of grams"),
    "latency in the card": (text(r"21\.3 ms", "2.13 ms"), "the card differs"),
    "slice taken out": (text(r"^\| length `over 22 tokens`.*?\n", ""), "the card differs"),
    "weakness taken out": (text(r"^- \*\*Worse than the baseline\*\* on.*?\n", ""), "the card differs"),
    # records that cannot be, with a card that repeats them
    "NaN in security.json": (put("security.json", "membership/blind/auc/value", NAN), "not a number"),
    "NaN in drift.json": (put("drift.json", "variants/2/kl_nats", NAN), "not a number"),
    "infinity in transfer.json": (put("transfer.json", "targets/0/cells/0/value", float("inf")), "not a number"),
    "NaN that no card shows": (put("security.json", "seconds", NAN), "not a number"),
    "AUC above one": (stated(put("security.json", "membership/attacks/0/auc/value", 1.4)), "is not a share"),
    "value outside its interval": (
        stated(put("security.json", "membership/attacks/1/auc/value", 0.9)), "does not hold its value",
    ),
    "no rows behind a rate": (
        stated(put("security.json", "membership/blind/auc/rows", 0)), "no rows behind",
    ),
    "no held-out rows": (stated(put("security.json", "membership/non_members", 0)), "without members"),
    "more rows changed than there are": (
        stated(put("security.json", "robustness/0/changed_rows", 401)), "more rows than there are",
    ),
    "drift above its limit, not refused": (stated(put("drift.json", "refused", {})), "above the limit and not refused"),
    "refused but never measured": (
        stated(inside("drift.json", lambda drift: drift["refused"].update(onnx="too far"))), "was not measured",
    ),
    "negative divergence": (stated(put("drift.json", "variants/1/kl_nats", -0.1)), "negative"),
    "security of another cell": (stated(put("security.json", "domain", "news")), "of another cell"),
    "drift of another target": (stated(put("drift.json", "target", "t4")), "of another cell"),
    "difference that is none": (
        stated(put("transfer.json", "targets/0/cells/0/delta", 0.5)), "not adapter minus base",
    ),
    "row of another adapter": (
        stated(put("transfer.json", "targets/0/cells/1/adapter", "news")), "of another adapter",
    ),
    "p above one": (stated(put("evaluation.json", "paired_tests/0/p_value", 1.9)), "between 0 and 1"),
    "test of more rows": (stated(put("evaluation.json", "paired_tests/0/better", 900)), "more rows than there are"),
    "slice of more rows": (stated(put("evaluation.json", "slices/0/rows", 9000)), "more rows than there are"),
    "reliability without some rows": (
        stated(put("evaluation.json", "calibration/adapter/4/rows", 1)), "does not count every row",
    ),
    "latency upside down": (
        stated(put("evaluation.json", "efficiency/latency_p95_seconds", 0.001)), "above the slowest twentieth",
    ),
    "another adapter was timed": (
        stated(put("evaluation.json", "efficiency/adapter_bytes", 7)), "not that of train.json",
    ),
    "gain that is none": (stated(put("evaluation.json", "metrics/0/delta", 0.9)), "not adapter minus base"),
    "not all rows": (stated(put("evaluation.json", "rows", 399)), "not all rows"),
    "unknown field in a record": (put("drift.json", "approved", True), "does not match its schema"),
    "licence of the data not stated": (stated(put("data.json", "sources/0/license", None)), "is not clear"),
    "licences that do not combine": (
        stated(lambda folder: [
            put("train.json", "model_license", "llama3.1")(folder),
            put("data.json", "sources/0/license", "cc-by-nc-4.0")(folder),
        ]),
        "is not clear",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EVIDENCE_FAULTS)
def test_a_seeded_fault_of_the_evidence_is_found(name: str, proved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(proved, folder)
    seed, wanted = EVIDENCE_FAULTS[name]
    seed(folder)
    problems = check_card(folder)
    assert any(wanted in str(problem) for problem in problems), [str(problem) for problem in problems]
    assert all(problem.place for problem in problems)


def test_the_sound_cell_has_no_fault(proved: Path) -> None:
    assert check_card(proved) == []


def test_what_the_user_says_of_the_license_clears_the_card_check(proved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(proved, folder)
    stated(put("data.json", "sources/0/license", None))(folder)
    (problem,) = check_card(folder)
    assert "--license" in problem.fix
    assert check_card(folder, "mit") == []


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


def test_a_record_without_a_field_that_the_card_needs_is_told(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "text-classification", tmp_path / "cell")
    record = json.loads((folder / "evaluation.json").read_text())
    del record["metrics"]
    (folder / "evaluation.json").write_text(json.dumps(record))
    (problem,) = [each for each in check_card(folder) if each.what == "the record has no such field"]
    assert (problem.got, problem.place) == ("metrics", str(folder / "evaluation.json"))


def test_the_command_line_names_problems_and_exits_with_1(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from hfadapt.cli.app import app
    from hfadapt.records.stages import CellState

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
