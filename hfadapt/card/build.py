"""The card of an adapter: README.md and card.json, made from the records of its cell and from nothing else.

The same records give the same bytes. Text between `<!-- user:begin -->` and `<!-- user:end -->` is the user's and is
carried over. The loading snippet is run when the card is made; what it printed is kept in card.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment

from hfadapt.card import sections as evidence
from hfadapt.card.compute import flops_sentence
from hfadapt.card.facts import Facts, Records, escape, pointer, untraced, without_marks
from hfadapt.card.metadata import base_name, card_title, hub_metadata, languages, license_of
from hfadapt.card.snippet import example_file, run_snippet, snippet_text
from hfadapt.core import registry, resources
from hfadapt.core.errors import RunError
from hfadapt.core.progress import quiet_libraries
from hfadapt.core.spec import write_bytes, write_text
from hfadapt.models.adapter_files import PICTURE
from hfadapt.records.stages import CardRecord, in_order
from hfadapt.report.svg import loss_chart
from hfadapt.run_folder import LOCK, Cell

USER_BEGIN, USER_END = "<!-- user:begin -->", "<!-- user:end -->"
FAILURES = 5
PICTURE_SIDE = 96
"""Pixels of a picture's height."""
NO_SETTINGS = ("domains", "model", "name", "base", "budgets")
"""What of a lock names data, places and targets, and is shown elsewhere."""


@dataclass(frozen=True)
class Card:
    """A rendered card.

    Args:
        readme: README.md.
        record: card.json.
        chart: loss.svg.
        pictures: Further files that it shows: test rows that are files.
        untraced: Lines with a number that no record knows; empty in a sound card.
    """

    readme: str
    record: CardRecord
    chart: str
    pictures: Mapping[str, bytes]
    untraced: tuple[str, ...]


@quiet_libraries()
def build_card(cell: Cell | str | PathLike[str], *, execute: bool = True) -> CardRecord:
    """Writes README.md, card.json and loss.svg into the cell, and README.md and loss.svg beside the adapter.

    Test rows that are files are shown in the cell only, and named beside the adapter, which is what is passed on.

    Args:
        cell: It, or the path of its folder.
        execute: Run the loading snippet; otherwise what it printed the last time is kept.

    Raises:
        RunError: a record is missing, the loading snippet fails or disagrees with the evaluation, or a record holds
            a value that is not a number.

    Example:
        >>> from hfadapt import build_card
        >>> record = build_card("runs/sentiment/tweets/this-machine", execute=False)
        >>> record.FILE
        'card.json'
    """
    cell, output = Cell(Path(cell)), None
    if execute:
        records = Records(cell.folder)
        code = without_marks(snippet_text(Facts(records)))
        output = run_snippet(code, cell, records)
    card = render_card(cell.folder, output=output)
    if card.untraced:
        raise RunError("the card holds numbers that are in no record", got=card.untraced[0])
    for folder, readme in ((cell.folder, card.readme), (cell.adapter, without_pictures(card.readme))):
        write_text(folder / "README.md", readme)
        write_text(folder / "loss.svg", card.chart)
    for path in cell.folder.iterdir():
        if PICTURE.fullmatch(path.name) and path.name not in card.pictures:
            path.unlink()
    for name, content in card.pictures.items():
        write_bytes(cell.folder / name, content)
    card.record.write(cell.folder / "card.json")
    return card.record


def render_card(folder: Path, *, output: str | None = None) -> Card:
    """The card as it follows from the records in a cell's folder; writes nothing.

    Args:
        output: What the loading snippet printed; by default as card.json has it.

    Raises:
        RunError: a record is missing or holds a value that is not a number.
    """
    records = Records(folder)
    if output is None and (folder / CardRecord.FILE).exists():
        output = CardRecord.read(folder / CardRecord.FILE).output
    records.given["card.json"] = {"output": output}
    facts = Facts(records)
    snippet, pictures = snippet_text(facts), dict[str, bytes]()
    metadata = hub_metadata(facts)
    try:
        marked = (
            _environment()
            .get_template("card.md.j2")
            .render(
                **_context(facts, pictures),
                **_evidence(facts),
                added=_added(facts),
                front_matter=ModelCardData(**metadata).to_yaml(),
                snippet=snippet,
                executed=output is not None,
                user=user_text(folder / "README.md"),
            )
        )
    except LookupError as error:
        raise RunError(
            "a record lacks what the card needs",
            place=str(folder),
            got=f"no {error}",
            fix="run the cell again with this version of hfadapt",
        ) from None
    body = marked.split(USER_BEGIN)[0].split("---\n", 2)[2]
    record = CardRecord(
        domain=records.value("train.json#/domain"),
        target=records.value("train.json#/target"),
        metadata=metadata,
        snippet=without_marks(snippet),
        output=output,
        facts=facts.all(),
    )
    steps = records.file("metrics.jsonl") if records.has("metrics.jsonl") else []
    return Card(without_marks(_tidy(marked)), record, loss_chart(steps), pictures, tuple(untraced(body)))


