"""Writes tests/long.txt: the tests that take more than half a second, which `make test` leaves out.

    python -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu" --durations=0 --durations-min=0.1 > durations.txt
    python tests/renew_long.py durations.txt

A file of its own and no marks: which tests are long hangs on the machine, and is measured for all of them at once.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

SECONDS = 0.5
LONG = Path(__file__).with_name("long.txt")
LINE = re.compile(r"^([\d.]+)s (?:setup|call|teardown) +(tests/.*)$")


def long_tests(text: str) -> list[str]:
    """Ids of tests whose parts took longer together, from what `--durations` prints."""
    spent: dict[str, float] = defaultdict(float)
    for found in filter(None, map(LINE.match, text.splitlines())):
        spent[found[2]] += float(found[1])
    return sorted(name for name, seconds in spent.items() if seconds > SECONDS)


if __name__ == "__main__":
    LONG.write_text("\n".join(long_tests(Path(sys.argv[1]).read_text(encoding="utf-8"))) + "\n", encoding="utf-8")
