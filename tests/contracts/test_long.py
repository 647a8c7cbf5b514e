"""tests/long.txt names tests that are there, and is made from what pytest prints."""

from __future__ import annotations

import re
from pathlib import Path

from renew_long import LONG, long_tests

ROOT = Path(__file__).parents[2]


def test_every_long_test_is_there() -> None:
    names = LONG.read_text(encoding="utf-8").splitlines()
    assert names
    for name in names:
        file, _, function = name.partition("::")
        assert re.search(rf"def {function.partition('[')[0]}\(", (ROOT / file).read_text(encoding="utf-8")), name


def test_parts_of_a_test_are_added_up() -> None:
    printed = """
0.30s setup    tests/a/test_b.py::test_c[x y]
0.25s call     tests/a/test_b.py::test_c[x y]
0.50s call     tests/a/test_b.py::test_d
= 3 passed in 9.0s =
"""
    assert long_tests(printed) == ["tests/a/test_b.py::test_c[x y]"]