def without_pictures(readme: str) -> str:
    """A card with the names of test rows in place of their pictures, which are not to be passed on by accident."""
    return re.sub(rf"!\[((?:\\.|[^\]\\])*)\]\({PICTURE.pattern}\)", r"\1", readme)


def _environment() -> Environment:
    environment = resources.templates(Path(__file__).with_name("templates"))
    environment.filters["escape_markdown"] = escape
    return environment


def _tidy(text: str) -> str:
    """At most one empty line in a row, none at the end of a line's text; the user's part stays as it is."""
    head, begin, rest = text.partition(USER_BEGIN)
    head = re.sub(r"[ \t]+\n", "\n", head)
    return re.sub(r"\n{3,}", "\n\n", head) + begin + rest


def user_text(readme: Path) -> str:
    """What the user wrote between the marks of an earlier card; of one that is cut off within it, what is left."""
    if not readme.exists():
        return "\n"
    _, begin, rest = readme.read_text(encoding="utf-8", errors="replace").partition(USER_BEGIN)
    text, end, _ = rest.rpartition(USER_END)
    if not begin:
        return "\n"
    return text if end else re.sub(r"(<!--[ a-z:]*-*)?\0*$", "", rest) or "\n"


def is_cut_off(readme: Path, cell_folder: Path) -> bool:
    """Whether a card ends too early, as after a crash; one that the user has written otherwise does not.

    Raises:
        RunError: a record is missing.
    """
    if not readme.is_file():
        return True
    text = readme.read_text(encoding="utf-8", errors="replace").rstrip("\0")
    if USER_END in text:
        return False
    # A cut may go through a character.
    made = text.split(USER_BEGIN)[0].rstrip("\ufffd")
    whole = render_card(cell_folder).readme
    return whole.startswith(made) or without_pictures(whole).startswith(made)


# --- what the template needs -----------------------------------------------------------------------------------------


