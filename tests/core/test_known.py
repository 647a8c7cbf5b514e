"""What was found out once is not asked again until code or libraries change; whatever stands there, commands go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hfadapt.core import known as module
from hfadapt.core.known import known, remembered
from hfadapt.core.spec import Spec
from hfadapt.fast import compiled


class Facts(Spec):
    """A part of what is known of a model."""

    config: dict[str, Any]


class Question:
    """Counts how often it was asked."""

    def __init__(self, answer: object) -> None:
        self.answer, self.times = answer, 0

    def __call__(self) -> object:
        self.times += 1
        return self.answer


def test_an_answer_is_found_once(cache_folder: Path) -> None:
    find = Question((("a", True), ("b", False)))
    first, again = (known(tuple[tuple[str, bool], ...], ["q", 1], find) for _ in range(2))
    assert first == again == find.answer
    assert find.times == 1
    known(tuple[tuple[str, bool], ...], ["q", 2], find)
    assert find.times == 2, "another question"


def test_other_code_or_libraries_ask_again(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = Question(1)
    known(int, "q", find)
    monkeypatch.setattr(module, "_made_by", lambda: ["torch 99"])
    known(int, "q", find)
    assert find.times == 2


@pytest.mark.parametrize("text", ["", "{", '{"record": "Known", "version": 1, "answer": "x"}', "[" * 100_000])
def test_what_is_no_answer_is_found_again(cache_folder: Path, text: str) -> None:
    find = Question(1)
    known(int, "q", find)
    (path,) = (cache_folder / "known").iterdir()
    path.write_text(text)
    assert known(int, "q", find) == 1
    assert known(int, "q", find) == 1
    assert find.times == 2


def test_the_first_answer_is_as_the_second(cache_folder: Path) -> None:
    """Numbers as keys become texts in JSON, which sort in another order."""
    find = Question({"labels": {10: "b", 9: "a"}})
    assert known(dict[str, object], "q", find) == known(dict[str, object], "q", find)


def test_what_json_cannot_say_and_what_may_change_is_not_kept(cache_folder: Path) -> None:
    endless, passing = Question(float("inf")), Question(0)
    for _ in range(2):
        assert known(float, "endless", endless) == float("inf")
        assert known(int, "passing", passing, lasts=bool) == 0
    assert endless.times == passing.times == 2


def test_an_infinite_number_in_a_config_stays_one(cache_folder: Path) -> None:
    """As the limits of time steps of state-space layers are."""
    find = Question(Facts(config={"time_step_limit": (0.0, float("inf"))}))
    for _ in range(2):
        assert known(Facts, "q", find).config["time_step_limit"][1] == float("inf")


def test_a_function_is_asked_once_in_a_process_and_on_a_disk(cache_folder: Path) -> None:
    calls = []

    @remembered(frozenset[str] | None)
    def letters(words: tuple[str, ...]) -> frozenset[str] | None:
        calls.append(words)
        return frozenset("".join(words)) if words else None

    for _ in range(2):
        assert letters(("ab", "c")) == frozenset("abc")
        assert letters(()) is None
        letters.cache_clear()
    assert len(calls) == 2


PLAN = """
import sys
from pathlib import Path
from hfadapt.pipeline.run import plan_recipe
from hfadapt.recipe.schema import Recipe
recipe = Recipe(name="r", model=sys.argv[1], task="text-classification", domains={"d": "d.jsonl"}, student="auto",
    targets=["this-machine", "raspberry-pi-5"])
Path(sys.argv[2]).write_text(plan_recipe(recipe).cells[1].model_dump_json(include={"decisions", "memory", "exports"}))
print(sorted({"torch", "transformers", "peft", "datasets"} & sys.modules.keys()))
"""


@pytest.mark.skipif(sys.platform != "linux" or compiled.passes() is None, reason="torch is asked for devices, kernels")
def test_a_second_plan_needs_no_library(models: Path, cache_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "base"
    config.mkdir()
    (config / "config.json").write_bytes((models / "encoder" / "config.json").read_bytes())
    said, plans = [], []
    for number in range(2):
        command = [sys.executable, "-c", PLAN, str(config), str(tmp_path / f"{number}.json")]
        said.append(subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout)
        plans.append((tmp_path / f"{number}.json").read_text())
    assert "torch" in said[0]
    assert said[1].strip() == "[]"
    assert plans[0] == plans[1]
