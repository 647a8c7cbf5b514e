"""A row is named by the line of its file, or by its number from 1."""

import pytest

from hfadapt.data.sources import numbered_rows
from hfadapt.files.places import Place, name_rows


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (Place("data/tickets.csv", 12, 14), "line 14 of data/tickets.csv"),
        (Place("parts/*.csv", 12, 4, "b.csv"), "line 4 of b.csv"),
        (Place("tickets.parquet", 0), "row 1 of tickets.parquet"),
        (Place("", 0), "row 1"),
        (Place("tickets.csv", -1), "a row of tickets.csv"),
    ],
)
def test_what_a_person_is_told(place, said):
    assert str(place) == said
    assert Place.of(place.columns) == place


def test_rows_are_named_together():
    places = [Place("a.csv", n, n + 2) for n in range(12)] + [Place("b.parquet", 4)]
    assert name_rows(places, 3) == "lines 2, 3, 4 and 9 more of a.csv; row 5 of b.parquet"
    assert name_rows([Place("", -1)]) == "1 rows"


def test_rows_of_several_files_have_the_lines_of_their_own(tmp_path):
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in files:
        path.write_text('text,label\n"one\ntwo",x\nthree,y\nfour\n')
    found = [
        (item.where if hasattr(item, "where") else Place("*", item.row, item.line, item.in_file))
        for item in numbered_rows("*.csv", files)
    ]
    assert [str(place) for place in found] == [
        *("line 2 of a.csv", "line 4 of a.csv", "line 5 of a.csv"),
        *("line 2 of b.csv", "line 4 of b.csv", "line 5 of b.csv"),
    ]
    assert [place.row for place in found] == list(range(6))