def _context(facts: Facts, pictures: dict[str, bytes]) -> dict[str, Any]:
    records = facts.records
    lock, data, train = records.file("lock.yaml"), records.file("data.json"), records.file("train.json")
    evaluation, manifest = records.file("evaluation.json"), records.file("adapter/hfadapt.json")
    method, quant = registry.adapter(lock["adapter"]["method"]), registry.quant(lock["quant"])
    license = license_of(records)
    predictions = records.file("predictions.parquet") if records.has("predictions.parquet") else []
    judged = bool(predictions) and "gold" in predictions[0]
    worst = _worst(predictions, judged) if records.has("data/test.parquet") else []
    pairs = list(evaluation.get("worst") or [])[: evidence.MOST_FAILURES] if records.has("data/test.parquet") else []
    return {
        "fact": facts,
        "kind": evidence.kind_of(records),
        "example_file": example_file(registry.schema(data["form"])),
        "pointer": pointer,
        "shortened": "shortened; user names, addresses, long numbers and links replaced",
        "title": facts.cited(escape(card_title(records))),
        "headline": _headline(facts),
        "task_words": lock["task"],
        "counted": _counted(records),
        "languages": languages(records),
        "base_link": _base_link(facts),
        "base_name": escape(evaluation["baseline"]),
        "changed_base": lock.get("base"),
        "revision": train.get("model_revision"),
        "relation": method.relation,
        "has_rank": method.low_rank,
        "head_start": train.get("head_start"),
        "other_head": train.get("base_head") is not None,
        "taken": [name for name, value in (train.get("settings") or {}).items() if value not in ("", None)],
        "some_layers": train.get("model_layers") is not None,
        "full": method.whole_model,
        "quantised": quant.quantised,
        "metrics": evaluation["metrics"],
        "gain": lambda number: _gain(facts, number),
        "interval": lambda at, who: _interval(facts, at, who),
        "licence": license,
        "licence_text": facts.cited(f"`{license.id}`" + (f" ({escape(license.name)})" if license.name else "")),
        "base_license": train.get("model_license"),
        "sources": data["sources"],
        "dropped": list(data["dropped"]),
        "labels": list(data["labels"]),
        "splits": list(data["splits"]),
        "counts": data["label_counts"],
        "checks": [
            (step, name) for step, found in data["steps"].items() for name, value in found.items() if value != ""
        ],
        "audit": data.get("audit"),
        "world_size": train["world_size"],
        "resumed": train.get("resumed_from_step"),
        "stopped_early": train["stopped_early"],
        "exact": lock["data"]["dedupe"]["exact"],
        "keeps_best": lock["train"]["patience"] is not None,
        "validated": train.get("best_validation_loss") is not None,
        "phases": _phases(train, evaluation),
        "settings": _settings(records),
        "packages": list(train["versions"]["packages"]),
        "classes": list(evaluation.get("per_class") or {}),
        "confusion": list(evaluation.get("confusion") or {}),
        "speed": evaluation.get("rows_per_second"),
        "token_speed": evaluation.get("tokens_per_second"),
        "gates": evaluation.get("gates_failed") or [],
        "limits": _limits(facts),
        "failures": worst if judged else [],
        "hardest": [] if judged or pairs else worst,
        "pairs": pairs,
        "quoted": lambda row: _quoted(facts, row, pictures),
        "base_weights": manifest.get("weights_sha256"),
        "chat_template": manifest.get("chat_template_sha256"),
        "files": sorted(manifest["files"]),
        "citations": _citations(records),
    }


def _evidence(facts: Facts) -> dict[str, Any]:
    """What the evaluation found beyond the metrics; None or empty where it was not measured."""
    records = facts.records
    evaluation, train = records.file("evaluation.json"), records.file("train.json")
    calibration = evaluation.get("calibration") or {}
    bins = [(who, n) for who in ("base", "adapter") for n in range(len(calibration.get(who) or []))]
    generates = registry.task(records.file("lock.yaml")["task"]).pipeline_tag == "text-generation"
    shown = evidence.failures(records) if records.has("data/test.parquet") else []
    return {
        "not_measured": evidence.not_measured,
        "difference": lambda at: evidence.difference(facts, at),
        "estimate": lambda at, form="decimal": evidence.estimate(facts, at, form),
        "generates": generates,
        "judged": bool(evaluation.get("confusion")),
        "prompts": evaluation.get("prompts_sha256"),
        "setting": evaluation.get("setting"),
        "tests": evaluation.get("paired_tests") or [],
        "test_words": evidence.TESTS,
        "slice_name": lambda number: evidence.slice_name(facts, number),
        "slices": evidence.worst_slices(records),
        "calibration": bins,
        "calibration_sentence": evidence.calibration_sentence(facts, _counted(records))
        if calibration.get("adapter")
        else "",
        "efficiency": evaluation.get("efficiency"),
        "evaluated_memory": (evaluation.get("memory") or {}).get("evaluate"),
        "transfer": evidence.transfer_rows(records),
        "transfer_sentences": evidence.transfer_sentences(facts),
        "skipped": evidence.skipped_pairs(records),
        "harness": evaluation.get("harness") or [],
        "general": evidence.general_sentence(facts) if evaluation.get("general_text") else None,
        "drift": evidence.part(records, evidence.DRIFT, "variants"),
        "drift_sentence": evidence.drift_sentence(facts) if records.has(evidence.DRIFT) else "",
        "drift_spreads": records.has(evidence.DRIFT) and records.file(evidence.DRIFT).get("limit_spreads") is not None,
        "drift_skipped": evidence.drift_skipped(records),
        "drift_verdict": lambda number: evidence.drift_verdict(facts, number),
        "examples": shown,
        "sure": any(one["confidence"] is not None for one in evaluation.get("failures") or []),
        "failure_rows": [one["split_row"] for one in evaluation.get("failures") or []],
        "robustness": evidence.part(records, evidence.SECURITY, "robustness"),
        "privacy": evidence.privacy_sentences(facts, generates),
        "membership": evidence.part(records, evidence.SECURITY, "membership"),
        "canaries": evidence.part(records, evidence.SECURITY, "canaries"),
        "energy": evidence.energy_sentence(facts),
        "eu": evidence.eu_sentences(facts, "" if train.get("compute") else flops_sentence(facts)),
    }


