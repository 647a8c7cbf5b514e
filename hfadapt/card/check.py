"""Checks a card: its metadata, what must not stand in it, and that every value in it equals its record.

The Hub's own client accepts an unknown licence, a wrong relation or NaN without a word when it is offline, so nothing
is left to it.
"""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from yaml import YAMLError

from hfadapt.card import licenses
from hfadapt.card.build import USER_BEGIN, USER_END, Card, render_card, without_pictures
from hfadapt.card.facts import QUOTING, Records, compute, shown
from hfadapt.card.metadata import METRIC_TYPES, license_of, metric_type
from hfadapt.card.record_checks import check_evidence
from hfadapt.core import registry
from hfadapt.core.errors import Problem, RunError, nearest
from hfadapt.core.secret_rules import KEY
from hfadapt.recipe.sources import HUB_ID
from hfadapt.records.stages import CardRecord

UNCLEAR = (None, "unknown", "other")
RELATIONS = ("adapter", "finetune", "merge", "quantized")
LIBRARIES = ("peft", "transformers")
KEYS = (
    "language", "license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model",
    "base_model_relation", "datasets", "metrics", "tags", "model-index", "co2_eq_emissions",
)  # fmt: skip
REQUIRED = ("license", "library_name", "pipeline_tag", "base_model", "base_model_relation", "tags", "model-index")
ISO_639_1 = (
    " aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el "
    "en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja "
    "jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd "
    "ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss "
    "st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu "
)
FORBIDDEN = (
    (
        re.compile(
            r"more information needed|\[needed\]|lorem ipsum|\b(?:TODO|TBD|FIXME|XXX)\b|<(?:your|insert)[ -]", re.I
        ),
        "a placeholder is left in the card",
    ),
    (re.compile(r"(?<![\w-])(?:nan|[+-]?inf(?:inity)?)(?![\w-])", re.I), "a value in the card is not a number"),
    (
        re.compile(r"(?<![\w.:/)\]<*-])/[\w.@-]+/[\w./@-]+|\b[A-Za-z]:\\\S+|(?<![\w])~/\S*|\bfile://\S*"),
        "a path of a machine stands in the card",
    ),
    (
        re.compile(
            r"\b[\w-]+\.(?:local|internal|lan|localdomain|corp)\b"
            r"|\b(?:10|127|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}\b"
        ),
        "the name or address of a host stands in the card",
    ),
    (KEY, "a secret stands in the card"),
)


def check_card(folder: str | PathLike[str], license: str | None = None) -> list[Problem]:
    """Everything that is wrong with the card in a cell's folder; an empty list when it is in order.

    Args:
        license: What the user says the licence is, where the records cannot say.

    Example:
        >>> from hfadapt import check_card
        >>> [problem.what for problem in check_card("runs/sentiment/tweets/this-machine", license="apache-2.0")]
        []
    """
    folder = Path(folder)
    readme = folder / "README.md"
    if not readme.exists():
        return [Problem("there is no card", str(readme), fix="hfadapt card build CELL")]
    text = readme.read_text(encoding="utf-8", errors="replace")
    problems = [*_metadata_problems(readme), *check_evidence(folder)]
    try:
        record = CardRecord.read(folder / "card.json")
        card = render_card(folder)
    except RunError as error:
        return [*problems, *error.problems]
    problems += license_problems(folder) if license is None else []
    problems += _word_problems(text, card, readme)
    problems += _section_problems(text, record, readme)
    problems += _fact_problems(text, record, Records(folder, {"card.json": {"output": record.output}}), readme)
    problems += _rebuild_problems(text, record, card, folder)
    return problems


def license_problems(folder: Path) -> list[Problem]:
    """What keeps an adapter from being passed on: a licence of base or data that is not stated, or does not combine."""
    license = license_of(Records(folder))
    if license.clear and license.id not in UNCLEAR:
        return []
    return [
        Problem(
            "the license of this adapter is not clear",
            str(folder / "README.md"),
            got=f"{license.id}{f' ({license.name})' if license.name else ''}: {' '.join(license.why)}",
            fix="name each source's `license` in the recipe, or say what holds with --license ID",
        )
    ]


# --- metadata --------------------------------------------------------------------------------------------------------


