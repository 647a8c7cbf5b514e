"""Texts, chats and language models of packages."""

from __future__ import annotations

import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hfadapt.core.gguf import dequantise
from hfadapt.core.samples.preparation import Content, Sample, opened_tar, prepares, tar_member, write_rows


@prepares("vader")
def vader(sample: Sample, content: Content, folder: Path) -> None:
    """Texts with the class of their mean rating: above 0.5 positive, below -0.5 negative."""
    rows = []
    for text, rating in _rated(sample, content):
        label = "positive" if rating > 0.5 else "negative" if rating < -0.5 else "neutral"
        rows.append({"text": text, "label": label})
    write_rows(rows, folder)


@prepares("vader-rated")
def vader_rated(sample: Sample, content: Content, folder: Path) -> None:
    """Texts with their mean rating, from -4 to 4."""
    write_rows([{"text": text, "rating": rating} for text, rating in _rated(sample, content)], folder)


def _rated(sample: Sample, content: Content) -> Iterator[tuple[str, float]]:
    """Text and mean rating from lines of id, rating and text, in an archive within the archive."""
    assert sample.member is not None
    with opened_tar(content[sample.files[0]]) as inner:
        lines = tar_member(inner, sample.member).decode("utf-8").splitlines()
    for line in lines:
        _, rating, text = line.split("\t", 2)
        yield text.strip(), float(rating)