def _added(facts: Facts) -> list[dict[str, str]]:
    """Sections of stages that the templates do not know, where they have written what they write."""
    return [
        {"title": section.title, "text": section.text(facts).strip()}
        for stage in registry.stages()
        for section in stage.sections(facts.records.has)
        if section.text
    ]


def _base_link(facts: Facts) -> str:
    """The base's name; on the Hub the metadata links it."""
    return facts.cited(f"`{base_name(facts.records)}`")


def _gain(facts: Facts, number: int) -> str:
    return evidence.difference(facts, f"evaluation.json#/metrics/{number}")


def _interval(facts: Facts, at: str, who: str) -> str:
    metric = facts.records.value(at)
    if metric.get(f"{who}_low") is None or metric.get(f"{who}_high") is None:
        return ""
    return f" [{facts(f'{at}/{who}_low', 'decimal')}, {facts(f'{at}/{who}_high', 'decimal')}]"


def _headline(facts: Facts) -> str:
    """One sentence with the leading metric."""
    metrics = facts.records.value("evaluation.json#/metrics")
    if not metrics or metrics[0].get("delta") is None:
        return "It was not compared with its base."
    at = "evaluation.json#/metrics/0"
    says = {
        "better": "The adapter is better than the baseline",
        "worse": "**The adapter is worse than the baseline**",
        "open": "The difference between adapter and baseline is within its interval of chance",
    }[evidence.verdict_of(metrics[0], metrics[0].get("higher_is_better", True))]
    return (
        f"{says}: {facts(f'{at}/name', 'code')} {facts(f'{at}/adapter', 'decimal')} against "
        f"{facts(f'{at}/base', 'decimal')}, difference {_gain(facts, 0)}."
    )


def _limits(facts: Facts) -> list[str]:
    """Sentences about where the adapter is weak or was not tried, each from a record."""
    records = facts.records
    said = []
    for number, metric in enumerate(records.value("evaluation.json#/metrics")):
        name = facts(f"evaluation.json#/metrics/{number}/name", "code")
        verdict = ""
        if metric.get("delta") is not None:
            verdict = evidence.verdict_of(metric, metric.get("higher_is_better", True))
        if verdict == "worse":
            said.append(f"{name} is **worse** than the baseline's: {_gain(facts, number)}.")
        elif verdict == "open":
            said.append(f"The difference in {name} may be chance: {_gain(facts, number)}.")
    warned = records.value("evaluation.json#").get("warnings") or []
    said += [f"{facts(f'evaluation.json#/warnings/{number}')}." for number in range(len(warned))]
    said += _weakest(facts)
    said += evidence.slice_sentences(facts)
    rows, domain = facts("evaluation.json#/rows", "integer"), facts("train.json#/domain", "code")
    others = [at for at, cell in evidence.transfer_rows(records) if cell["data"] != cell["adapter"]]
    if others:
        names = ", ".join(facts(f"{at}/data", "code") for at in others)
        said.append(f"Tested on {rows} rows of the domain {domain}, and on {names}; no other domains were tested.")
    else:
        said.append(f"Tested on {rows} rows of the domain {domain} only; other domains were not tested.")
    kind, named = evidence.kind_of(records), facts.cited(", ".join(languages(records)))
    if languages(records):
        what = "text" if kind.tokens else kind.nouns
        said.append(f"Trained and tested on {what} in {named}; other languages were not tested.")
    elif kind.tokens:
        said.append("The language of the data is not recorded.")
    said.append(evidence.size_sentence(facts))
    return said