def _metadata_problems(readme: Path) -> Iterator[Problem]:
    metadata, why = None, "the card does not begin with metadata between lines of ---"
    try:
        metadata = metadata_load(readme)
    except (ValueError, YAMLError) as error:
        why = " ".join(str(error).split())[:200]
    if metadata is None:
        yield Problem("the metadata cannot be read", str(readme), got=why, fix="hfadapt card build CELL")
        return
    place = f"{readme} (metadata)"
    for key in metadata:
        if key not in KEYS:
            close = nearest(str(key), KEYS)
            yield Problem(
                "unknown key", f"{place}: {key}", allowed=", ".join(KEYS), fix=close and f"did you mean {close}?"
            )
    for key in REQUIRED:
        if key not in metadata:
            yield Problem("a key is missing", f"{place}: {key}", fix="hfadapt card build CELL")
    yield from _choices(metadata, place)
    yield from _license(metadata, place)
    yield from _names(metadata, place)
    if "co2_eq_emissions" in metadata:
        yield from _emissions(metadata["co2_eq_emissions"], f"{place}: co2_eq_emissions")
    if "model-index" in metadata:
        yield from _model_index(metadata["model-index"], f"{place}: model-index", _measured(readme.parent))


def _emissions(emissions: Any, place: str) -> Iterator[Problem]:
    grams = emissions.get("emissions") if isinstance(emissions, dict) else None
    if isinstance(grams, bool) or not isinstance(grams, (int, float)) or not math.isfinite(grams) or grams < 0:
        yield Problem("emissions are not a number of grams", place, got=repr(grams), fix="hfadapt card build CELL")


def _choices(metadata: Mapping[str, Any], place: str) -> Iterator[Problem]:
    tags = {registry.task(name).pipeline_tag for name in registry.names("tasks")}
    for key, allowed in (
        ("base_model_relation", RELATIONS),
        ("library_name", LIBRARIES),
        ("pipeline_tag", tuple(sorted(tags))),
    ):
        if key in metadata and metadata[key] not in allowed:
            yield Problem("not a known value", f"{place}: {key}", got=repr(metadata[key]), allowed=", ".join(allowed))
    languages = metadata.get("language", [])
    for language in languages if isinstance(languages, list) else [languages]:
        # A bare `no` is read as False: Norwegian must be quoted.
        if not isinstance(language, str) or not is_language(language):
            yield Problem(
                "not a language code", f"{place}: language", got=repr(language), allowed="ISO 639, such as en"
            )


def is_language(code: str) -> bool:
    """Whether a code is ISO 639-1 or has the form of ISO 639-3, with or without a region or script."""
    if code in ("code", "multilingual"):
        return True
    first, *rest = code.split("-")
    known = f" {first} " in ISO_639_1 if len(first) == 2 else bool(re.fullmatch(r"[a-z]{3}", first))
    return known and all(re.fullmatch(r"[A-Za-z0-9]{2,8}", part) for part in rest)


def _license(metadata: Mapping[str, Any], place: str) -> Iterator[Problem]:
    license = metadata.get("license")
    if license is not None and license not in licenses.hub_ids():
        close = nearest(str(license), licenses.hub_ids())
        fix = f"did you mean {close}?" if close else "use `other` with license_name"
        yield Problem("not a licence id of the Hub", f"{place}: license", got=repr(license), fix=fix)
    if license == "other" and not metadata.get("license_name"):
        yield Problem("`license: other` needs a name", f"{place}: license_name", fix="hfadapt card build CELL")


def _names(metadata: Mapping[str, Any], place: str) -> Iterator[Problem]:
    base = metadata.get("base_model")
    bases = base if isinstance(base, list) else [base] if base is not None else []
    datasets = metadata.get("datasets", [])
    for key, names in (("base_model", bases), ("datasets", datasets if isinstance(datasets, list) else [datasets])):
        for name in names:
            if not isinstance(name, str) or not HUB_ID.fullmatch(name):
                yield Problem("not a name of the Hub", f"{place}: {key}", got=repr(name), allowed="owner/name")
    for key in ("tags", "metrics"):
        values = metadata.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            yield Problem("not a list of words", f"{place}: {key}", got=repr(values))


def _measured(folder: Path) -> set[str]:
    """Names of metrics in the evaluation, which may be a user's own."""
    try:
        return {str(metric["name"]) for metric in Records(folder).value("evaluation.json#/metrics")}
    except (LookupError, RunError, TypeError):
        return set()


def _model_index(index: Any, place: str, measured: set[str]) -> Iterator[Problem]:
    try:
        results = [(result, metric) for entry in index for result in entry["results"] for metric in result["metrics"]]
        named = all(entry["name"] for entry in index) and all(
            result["task"]["type"] and result["dataset"]["name"] and result["dataset"]["type"] for result, _ in results
        )
    except (KeyError, TypeError):
        yield Problem("results lack a name, task, dataset or metric", place, fix="hfadapt card build CELL")
        return
    if not named or not results:
        yield Problem("results lack a name, task, dataset or metric", place, fix="hfadapt card build CELL")
    for _, metric in results:
        value, kind = metric.get("value"), metric.get("type")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            yield Problem("a result is not a finite number", f"{place}: {kind}", got=repr(value))
        if kind not in (known := {*METRIC_TYPES.values(), *map(metric_type, measured)}):
            allowed = ", ".join(sorted(known))
            yield Problem("not a known metric", f"{place}: type", got=repr(kind), allowed=allowed)


