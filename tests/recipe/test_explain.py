"""`hfadapt explain`: every field and name by what the classes and files say of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny import command

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.recipe.described import described
from hfadapt.recipe.explain import example, explain
from hfadapt.recipe.places import fields

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("place", fields())
def test_every_field_is_explained(place: str):
    text = " ".join(str(explain(place)).split())
    said = described(fields()[place].info.description)
    assert text.startswith(place)
    assert said.what[:-1][:40] in text
    assert said.auto[:20] in text
    assert said.cost[:20] in text
    assert "takes" in text
    assert example(fields()[place]) != "auto"


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_name_is_explained(kind: str):
    for name in registry.names(kind):
        assert registry.about(kind, name).split("\n")[0] in str(explain(f"{kind}.{name}")).replace("\n", " ")
        assert name in str(explain(kind))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("train.learning_rate", ("> 0 and ≤ 1, or auto, or find", "default  auto", "train.learning_rate=5.0e-4")),
        ("memory_margin", ("memory_margin", "default  0.1")),
        ("micro_batch_rows", ("train.micro_batch_rows",)),
        ("domains.tweets.source", ("domains.NAME.source", "domains: {NAME: {source: data.csv}}")),
        ("domains.my.dotted.source", ("domains.NAME.source",)),
        ("domains.mine.sources[].weight", ("domains.NAME.sources.weight",)),
        ("student", ("ffn", "vocabulary", "takes")),
        ("export.format", ("merged", "gguf")),
        ("objectives.preference", ("beta", "a number > 0", "0.1")),
        ("", ("train.fast", "adapters", "dora")),
    ],
)
def test_what_is_shown(name: str, shown: tuple[str, ...]):
    text = str(explain(name))
    for each in shown:
        assert each in text


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("trian.epochs", "did you mean 'train.epochs'?"),
        ("epoch", "did you mean 'train.epochs'?"),
        ("adapters.dorra", "did you mean 'dora'?"),
        ("xyzzy", "hfadapt explain, which lists the sections"),
        ("text_column.nothing.at.xyzzy", "hfadapt explain"),
        ("learning_rate", "hfadapt explain train.learning_rate"),
        (".", "hfadapt explain"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, fix: str):
    with pytest.raises(RequestError) as error:
        explain(name)
    assert fix in str(error.value)


def test_the_command():
    assert "train.epochs" in command("explain", "train.epochs").out
    done = command("explain", "train.epocs")
    assert done.code == 2
    assert "did you mean 'train.epochs'?" in done.err


def test_fields_that_the_documentation_names_exist():
    """`train.fast.compile` and the like: a word before the dot that is a section of the recipe."""
    sections = {place.split(".")[0] for place, field in fields().items() if field.section or "domains" in place}
    known = {place.replace("NAME.", "") for place in fields()}
    named = 0
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")):
        text = re.sub(r"```(?:python|html|js|kotlin|swift).*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
        for word in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_0-9]+)+)(?=[:=`, )])", text):
            if word.split(".")[0] in sections and not re.search(
                r"\.(json|jsonl|csv|yaml|py|md|txt|npz|bin|toml|safetensors|gguf)$", word
            ):
                named += 1
                place = re.sub(r"^domains\.[a-z]+\.(?=[a-z])", "domains.", word)
                assert place in known or place.replace("domains.", "domains.") in known, f"{path.name}: {word}"
    assert named > 20
