"""What the displays of a run have in common: lines that fit, sparklines, the notebook's own view."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfadapt.core.notebook import Notebook, curve, progress_here
from hfadapt.core.progress import (
    Event,
    Failed,
    Part,
    RunFinished,
    RunStarted,
    Said,
    Silent,
    StageFinished,
    StageStarted,
    Stepped,
    Validated,
)
from hfadapt.core.standing import BARS, KEPT, Row, Standing, sparkline

CELLS = ("tweets/this-machine", "movies/this-machine")
GIB = 1 << 30


def events(cells: tuple[str, ...] = CELLS, steps: int = 12) -> list[Event]:
    told: list[Event] = [
        RunStarted("two", "runs/two", cells, ("plan", "train")),
        StageStarted("train", "training", cells, 60.0),
    ]
    for step in range(1, steps + 1):
        parts = tuple(Part(cell, step, 40, 1.0 - step / 40) for cell in cells)
        told.append(Stepped(parts, 2756.0, 30.0, GIB, GIB + GIB // 10, 90.0))
    return [*told, *(Validated(cell, steps, 0.4321) for cell in cells)]


def standing(told: list[Event]) -> Standing:
    found = Standing()
    for event in told:
        found.tell(event)
    return found


NAMES = st.lists(st.text("abcdefghij-", min_size=1, max_size=40), min_size=1, max_size=6, unique=True)


@given(names=NAMES, width=st.integers(60, 200), steps=st.integers(1, 40), trained=st.booleans())
def test_no_line_is_longer_than_the_terminal_is_wide(names: list[str], width: int, steps: int, trained: bool) -> None:
    cells = tuple(f"{name}/this-machine" for name in names)
    lines = standing(events(cells, steps)[: None if trained else 2]).lines(width)
    assert len(lines) == len(cells) + 1
    assert all(len(line) <= width for line in lines)
    assert all(f"step {steps}/40" in line for line in lines[:-1]) == trained


def test_a_wide_line_says_everything_and_what_is_common_is_said_once() -> None:
    first, second, common = standing(events()).lines(140)
    for name, line in zip(CELLS, (first, second), strict=True):
        assert line.startswith(f"{name}  training  step 12/40  █▇")
        assert line.endswith("loss 0.7000  validation 0.4321")
        assert "tokens" not in line
    assert common == "2,756 tokens/s in all  memory 1.0 GiB of 1.1 GiB planned  1 min 30 s left of all"


def test_a_narrow_line_keeps_cell_step_and_loss() -> None:
    first, _, common = standing(events()).lines(60)
    assert first.startswith("tweets/this-machine  step 12/40  █")
    assert first.endswith("loss 0.7000")
    assert common == "2,756 tokens/s  1.0 GiB of 1.1 GiB  1 min 30 s left"


def test_a_low_terminal_shows_the_first_cells_and_what_is_common() -> None:
    lines = standing(events()).lines(100, height=2)
    assert len(lines) == 2
    assert "tokens/s" in lines[1]


def test_another_training_of_a_cell_begins_anew() -> None:
    told = [*events(), Stepped((Part(CELLS[0], 1, 8, 3.0),), 10.0, 1.0)]
    assert standing(told).rows[CELLS[0]] == Row(CELLS[0], "training", "", 1, 8, 3.0, None, [3.0])


def test_trials_stand_for_their_cell_until_one_is_chosen() -> None:
    told: list[Event] = [StageStarted("train", "training", CELLS[:1])]
    told.append(Stepped(tuple(Part(CELLS[0], 1, 9, 1.0, trial) for trial in ("rank 8", "rank 32")), 10.0, 1.0))
    assert [row.called for row in standing(told).rows.values()] == [f"{CELLS[0]} rank 8", f"{CELLS[0]} rank 32"]
    told.append(Stepped((Part(CELLS[0], 2, 9, 0.5),), 10.0, 1.0))
    assert [row.called for row in standing(told).rows.values()] == [CELLS[0]]


def test_a_long_training_keeps_a_bounded_curve_of_all_of_it() -> None:
    row = Row("one")
    for step in range(1, 5001):
        row.add(step, 5000, float(step))
    assert len(row.losses) <= KEPT
    assert row.losses[0] < 20
    assert row.losses[-1] == pytest.approx(5000, abs=row.every)
    assert row.losses == sorted(row.losses)


def test_sparklines() -> None:
    assert sparkline([], 8) == ""
    assert sparkline([1.0, 1.0], 8) == "▁▁"
    assert sparkline(list(range(8)), 8) == BARS
    assert sparkline([float(value) for value in range(80)], 8) == BARS
    assert sparkline([0.0, float("nan"), 1.0], 8) == "▁██"


# --- notebooks -------------------------------------------------------------------------------------------------------


class Display:
    """What a notebook would show, as `IPython.display.display` is called."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self.made = 0

    def __call__(self, bundle: dict[str, str], **options: Any) -> Display:
        assert options == {"raw": True, "display_id": True}
        self.made += 1
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict[str, str], raw: bool) -> None:
        self.shown.append(bundle)


def test_a_notebook_has_one_display_that_is_renewed_now_and_then() -> None:
    display = Display()
    notebook = Notebook(display)
    for event in [*events(steps=40), StageFinished("train", "training", CELLS, 12.0), RunFinished("done", 30.0)]:
        notebook.tell(event)
    assert display.made == 1
    assert len(display.shown) <= 5
    last = display.shown[-1]
    assert "training in 12 s" in last["text/html"]
    assert "step 40/40" in last["text/plain"]
    assert "done in 30 s" in last["text/html"]
    assert "left of all" not in last["text/html"]
    assert "\x1b" not in str(display.shown)
    # No colour of its own: the page's is dark or light.
    assert "#" not in last["text/html"].replace("&#", "")


def test_a_notebook_shows_faults_and_folds_messages_all_escaped() -> None:
    display = Display()
    notebook = Notebook(display)
    notebook.tell(Said("<b>reading</b>"))
    notebook.tell(Failed("bad", "mend it", "training of <x> failed:\n  fix: mend it", "train", "x/here"))
    shown = display.shown[-1]["text/html"]
    assert '<pre role="alert"' in shown
    assert "training of &lt;x&gt; failed" in shown
    assert "<details><summary>messages</summary>" in shown
    assert "&lt;b&gt;reading" in shown


def test_an_interrupted_run_says_how_it_goes_on() -> None:
    notebook = Notebook(Display())
    notebook.tell(RunFinished("interrupted", 3.0))
    assert "run it again to go on" in notebook.as_html()


def test_a_curve_needs_two_points_and_leaves_out_what_is_no_number() -> None:
    assert curve([1.0]) == ""
    assert curve([1.0, float("nan"), 0.0]).count(",") == 2
    assert curve([float(value) for value in range(1000)]).count(",") == 120


def test_outside_of_notebooks_nobody_is_told() -> None:
    assert isinstance(progress_here(), Silent)