# --- words -----------------------------------------------------------------------------------------------------------


def _word_problems(text: str, card: Card, readme: Path) -> Iterator[Problem]:
    """What must not stand in a card; texts that the card quotes from data are left out."""
    own = text
    quoted = {fact.shown for fact in card.record.facts if fact.form in QUOTING}
    for quote in sorted(quoted, key=len, reverse=True):
        own = own.replace(quote, " " * len(quote)) if len(quote) > 2 else own
    host = socket.gethostname()
    checks = list(FORBIDDEN)
    if len(host) >= 4 and re.search(r"[\d.-]", host):
        checks.append((re.compile(rf"\b{re.escape(host)}\b"), "the name or address of a host stands in the card"))
    for number, line in enumerate(own.splitlines(), 1):
        for pattern, what in checks:
            if found := pattern.search(line):
                secret = "secret" in what
                yield Problem(what, f"{readme}:{number}", got=None if secret else found[0], fix="take it out")


def sections(folder: Path) -> list[str]:
    """The headings that a card must have: those of the usual stages, and of others where they have been done."""
    return [
        section.title
        for stage in registry.stages()
        for section in stage.sections(lambda name: (folder / name).exists())
    ]


def _section_problems(text: str, record: CardRecord, readme: Path) -> Iterator[Problem]:
    for section in sections(readme.parent):
        if not re.search(rf"^## {re.escape(section)}$", text, re.M):
            yield Problem("a section is missing", f"{readme}: {section}", fix="hfadapt card build CELL")
    for mark in (USER_BEGIN, USER_END):
        if text.count(mark) != 1:
            yield Problem("the marks around the user's text are damaged", str(readme), allowed=f"one {mark}")
    block = re.search(r"```python\n(.*?)```", text, re.S)
    if not block or "from_pretrained" not in block[1]:
        yield Problem("there is no loading snippet", f"{readme}: How to load", fix="hfadapt card build CELL")
    if record.output is None:
        yield Problem("the loading snippet has never been run", f"{readme}: How to load", fix="hfadapt card build CELL")


# --- values ----------------------------------------------------------------------------------------------------------


def _fact_problems(text: str, record: CardRecord, records: Records, readme: Path) -> Iterator[Problem]:
    for fact in record.facts:
        place = f"{readme}: {fact.id}"
        try:
            now = shown(compute(records, fact.how, fact.fields, fact.factor), fact.form)
        except (LookupError, RunError, TypeError, ValueError):
            yield Problem("the record has no such field", place, got=", ".join(fact.fields))
            continue
        if now != fact.shown:
            yield Problem(
                "a value differs from its record",
                place,
                got=fact.shown,
                allowed=f"{now} ({', '.join(fact.fields)})",
                fix="hfadapt card build CELL",
            )
        elif fact.shown not in text:
            yield Problem("a value is not in the card", place, allowed=fact.shown, fix="hfadapt card build CELL")


def _rebuild_problems(text: str, record: CardRecord, card: Card, folder: Path) -> Iterator[Problem]:
    """The card that follows from the records, against the files on disk."""
    readme = folder / "README.md"
    again = "hfadapt card build CELL; your own text belongs between the user marks"
    for number, (found, wanted) in enumerate(_pairs(text, card.readme), 1):
        if found != wanted:
            yield Problem(
                "the card differs from its records", f"{readme}:{number}", got=found, allowed=wanted, fix=again
            )
            break
    for line in card.untraced:
        yield Problem("a number comes from no record", str(readme), got=line)
    if record != card.record:
        changed = [name for name in type(record).model_fields if getattr(record, name) != getattr(card.record, name)]
        yield Problem(
            "card.json differs from its records", str(folder / "card.json"), got=", ".join(changed), fix=again
        )
    copies = [(folder / "loss.svg", card.chart)]
    if (folder / "adapter").is_dir():
        copies += [
            (folder / "adapter" / "README.md", without_pictures(text)),
            (folder / "adapter" / "loss.svg", card.chart),
        ]
    for path, wanted in copies:
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != wanted:
            yield Problem("a copy is missing or old", str(path), fix=again)
    for name in card.pictures:
        if not (folder / name).is_file():
            yield Problem("a picture of the card is missing", str(folder / name), fix=again)


def _pairs(found: str, wanted: str) -> Iterator[tuple[str, str]]:
    """Lines side by side; an absent one is empty."""
    left, right = found.splitlines(), wanted.splitlines()
    for number in range(max(len(left), len(right))):
        yield (left[number] if number < len(left) else "", right[number] if number < len(right) else "")
