"""The run corrects the plan's time after its first steps, once, and only where it was wrong."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from tiny import labelled, recipe_fields, write_recipe, write_rows

from hfadapt import check_recipe, load_recipe
from hfadapt.cli.terminal import Terminal
from hfadapt.core.progress import FIRST_STEPS, LOUD_LOGGERS, Corrected, quiet_libraries


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[int] = []
        self.validations: list[float] = []
        self.titles: set[str] = set()

    def say(self, message: str) -> None:
        self.lines.append(message)

    def step(self, step: int, total: int, loss: float, speed: float, left: float, title: str = "") -> None:
        self.steps.append(step)
        self.titles.add(title)

    def validation(self, step: int, loss: float, title: str = "", last: bool = False) -> None:
        self.validations.append(loss)


def train(predicted: float | None, seconds_each: float, first: int = 1, total: int = 40) -> Heard:
    heard = Heard()
    progress = Corrected(heard, predicted)
    for step in range(first, total + 1):
        progress.step(step, total, 1.0, 100.0, (total - step) * seconds_each)
    progress.validation(total, 0.5)
    assert heard.steps == list(range(first, total + 1))
    assert heard.validations == [0.5]
    return heard


def test_a_wrong_guess_is_corrected_once() -> None:
    heard = train(predicted=40.0, seconds_each=3.0)
    assert len(heard.lines) == 1
    assert "2 min 00 s" in heard.lines[0]
    assert "40 s" in heard.lines[0]


def test_what_went_by_before_the_steps_belongs_to_the_training() -> None:
    heard = Heard()
    progress = Corrected(heard, 40.0, lambda: 30.0)
    for step in range(1, 41):
        progress.step(step, 40, 1.0, 100.0, (40 - step) * 3.0)
    assert "2 min 30 s" in heard.lines[0]


def test_a_good_guess_or_none_is_left_alone() -> None:
    assert not train(predicted=40.0, seconds_each=1.1).lines
    assert not train(predicted=None, seconds_each=3.0).lines
    assert not train(predicted=1.0, seconds_each=3.0, total=FIRST_STEPS - 1).lines


def test_a_resumed_run_is_corrected_from_where_it_goes_on() -> None:
    heard = train(predicted=40.0, seconds_each=3.0, first=20)
    assert len(heard.lines) == 1


def test_several_adapters_are_corrected_once_and_keep_their_names() -> None:
    heard = Heard()
    progress = Corrected(heard, 40.0)
    for step in range(1, 41):
        for title in ("tweets", "movies"):
            progress.step(step, 40, 1.0, 100.0, (40 - step) * 6.0, title)
    assert len(heard.lines) == 1
    assert heard.titles == {"tweets", "movies"}


def test_a_validation_is_shown_with_the_adapter_whose_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as terminal:
        terminal.validation(1, 0.25, "tweets")
        terminal.validation(1, 0.75, "movies")
        for title in ("tweets", "movies"):
            terminal.step(10, 10, 1.0, 100.0, 0.0, title)
    tweets, movies = capsys.readouterr().err.splitlines()
    assert "tweets" in tweets
    assert "0.2500" in tweets
    assert "movies" in movies
    assert "0.7500" in movies


@pytest.mark.parametrize("title", ["", "movies"])
@pytest.mark.parametrize("stopped", [2, 20], ids=["early", "at the end"])
def test_the_last_validation_is_shown_and_not_beside_the_next_adapter(
    title: str, stopped: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Terminal() as terminal:
        terminal.step(1, 20, 0.6, 100.0, 0.0, title)
        terminal.validation(1, 0.75, title)
        terminal.step(stopped, 20, 0.5, 100.0, 0.0, title)
        terminal.validation(stopped, 0.25, title, last=True)
        terminal.step(1, 20, 0.5, 100.0, 1.0, title)
    _, first, last, following = capsys.readouterr().err.splitlines()
    assert "validation 0.7500" in first
    assert last.endswith("validation 0.2500")
    assert "validation" not in following


def test_a_training_that_was_given_up_leaves_no_validation_to_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal() as terminal:
        terminal.step(2, 20, 0.5, 100.0, 0.0)
        terminal.validation(2, 0.25)
        terminal.step(1, 20, 0.5, 100.0, 1.0)
    assert "validation" not in capsys.readouterr().err


# --- libraries that speak --------------------------------------------------------------------------------------------


def voices() -> tuple[object, ...]:
    """All by which a caller hears the libraries."""
    from transformers.utils import logging as theirs

    return (
        list(warnings.filters),
        [logging.getLogger(name).level for name in LOUD_LOGGERS],
        theirs.get_verbosity(),
        theirs.is_progress_bar_enabled(),
        datasets.are_progress_bars_disabled(),
    )


def heard() -> bool:
    """Whether a UserWarning reaches the caller."""
    with pytest.MonkeyPatch.context() as patch:
        caught: list[object] = []
        patch.setattr(warnings, "showwarning", lambda *arguments: caught.append(arguments))
        warnings.warn("take care", UserWarning, stacklevel=1)
    return bool(caught)


@pytest.fixture
def loud() -> Iterator[tuple[object, ...]]:
    """A caller that hears everything."""
    from transformers.utils import logging as theirs

    verbosity = theirs.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        theirs.set_verbosity_warning()
        theirs.enable_progress_bar()
        yield voices()
        theirs.set_verbosity(verbosity)


def test_libraries_are_quiet_inside_and_as_before_afterwards(loud: tuple[object, ...]) -> None:
    with quiet_libraries():
        assert not heard()
        inside = voices()
        assert all(before != now for before, now in zip(loud, inside, strict=True))
        with quiet_libraries():
            assert voices() == inside
        assert voices() == inside
    assert heard()
    assert voices() == loud
    with pytest.raises(ZeroDivisionError), quiet_libraries():
        _ = 1 / 0
    assert voices() == loud


def test_of_two_threads_the_last_to_leave_gives_the_voices_back(loud: tuple[object, ...]) -> None:
    """One that enters while another is inside must not take silence for what was there before."""
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with quiet_libraries():
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        with quiet_libraries():
            second_in.set()
            first_out.wait(10)
            assert voices() != loud

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert voices() == loud


def test_a_call_from_python_leaves_the_callers_warnings(models: Path, tmp_path: Path, loud: tuple[object, ...]) -> None:
    write_rows(tmp_path / "one.jsonl", labelled(80))
    recipe = load_recipe(write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder")))
    check_recipe(recipe, recipe_folder=tmp_path)
    assert voices() == loud
    assert heard()


def test_every_public_call_that_loads_a_model_is_quiet() -> None:
    """A decorated function has the undecorated one inside."""
    import hfadapt

    for name in ("run", "check_recipe", "load_adapted", "load_bank"):
        assert hasattr(getattr(hfadapt, name), "__wrapped__"), name
