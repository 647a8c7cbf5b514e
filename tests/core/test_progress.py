"""The run corrects the plan's time after its first steps, once, and only where it was wrong."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from tiny import labelled, recipe_fields, write_recipe, write_rows

from hfadapt import check_recipe, load_recipe
from hfadapt.core.errors import Problem, RecipeError
from hfadapt.core.progress import (
    FIRST_STEPS,
    LOUD_LOGGERS,
    Corrected,
    Event,
    Part,
    Progress,
    Said,
    Stepped,
    Validated,
    failure,
    quiet_libraries,
)


class Heard(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def tell(self, event: Event) -> None:
        self.events.append(event)

    @property
    def lines(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Said)]


def stepped(step: int, total: int, left: float, cells: tuple[str, ...] = ("one/here",)) -> Stepped:
    return Stepped(tuple(Part(cell, step, total, 1.0) for cell in cells), 100.0, left)


def train(predicted: float | None, seconds_each: float, first: int = 1, total: int = 40) -> Heard:
    heard, given = Heard(), [stepped(step, total, (total - step) * seconds_each) for step in range(first, total + 1)]
    progress = Corrected(heard, predicted)
    for event in given:
        progress.tell(event)
    progress.tell(Validated("one/here", total, 0.5, last=True))
    assert [event for event in heard.events if isinstance(event, Stepped)] == given
    assert heard.events[-1] == Validated("one/here", total, 0.5, last=True)
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
        progress.tell(stepped(step, 40, (40 - step) * 3.0))
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
        progress.tell(stepped(step, 40, (40 - step) * 6.0, ("tweets/here", "movies/here")))
    assert len(heard.lines) == 1
    assert "4 min 00 s" in heard.lines[0]
    last = heard.events[-1]
    assert isinstance(last, Stepped)
    assert [part.cell for part in last.parts] == ["tweets/here", "movies/here"]


def test_of_an_error_every_fix_is_told_once() -> None:
    problems = [Problem("a", fix="do this"), Problem("b", fix="do this"), Problem("c", fix="do that")]
    told = failure(RecipeError("wrong", problems=problems), cell="one/here")
    assert (told.what, told.fix, told.cell) == ("wrong", "do this; do that", "one/here")
    assert "c" in told.text
    assert failure("first\nsecond").what == "first"
    assert failure(ValueError("odd")).what == "ValueError: odd"


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


def test_a_whole_program_is_quiet_whatever_it_imports_later() -> None:
    """As a command does, whose libraries are imported in the middle of it."""
    code = (
        "import logging, os, sys, warnings\n"
        "from hfadapt.core.progress import quiet_program\n"
        "before = dict(os.environ)\n"
        "with quiet_program():\n"
        "    assert 'transformers' not in sys.modules\n"
        "    import torchao.prototype.mx_formats\n"
        "    from transformers.utils import logging as theirs\n"
        "    theirs.get_logger('transformers.modeling_utils').warning('LOAD REPORT')\n"
        "    list(theirs.tqdm(range(3), desc='Loading weights'))\n"
        "    logging.getLogger('torchao').warning('Failed to load')\n"
        "    warnings.warn('old', FutureWarning)\n"
        "assert os.environ == before\n"
        "warnings.warn('heard', FutureWarning)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "heard" not in line] == []
