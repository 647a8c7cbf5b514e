"""What cards say about evidence: every section from its record, and `not measured` with the command where it is not."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import evidence_records
import pytest
import yaml
from huggingface_hub import metadata_load

from hfadapt.card.build import USER_BEGIN, build_card, render_card
from hfadapt.card.check import check_card
from hfadapt.card.check import sections as required
from hfadapt.records.evidence import SecurityRecord, SkippedPair
from hfadapt.records.stages import EvaluationRecord, TrainRecord
from hfadapt.run_folder import Cell, Run

EXAMPLES = Path(__file__).parents[2] / "cards" / "examples"
NAMES = ("text-classification", "causal-lm")


def proved(folder: Path, name: str, **changes: object) -> Cell:
    """An example cell with every record of evidence, and the card that follows."""
    shutil.copytree(EXAMPLES / name, folder)
    for record in ("security.json", "drift.json", "transfer.json"):
        (folder / record).unlink(missing_ok=True)
    evidence_records.put(folder, **changes)
    build_card(Cell(folder), execute=False)
    return Cell(folder)


@pytest.fixture(params=NAMES)
def cell(request: pytest.FixtureRequest, tmp_path: Path) -> Cell:
    return proved(tmp_path / "cell", request.param)


@pytest.fixture
def classifier(tmp_path: Path) -> Cell:
    return proved(tmp_path / "cell", "text-classification")


@pytest.fixture
def language_model(tmp_path: Path) -> Cell:
    return proved(tmp_path / "cell", "causal-lm")


def sections(folder: Path) -> dict[str, str]:
    """The text under each heading of a card."""
    parts = re.split(r"^## (.+)$", (folder / "README.md").read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("gate", ["macro_f1", "ndcg_at_10"])
def test_names_of_settings_may_have_numbers(classifier: Cell, gate: str) -> None:
    path = classifier.folder / "lock.yaml"
    lock = yaml.safe_load(path.read_text(encoding="utf-8"))
    lock["evaluate"]["gates"] = {gate: 0.02}
    path.write_text(yaml.safe_dump(lock), encoding="utf-8")
    build_card(classifier, execute=False)
    assert f"| `evaluate.gates.{gate}` | `0.02` |" in (classifier.folder / "README.md").read_text(encoding="utf-8")
    assert check_card(classifier.folder) == []


def test_settings_do_not_say_where_sources_lie(classifier: Cell) -> None:
    path = classifier.folder / "lock.yaml"
    lock = yaml.safe_load(path.read_text(encoding="utf-8"))
    sources = ["/home/anna/texts/own.txt", "../private/b.csv", "owner/name"]
    lock["pretrain"] = {"sources": [{"source": each, "split": None, "column": "body"} for each in sources]}
    lock["pretrain"] |= {"objective": "tsdae", "epochs": 1.0, "max_steps": 6, "learning_rate": 2e-4, "batch_rows": 8}
    lock["pretrain"] |= {"general": [], "micro_batch_rows": 8}
    path.write_text(yaml.safe_dump(lock), encoding="utf-8")
    build_card(classifier, execute=False)
    said = "source own.txt, column body; source b.csv, column body; source owner/name, column body"
    assert f"| `pretrain.sources` | `{said}` |" in (classifier.folder / "README.md").read_text(encoding="utf-8")
    assert "anna" not in (classifier.folder / "card.json").read_text(encoding="utf-8")
    assert [each for each in check_card(classifier.folder) if "path" in each.what] == []


def test_a_card_with_all_evidence_is_in_order(cell: Cell) -> None:
    assert check_card(cell.folder) == []
    assert set(required(cell.folder)) <= sections(cell.folder).keys()
    assert len(required(cell.folder)) == 15
    text = (cell.folder / "README.md").read_text(encoding="utf-8")
    assert "not measured;" not in text.lower()
    again = render_card(cell.folder)
    assert again.readme == text


def test_every_number_of_the_evidence_is_in_a_fact(cell: Cell) -> None:
    left = (cell.folder / "README.md").read_text(encoding="utf-8").split(USER_BEGIN)[0].split("---\n", 2)[2]
    left = re.sub(r"```.*?```", "", left, flags=re.S)
    facts = render_card(cell.folder).record.facts
    files = {field.split("#")[0] for fact in facts for field in fact.fields}
    assert {"security.json", "drift.json", "transfer.json", "evaluation.json", "train.json"} <= files
    for shown in sorted({fact.shown for fact in facts}, key=len, reverse=True):
        left = re.sub(rf"(?<!\w){re.escape(shown)}(?!\w)", " ", left)
    words = [word for word in re.findall(r"\S*\d\S*", left) if not re.search(r"[A-Za-z]", word)]
    assert words == ["2025)."]


def test_the_evaluation_has_tests_slices_and_calibration(classifier: Cell) -> None:
    said = sections(classifier.folder)["Evaluation"]
    assert "exact McNemar test of right and wrong answers | `accuracy` | 80 | 20 | 1.9e-09" in said
    rows = [line for line in said.splitlines() if line.startswith(("| length", "| class `"))]
    assert "over 22 tokens" in rows[0], "the worst slice is first"
    assert "| adapter | 160 | 0.950 | 0.830 |" in said
    assert "more sure than it is right" in said
    assert "same prompts (sha256 `abababababababab`)" in said


def test_a_new_evaluation_without_parts_says_why(classifier: Cell) -> None:
    record = classifier.evaluation
    record.model_copy(update={"slices": ()}).write(classifier.folder / "evaluation.json")
    build_card(classifier, execute=False)
    said = sections(classifier.folder)["Evaluation"]
    assert "No part of the test rows is large enough" in said
    assert "not measured" not in said


def test_efficiency_names_the_machine_and_the_rows(cell: Cell) -> None:
    said = sections(cell.folder)["Efficiency"]
    assert cell.evaluation.versions.processor in said
    assert "median of 64 rows | 21.3 ms" in said
    assert ("written one by one" in said) == (cell.lock.task == "causal-lm")
    assert "latency of one row | 21.3 ms" in (cell.folder / "README.md").read_text(encoding="utf-8")


def test_other_domains_show_transfer_and_forgetting(language_model: Cell) -> None:
    said = sections(language_model.folder)["Other domains and general text"]
    assert said.index("`tweets` (its own)") < said.index("| `movies`")
    assert "**Worse than the baseline on other domains**: `products`." in said
    assert "general text is lost**: `perplexity` 18.200 → 19.100, +0.900" in said
    assert "and on `movies`, `products`; no other" in sections(language_model.folder)["Limits"]


def test_drift_says_what_must_not_be_used(classifier: Cell) -> None:
    said = sections(classifier.folder)["Merging and storage"]
    assert "**Do not use**: `merged-nf4`." in said
    assert "**refused**: its answers differ by 0.0634 nats" in said
    assert "`merged-int8`, the target this-machine" in said


def test_nothing_refused_is_said_too(tmp_path: Path) -> None:
    record = evidence_records.drift()
    kept = record.model_copy(update={"refused": {}, "skipped": {}, "variants": record.variants[:2]})
    cell = proved(tmp_path / "cell", "text-classification", drift=kept)
    assert "All of them may be used." in sections(cell.folder)["Merging and storage"]
    assert check_card(cell.folder) == []


def test_limits_come_from_the_worst_slices_and_failing_examples(classifier: Cell) -> None:
    said = sections(classifier.folder)["Limits"]
    assert "**Worse than the baseline** on length `over 22 tokens`: `accuracy` 0.520, -0.125 [-0.210, -0.040]" in said
    failing = classifier.evaluation.failures
    assert len([line for line in said.splitlines() if re.search(r"\| 0\.9\d\d \|$", line)]) == len(failing)


def test_privacy_is_told_with_rows_and_intervals(language_model: Cell) -> None:
    said = sections(language_model.folder)["Privacy"]
    assert "**Training rows can be told from others" in said
    assert "0.631 [0.591, 0.671] by `loss difference`, 0.512 [0.472, 0.552] from the texts alone" in said
    assert "400 training rows, 400 held-out ones" in said
    assert "**Planted texts were found again**: 16 were planted" in said
    assert (
        "in 3.0 % [1.0 %, 5.0 %] of 100 rows, and of held-out rows in 1.0 % [0.0 %, 5.4 %]; the base did in 0.0 %"
        in said
    )
    assert "in 100 generated texts: e-mail 2; 1 of it stands in training rows" in said


def test_what_does_not_leak_is_not_said_to(tmp_path: Path) -> None:
    record = evidence_records.security(generates=True)
    assert record.membership is not None
    assert record.canaries is not None
    groups = tuple(group.model_copy(update={"found": 0}) for group in record.canaries.groups)
    safe = record.model_copy(
        update={
            "membership": record.membership.model_copy(update={"leaks": False}),
            "canaries": record.canaries.model_copy(update={"found": False, "groups": groups}),
        }
    )
    cell = proved(tmp_path / "cell", "causal-lm", security=safe)
    said = sections(cell.folder)["Privacy"]
    assert "could not be told from others" in said
    assert "No planted text was found again" in said
    assert "**" not in said
    assert check_card(cell.folder) == []


def test_a_classifier_generates_no_text(classifier: Cell) -> None:
    said = sections(classifier.folder)["Privacy"]
    assert "Verbatim reproduction, personal data in answers: do not apply, no text is generated." in said
    assert "Canaries: none were planted" in said


def test_a_model_that_chooses_has_nothing_to_repeat(tmp_path: Path) -> None:
    record = evidence_records.security(generates=True)
    none = record.model_copy(update={"verbatim": None, "personal_data": None})
    cell = proved(tmp_path / "cell", "causal-lm", security=none)
    assert "does not apply, the answer is one of a few given ones" in sections(cell.folder)["Privacy"]
    assert check_card(cell.folder) == []


def test_energy_and_the_threshold_of_the_eu_act(classifier: Cell) -> None:
    said = sections(classifier.folder)["Environment and compute"]
    assert "Energy of training: 1.5 Wh, estimated (processor seconds times 12 W a core)" in said
    assert "0.57 g of carbon dioxide for electricity in Germany" in said
    assert "1.06 × 10^13 FLOPs" in said
    assert "7.20 × 10^16 FLOPs (the base's paper); this training is 0.044 % of a third of that" in said
    assert "below the threshold" in said
    emissions = metadata_load(classifier.folder / "README.md")["co2_eq_emissions"]
    assert emissions["emissions"] == 0.57
    assert emissions["geographical_location"] == "Germany"


def test_tuning_above_a_third_of_the_base_is_said(classifier: Cell) -> None:
    train = classifier.train
    assert train.compute is not None
    above = train.compute.model_copy(update={"tuning_flops": 3e16})
    train.model_copy(update={"compute": above}).write(classifier.folder / "train.json")
    build_card(classifier, execute=False)
    assert "125.0 % of a third of that, so it is **above**" in sections(classifier.folder)["Environment and compute"]


# --- without evidence ------------------------------------------------------------------------------------------------


@pytest.fixture(params=NAMES)
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> Cell:
    """A cell of an older run: no records of evidence at all."""
    cell = proved(tmp_path / "cell", request.param)
    for name in ("security.json", "drift.json", "transfer.json"):
        (cell.folder / name).unlink()
    nothing = {
        "prompts_sha256": None, "paired_tests": (), "slices": (), "calibration": None, "efficiency": None,
        "general_text": None, "failures": (),
    }  # fmt: skip
    EvaluationRecord.read(cell.folder / "evaluation.json").model_copy(update=nothing).write(
        cell.folder / "evaluation.json"
    )
    TrainRecord.read(cell.folder / "train.json").model_copy(update={"energy": None, "compute": None}).write(
        cell.folder / "train.json"
    )
    build_card(cell, execute=False)
    return cell


def test_without_records_it_is_said_what_would_measure(bare: Cell) -> None:
    assert check_card(bare.folder) == []
    found = sections(bare.folder)
    wanted = {
        "Evaluation": ["Paired significance tests: not measured; `hfadapt evaluate RECIPE`"],
        "Efficiency": ["Latency of one row: not measured; `hfadapt evaluate RECIPE`"],
        "Other domains and general text": ["Other domains: not measured; `hfadapt run RECIPE evaluate.transfer=true`"],
        "Merging and storage": ["not measured; `hfadapt evaluate RECIPE evaluate.drift=true`"],
        "Robustness": ["not measured; `hfadapt evaluate RECIPE evaluate.security=true`"],
        "Privacy": ["Membership inference: not measured; `hfadapt evaluate RECIPE evaluate.security=true`"],
        "Environment and compute": ["Energy and emissions: not measured", "Training compute: about"],
        "Limits": ["other domains were not tested", "the highest loss"],
    }
    if bare.lock.task == "causal-lm":
        wanted["Privacy"] += ["Canaries: not measured", "Verbatim reproduction of training rows: not measured"]
        wanted["Other domains and general text"] += ["Perplexity on general text: not measured"]
    for section, sentences in wanted.items():
        for sentence in sentences:
            assert sentence in found[section], section
    assert "co2_eq_emissions" not in metadata_load(bare.folder / "README.md")


def test_the_commands_are_settings_of_the_recipe() -> None:
    from hfadapt.card.sections import COMMANDS
    from hfadapt.recipe.schema import Evaluate

    named = {name for command in COMMANDS.values() for name in re.findall(r"evaluate\.(\w+)=true", command)}
    assert len(named) == 4
    assert named <= set(Evaluate.model_fields)


# --- the row of the cross-domain matrix ------------------------------------------------------------------------------


def test_the_row_of_an_adapter_is_in_its_card(tmp_path: Path) -> None:
    folder = proved(tmp_path / "tweets" / "this-machine", "text-classification", transfer=None).folder
    assert "Other domains: not measured" in (folder / "README.md").read_text(encoding="utf-8")
    record = evidence_records.transfer()
    pairs = [("tweets", "news", "other labels"), ("movies", "news", "other labels, too")]
    skipped = tuple(SkippedPair(adapter=adapter, data=data, reason=reason) for adapter, data, reason in pairs)
    record = record.model_copy(update={"targets": (record.targets[0].model_copy(update={"skipped": skipped}),)})
    row = record.row_of("tweets", "this-machine")
    assert row is not None
    assert {one.adapter for one in row.targets[0].cells} == {"tweets"}
    assert [pair.name for pair in row.targets[0].skipped] == ["tweets on news"]
    Cell(folder).write(row)
    build_card(Cell(folder), execute=False)
    assert "`movies`" in sections(folder)["Other domains and general text"]
    assert "- Left out: other labels\n" in (folder / "README.md").read_text(encoding="utf-8")
    assert check_card(folder) == []
    assert record.row_of("reviews", "this-machine") is None


def test_a_matrix_of_the_first_version_is_read_and_its_card_stays(tmp_path: Path) -> None:
    """There the pairs that were left out had one text for a name."""
    folder = proved(tmp_path / "tweets" / "this-machine", "text-classification", transfer=None).folder
    record = evidence_records.transfer().row_of("tweets", "this-machine")
    assert record is not None
    Cell(folder).write(record)
    path = folder / "transfer.json"
    content = json.loads(path.read_text())
    content["version"] = 1
    content["targets"][0]["skipped"] = {"tweets on news": "other labels"}
    path.write_text(json.dumps(content))
    found = Cell(folder).transfer
    assert found is not None
    assert found.targets[0].skipped == (SkippedPair(adapter="tweets", data="news", reason="other labels"),)
    build_card(Cell(folder), execute=False)
    assert "- Left out: other labels\n" in (folder / "README.md").read_text(encoding="utf-8")
    assert check_card(folder) == []


def test_records_that_are_not_there_are_none(tmp_path: Path) -> None:
    cell = Run(tmp_path).cell("a", "b")
    assert (cell.security, cell.drift, cell.transfer, Run(tmp_path).transfer) == (None, None, None, None)
    record = evidence_records.security("a", "b")
    record.write(cell.folder / "security.json")
    assert cell.security == SecurityRecord.read(cell.folder / "security.json") == record
