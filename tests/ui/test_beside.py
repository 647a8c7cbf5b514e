"""Both sides say of test rows what the evaluation has recorded."""

from __future__ import annotations

import pytest

from hfadapt.core.errors import RequestError
from hfadapt.run_folder import Cell, read_rows
from hfadapt.ui.beside import Alone, Beside, Shared

ROWS = range(8)


@pytest.fixture(scope="module")
def beside():
    made = Beside()
    yield made
    made.close()


def recorded(cell):
    return [(row["base"], row["adapter"]) for row in read_rows(cell.folder / "predictions.parquet")]


def said(beside, cell):
    rows = cell.read_split("test")
    pairs = [pair for number in ROWS for pair in beside.ask_row(cell, rows[number])]
    return [(pair.base.label, pair.adapter.label) for pair in pairs]


def test_test_rows_are_answered_as_in_the_evaluation(beside, run):
    for domain in ("one", "two", "one"):
        cell = run.cell(domain, "this-machine")
        assert said(beside, cell) == recorded(cell)[: len(ROWS)]
    # One base for both.
    assert isinstance(beside._opened, Shared)
    assert set(beside._opened.probes) == {"one", "two"}


def test_a_cell_alone_says_the_same(beside, run):
    cell = run.cell("two", "this-machine")
    text = str(cell.read_split("test")[0]["text"])
    (shared,) = beside.ask(cell, [text])
    alone = Beside()
    alone._open = lambda cell: opened
    opened = Alone(cell)
    (pair,) = alone.ask(cell, [text])
    for one, other in ((pair.base, shared.base), (pair.adapter, shared.adapter)):
        assert one.label == other.label
        assert one.probability == pytest.approx(other.probability, abs=1e-3)


def test_what_is_not_trained_is_refused(beside, tmp_path):
    with pytest.raises(RequestError, match="not trained yet"):
        beside.ask(Cell(tmp_path / "one/this-machine"), ["a text"])