@prepares("chatterbot")
def chatterbot(sample: Sample, content: Content, folder: Path) -> None:
    """Conversations as alternating turns; a last turn without an answer is left out."""
    import yaml

    roles, rows = ("user", "assistant"), []
    for data in content.values():
        for turns in yaml.safe_load(data)["conversations"]:
            texts = [str(turn).strip() for turn in turns]
            texts = texts[: len(texts) // 2 * 2]
            if texts:
                rows.append({"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]})
    write_rows(rows, folder)


@prepares("gguf")
def gguf(sample: Sample, content: Content, folder: Path) -> None:
    """A language model in one GGUF file."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.gguf"
        file.write_bytes(content[sample.files[0]])
        dequantise(file, folder)


LICENSE_CATEGORIES = ("Permissive", "Proprietary Free", "Copyleft Limited", "Copyleft", "Commercial")
"""Those with a hundred licences and more."""
LEAST_DIAGNOSES = 100
"""Of a chapter; that of codes for special purposes has five."""


def _license_texts(content: Mapping[str, bytes]) -> Iterator[dict[str, str]]:
    """English licences, each with its category; YAML stands before the text. Many differ in a name alone."""
    import yaml

    for file in content.values():
        _, front, text = file.decode("utf-8").split("---", 2)
        about = yaml.safe_load(front)
        if text.strip() and about["category"] in LICENSE_CATEGORIES and about.get("language", "en") == "en":
            yield {"text": text.strip(), "label": about["category"], "key": str(about["key"])}


def _icd10_chapters(content: bytes) -> Iterator[dict[str, str]]:
    """Every diagnosis and its inclusion terms with the chapter they stand in. `code` is the category of three
    characters: rows of one differ in a side of the body or a digit, and belong into one split."""
    from xml.etree import ElementTree

    for chapter in ElementTree.fromstring(content).iter("chapter"):
        diagnoses = list(chapter.iter("diag"))
        if len(diagnoses) < LEAST_DIAGNOSES:
            continue
        title = re.sub(r"\s*\([A-Z]\w+-[A-Z]\w+\)", "", chapter.findtext("desc", ""))
        for diagnosis in diagnoses:
            notes = [note.text for note in diagnosis.findall("inclusionTerm/note")]
            for text in dict.fromkeys((diagnosis.findtext("desc"), *notes)):
                if text and text.strip():
                    yield {"text": text.strip(), "label": title, "code": diagnosis.findtext("name", "")[:3]}


@prepares("license-texts")
def license_texts(sample: Sample, content: Content, folder: Path) -> None:
    """English licences with their category."""
    write_rows(list(_license_texts(content)), folder)


@prepares("icd10-chapters")
def icd10_chapters(sample: Sample, content: Content, folder: Path) -> None:
    """Diagnoses with their chapter."""
    write_rows(list(_icd10_chapters(content[sample.files[0]])), folder)


def _diagnoses(content: bytes) -> Iterator[dict[str, str]]:
    """Terms that stand under a diagnosis of the classification, with it; `group` is its category, such as A01."""
    from xml.etree import ElementTree

    for diagnosis in ElementTree.fromstring(content).iter("diag"):
        for note in diagnosis.findall("inclusionTerm/note"):
            yield {
                "anchor": str(note.text),
                "positive": str(diagnosis.findtext("desc")),
                "group": str(diagnosis.findtext("name"))[:3],
            }


def _named_diagnoses(content: bytes) -> Iterator[dict[str, str]]:
    """The same as a prompt, with the diagnosis as the better answer and another one of its chapter as the worse, drawn
    with a seed: no one has preferred anything, the worse answer is wrong."""
    from xml.etree import ElementTree

    draw = random.Random(17)
    for chapter in ElementTree.fromstring(content).iter("chapter"):
        names = [(str(each.findtext("desc")), str(each.findtext("name"))[:3]) for each in chapter.iter("diag")]
        for diagnosis in chapter.iter("diag"):
            title, group = str(diagnosis.findtext("desc")), str(diagnosis.findtext("name"))[:3]
            others = [name for name, code in names if code != group]
            for note in diagnosis.findall("inclusionTerm/note") if others else ():
                other = draw.choice(others)
                prompt = f"{note.text}\nDiagnosis:"
                yield {"prompt": prompt, "chosen": f" {title}", "rejected": f" {other}", "group": group}


LICENSE_RULES, RULE_CHARACTERS, LICENSE_CHARACTERS = 8, (30, 800), 600
"""Rules of a licence that are taken, of which some have hundreds; how long they are; how much of a licence is read."""
LICENSE_KINDS = ("is_license_notice", "is_license_text", "is_license_reference")


LEAST_TOGETHER, NOTICE_CHARACTERS = 50, (30, 1500)
"""A licence is a class where so many notices name it beside another one; how long a notice is."""


def _fronted(content: Content) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name of each file, what YAML says before its text, and the text."""
    import yaml

    loader = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
    for name, data in sorted(content.items()):
        _, front, text = data.decode("utf-8").split("---", 2)
        yield name, yaml.load(front, loader), text.strip()


def _license_notices(content: Content) -> Iterator[dict[str, Any]]:
    """What stands in source files about their licences, with all that are meant: those with several, and as many with
    one, drawn with a seed. Of 1,500 licences those are taken that often stand beside another one."""
    least, most = NOTICE_CHARACTERS
    found: dict[str, tuple[str, ...]] = {}
    for _, about, text in _fronted(content):
        text = " ".join(text.split())
        plain = about.get("language", "en") == "en" and about.get("is_deprecated") != "yes"
        if plain and about.get("is_license_notice") == "yes" and least <= len(text) <= most:
            names = set(re.findall(r"[\w.+-]+", about.get("license_expression", ""))) - {"AND", "OR", "WITH"}
            found[text] = tuple(sorted(names))
    often = Counter(name for names in found.values() if len(names) > 1 for name in names)
    known = {name for name, count in often.items() if count >= LEAST_TOGETHER}
    rows = [{"text": text, "labels": list(names)} for text, names in found.items() if names and known.issuperset(names)]
    several = [row for row in rows if len(row["labels"]) > 1]
    alone = [row for row in rows if len(row["labels"]) == 1]
    yield from several
    yield from random.Random(17).sample(alone, min(len(alone), len(several)))


def _license_rules(content: Content) -> Iterator[dict[str, str]]:
    """How source files name or quote a licence, with its name and the beginning of its text; `group` are licences whose
    names begin alike. Of many rules some are drawn, with a seed."""
    texts: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    for name, about, text in _fronted(content):
        if name.endswith(".LICENSE"):
            if text and about.get("is_deprecated") != "yes":
                texts[about["key"]] = f"{about['name']}: {' '.join(text.split())[:LICENSE_CHARACTERS]}"
        elif any(about.get(kind) == "yes" for kind in LICENSE_KINDS):
            least, most = RULE_CHARACTERS
            if least <= len(text) <= most:
                rules.setdefault(about.get("license_expression", ""), []).append(" ".join(text.split()))
    for key in sorted(rules.keys() & texts.keys()):
        own = sorted(set(rules[key]))
        for text in random.Random(key).sample(own, min(LICENSE_RULES, len(own))):
            yield {"anchor": text, "positive": texts[key], "group": key.split("-")[0]}


@prepares("icd10-terms")
def icd10_terms(sample: Sample, content: Content, folder: Path) -> None:
    """What people write for a diagnosis, with it."""
    write_rows(list(_diagnoses(content[sample.files[0]])), folder)


@prepares("icd10-preferences")
def icd10_preferences(sample: Sample, content: Content, folder: Path) -> None:
    """What people write for a diagnosis, with it and with another."""
    write_rows(list(_named_diagnoses(content[sample.files[0]])), folder)


@prepares("license-rules")
def license_rules(sample: Sample, content: Content, folder: Path) -> None:
    """How source files name a licence, with it."""
    write_rows(list(_license_rules(content)), folder)


@prepares("license-notices")
def license_notices(sample: Sample, content: Content, folder: Path) -> None:
    """What source files say of their licences, with all of them."""
    write_rows(list(_license_notices(content)), folder)