def _weakest(facts: Facts) -> list[str]:
    """The class with the lowest recall, and what it is taken for."""
    classes = facts.records.value("evaluation.json#").get("per_class") or {}
    if len(classes) < 2:
        return []
    worst = min(classes, key=lambda name: (classes[name]["adapter"], name))
    at = "evaluation.json#" + pointer("per_class", worst)
    counted = _counted(facts.records)
    text = (
        f"Weakest class: {facts.cited('`' + worst.replace('`', '') + '`')}, recall {facts(at + '/adapter', 'decimal')} "
        f"on {facts(at + '/rows', 'integer')} {counted} (baseline {facts(at + '/base', 'decimal')})."
    )
    chosen = facts.records.value("evaluation.json#")["confusion"].get(worst) or {}
    taken = {name: n for name, n in chosen.items() if name != worst}
    if not any(taken.values()):
        return [text]
    most = max(taken, key=lambda name: (taken[name], name))
    if taken[most]:
        count = facts("evaluation.json#" + pointer("confusion", worst, most), "integer")
        text += f" It is most often taken for {facts.cited('`' + most.replace('`', '') + '`')}: {count} {counted}."
    return [text]


def _counted(records: Records) -> str:
    """What the figures of classes count."""
    return registry.task(records.file("lock.yaml")["task"]).counted


def _worst(predictions: Sequence[Mapping[str, Any]], judged: bool) -> list[int]:
    """Numbers of the rows with the highest loss; with `judged`, only wrong ones."""
    rows = [n for n, row in enumerate(predictions) if not judged or row["gold"] != row["adapter"]]
    return sorted(rows, key=lambda n: (-predictions[n]["adapter_loss"], n))[:FAILURES]


def _quoted(facts: Facts, row: int, pictures: dict[str, bytes]) -> str:
    """The text of a test row, shortened and redacted; the picture of a file, which is put among the others."""
    content = facts.records.value(f"data/test.parquet#/{row}")
    schema = registry.schema(facts.records.value("data.json#/form"))
    path = schema.quoted(content)
    at = f"data/test.parquet#/{row}/{'/'.join(path)}"
    text = facts(at, "quote", *(("differing",) if path == ("prompt",) else ()))
    if not schema.media:
        return text
    data, media_type = registry.modality(schema.modality).preview(content[schema.media], PICTURE_SIDE)
    name = f"error-{len(pictures) + 1}.{media_type.rpartition('/')[2]}"
    pictures[name] = data
    return f"![{text}]({facts.cited(name)})"


def _phases(train: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = dict.fromkeys(train.get("memory") or {}, "train.json")
    found |= dict.fromkeys(evaluation.get("memory") or {}, "evaluation.json")
    return [(phase, found[phase]) for phase in in_order(found)]


def _settings(records: Records) -> list[tuple[tuple[str, ...], str | None]]:
    """Every resolved setting with where its reason stands; what names places on a disk is left out.

    So is what hfadapt has learned since the lock was written: a card stays what it was.
    """
    lock, written = records.file("lock.yaml"), yaml.safe_load((records.folder / LOCK).read_text(encoding="utf-8"))
    reasons = {}
    if records.has("plan.json"):
        for number, decision in enumerate(records.value("plan.json#/cells/0/decisions")):
            reasons[decision["field"]] = (decision["value"], f"plan.json#/cells/0/decisions/{number}/reason")
    found = []
    for path, value in _leaves({key: value for key, value in lock.items() if key not in NO_SETTINGS}):
        # What is not set is not written; where its whole section is not, hfadapt has learned that since.
        expected = path if value is not None or path[-1] in registry.names("stages") else path[:-1]
        if not _holds(written, expected):
            continue
        decided = reasons.get(".".join(path))
        found.append((path, decided[1] if decided and decided[0] == value else None))
    return found


def _holds(value: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


def _leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, item in value.items():
        found += _leaves(item, (*path, key)) if isinstance(item, dict) and item else [((*path, key), item)]
    return found


def _citations(records: Records) -> list[str]:
    refs = ["train.json#/model_citation"]
    refs += [f"data.json#/sources/{n}/citation" for n in range(len(records.value("data.json#/sources")))]
    known: dict[str, str] = {}
    for ref in refs:
        name, _, path = ref.partition("#")
        holder, _, key = path.rpartition("/")
        text = records.value(f"{name}#{holder}").get(key)
        if text:
            known.setdefault(text, ref)
    return list(known.values())
