"""Texts, chats and language models of packages."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from hfadapt.core.progress import quiet_libraries
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


@quiet_libraries()
def dequantise(gguf: Path, folder: Path) -> None:
    """Writes a GGUF model as bfloat16 safetensors with its tokenizer into an empty folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # transformers 5.23 refuses to save a model that still holds its GGUF quantizer.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
