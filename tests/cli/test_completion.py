"""Completion in real shells: verbs, options, recipes, fields and their values, domains, targets, runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny import command

from hfadapt.cli import completion
from hfadapt.core import registry
from hfadapt.recipe.places import fields

ROOT = Path(__file__).parents[2]
RECIPE = {
    "model": "m",
    "task": "text-classification",
    "domains": {"tweets": {"source": "a.csv"}, "my.films": "b.csv"},
    "targets": ["t4", {"android-8gb": {"bytes": "30MB"}}],
}
LINES: dict[str, tuple[set[str], bool]] = {
    # What is typed, what is offered, and whether that is all.
    "hfadapt pla": ({"plan"}, True),
    "hfadapt card ": ({"build", "check"}, False),
    "hfadapt plan one.yaml --w": ({"--why"}, True),
    "hfadapt plan ": ({"one.yaml", "more/", "runs/"}, True),
    "hfadapt plan more/": ({"more/two.yml"}, True),
    "hfadapt plan one.yaml -d ": ({"tweets", "my.films"}, True),
    "hfadapt plan one.yaml --domain tw": ({"tweets"}, True),
    "hfadapt plan one.yaml -t ": ({"t4", "android-8gb", "this-machine"}, False),
    "hfadapt plan one.yaml --target rtx-409": ({"rtx-4090"}, True),
    "hfadapt run one.yaml tra": ({"train."}, True),
    "hfadapt run one.yaml train.epochs=1 train.fast.n": ({"train.fast.norms="}, True),
    "hfadapt run one.yaml quant=n": ({"quant=nf4", "quant=none"}, True),
    "hfadapt run one.yaml data.streaming=": ({"data.streaming=true", "data.streaming=false"}, True),
    "hfadapt run one.yaml domains.": ({"domains.tweets.", "domains.my.films."}, True),
    "hfadapt run one.yaml domains.tweets.la": ({"domains.tweets.labels=", "domains.tweets.language="}, True),
    "hfadapt run one.yaml adapter.method=": ({f"adapter.method={each}" for each in registry.names("adapters")}, False),
    "hfadapt report ": ({"runs/films"}, True),
    "hfadapt predict runs/f": ({"runs/films", "runs/films/tweets/t4"}, True),
    "hfadapt predict runs/films -d ": ({"tweets"}, True),
    "hfadapt serve runs/films -t ": ({"t4"}, True),
    "hfadapt export runs/films --format w": ({"web"}, True),
    "hfadapt explain train.ep": ({"train.epochs"}, True),
    "hfadapt explain adapters.do": ({"adapters.dora"}, True),
    "hfadapt completion ": ({"bash", "zsh", "fish"}, True),
    "hfadapt new rows.csv --columns te": ({"text="}, True),
    "hfadapt new rows.csv --columns text=": ({"text=body", "text=mood"}, True),
    "hfadapt new rows.csv --columns text=body,lab": ({"text=body,label="}, True),
    "hfadapt new rows.csv --columns text=body,label=m": ({"text=body,label=mood"}, True),
    "hfadapt plan broken.yaml -d ": (set(), True),
    "hfadapt plan nowhere.yaml -d ": (set(), True),
    "hfadapt run one.yaml no.such.field=": (set(), True),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipes and a run, and `hfadapt` on a path of its own."""
    home = tmp_path_factory.mktemp("completion")
    folder = home / "work"
    for file in ("runs/films/report.json", "runs/films/tweets/t4/cell.json", "more/two.yml", ".hidden/x.yaml"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("{}")
    (folder / "one.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "rows.csv").write_text("body,mood\na fine day,good\n")
    program = home / "bin/hfadapt"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hfadapt "$@"\n')
    program.chmod(0o755)
    return folder


def shell(place: Path, *words: str, text: str = "") -> str:
    """What a shell prints that runs a script."""
    here = {
        "PATH": f"{place.parent / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(place.parent),
        "HFADAPT_CACHE": str(place.parent / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        words, input=text, cwd=place, env={**os.environ, **here}, capture_output=True, text=True, check=False
    )
    assert not done.stderr.strip(), done.stderr
    return done.stdout


FEW = dict([*LINES.items()][1::4])
"""For further shells, as they get the same answers."""


def bash(place: Path) -> dict[str, list[str]]:
    """For each line what readline would put in the place of its last word."""
    calls = "\n".join(
        f"COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _hfadapt_completion hfadapt; "
        'printf "%s\\n" "${COMPREPLY[@]}"; echo ---'
        for line in LINES
    )
    script = f'eval "$(hfadapt completion bash)"; complete -p hfadapt >/dev/null\n{calls}\n'
    parts = shell(place, "bash", "--norc", "-s", text=script).split("---\n")
    found = {}
    for line, part in zip(LINES, parts, strict=False):
        word = line.rpartition(" ")[2]
        kept = word[: max(word.rfind("="), word.rfind(":")) + 1]
        found[line] = [kept + each for each in part.splitlines() if each]
    return found


ZSH = """
autoload -Uz compinit; compinit -u -D; eval "$(hfadapt completion zsh)"
_describe() { shift 2; print -l -- "${(@P)1}" }
_files() { : }
"""


def zsh(place: Path) -> dict[str, list[str]]:
    """What is given to zsh's own `_describe`, which shows it."""
    calls = "\n".join(
        f"words=(${{(z):-'{line}'}}); [[ '{line}' == *' ' ]] && words+=(''); CURRENT=$#words; _hfadapt; print -- ---"
        for line in FEW
    )
    parts = shell(place, "zsh", "-f", "-s", text=f"{ZSH}\n{calls}\n").split("---\n")
    return {
        line: [each.partition(":")[0] for each in part.splitlines() if each]
        for line, part in zip(FEW, parts, strict=False)
    }


def fish(place: Path) -> dict[str, list[str]]:
    """What `complete -C` says, which is what a key press shows."""
    calls = "\n".join(f"complete -C '{line}'; echo ---" for line in FEW)
    script = f"hfadapt completion fish | source\nfunction __fish_complete_path; end\n{calls}\n"
    parts = shell(place, "fish", "--no-config", "-c", script).split("---\n")
    return {
        line: [each.partition("\t")[0] for each in part.splitlines() if each]
        for line, part in zip(FEW, parts, strict=False)
    }


@pytest.mark.parametrize("asked", [bash, zsh, fish])
def test_what_a_shell_offers(place: Path, asked: Callable[[Path], dict[str, list[str]]]):
    if shutil.which(asked.__name__) is None:
        pytest.skip(f"{asked.__name__} is not installed")
    found = asked(place)
    assert len(found) >= len(FEW)
    for line in found:
        offered, whole = LINES[line]
        assert offered <= {*found[line]}, line
        assert not whole or offered == {*found[line]}, line
    if asked is bash:
        # Own targets come before those of the catalogue.
        assert found["hfadapt plan one.yaml -t "][:2] == ["t4", "android-8gb"]


def test_a_key_press_imports_no_library_of_models(place: Path):
    asked = {"COMP_WORDS": "hfadapt run one.yaml train.", "COMP_CWORD": "3", completion.VARIABLE: "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hfadapt"],
        cwd=place,
        env={**os.environ, **asked, "PYTHONPATH": str(ROOT), "HFADAPT_CACHE": str(place.parent / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "train.epochs=" in done.stdout
    assert "hfadapt.core.errors" in imported
    assert not imported & {"torch", "transformers", "numpy", "pyarrow", "rich"}


def test_an_unknown_shell_is_refused():
    done = command("completion", "bsh")
    assert done.code == 2
    assert "did you mean 'bash'?" in done.err


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HFADAPT_CACHE", str(tmp_path))
    completion._known.cache_clear()
    yield tmp_path / "completion.json"
    completion._known.cache_clear()


def test_words_are_kept_until_something_changes(cached: Path, monkeypatch: pytest.MonkeyPatch):
    assert [*completion._known()] == [*fields()]
    kept = json.loads(cached.read_text())
    cached.write_text(json.dumps({**kept, "fields": {"model": [[], "kept"]}}))
    completion._known.cache_clear()
    assert completion._known() == {"model": ([], "kept")}
    completion._known.cache_clear()
    monkeypatch.setattr(completion, "_state", lambda: "another")
    assert [*completion._known()] == [*fields()]


def test_a_broken_cache_is_made_anew(cached: Path):
    cached.write_text("{")
    assert [*completion._known()] == [*fields()]
