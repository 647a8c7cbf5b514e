"""Puts every fault of tests/faults/listed.py in, each into processes of its own, and prints what came of it.

python benchmarks/faults.py              # a table; exit code 1 where one was not survived
python benchmarks/faults.py 4 5 6        # these alone
python benchmarks/faults.py --markdown   # docs/faults.md
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = """# Faults that hfadapt survives

`python benchmarks/faults.py` puts each of these in and prints this table (`--markdown`); `tests/faults` has a test of
each, and kills a whole run, an export and what is published into a folder at every one of their writes. Nothing is lost
that was done: the same command goes on, and what it leaves is, to the last bit, what an uninterrupted run leaves (on a
CPU in float32; times aside).

Exit codes: 0 done, 1 a run or a gate failed, 2 the request was wrong, 130 interrupted, 143 stopped by the system.

| # | fault | what hfadapt says | exit code | what is kept | what to do |
|---:|---|---|---:|---|---|
"""


def main() -> int:
    """Puts the faults in; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="of faults; all when there are none")
    parser.add_argument("--markdown", action="store_true", help="print docs/faults.md")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hfadapt-faults-") as folder:
        own = {"HOME": "home", "HF_HOME": "huggingface", "HFADAPT_CACHE": "cache"}
        os.environ.update({name: str(Path(folder) / place) for name, place in own.items()})
        os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
        os.environ["PYTHONPATH"] = str(ROOT)
        sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/faults")]
        from listed import FAULTS
        from place import Place, Shared

        shared, failed = Shared(Path(folder)), 0
        print(HEAD if asked.markdown else "", end="")
        for fault in FAULTS:
            if asked.numbers and fault.number not in asked.numbers:
                continue
            outcome = fault.put(Place(shared))
            said = shown(outcome.said)
            failed += bool(outcome.wrong)
            result = "FAIL" if outcome.wrong else "pass"
            if asked.markdown:
                cells = (fault.number, fault.name, f"`{said}`", outcome.code, outcome.kept, fault.to_do)
                print("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |", flush=True)
            else:
                print(
                    f"{fault.number:2} {result} {fault.name}: exit {outcome.code}; kept {outcome.kept}\n        {said}"
                )
            for wrong in outcome.wrong:
                print(f"        {wrong}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def shown(said: str) -> str:
    """A line without places on this machine and without figures that no two runs share."""
    # A launcher's own lines begin with times and processes, and steps end with losses and speeds.
    said = re.sub(r"^\w+ [\d:.]+ \d+ \S+\] | \(pid: .*| +loss .*", "", said)
    said = re.sub(r"(?<![\w.])/[\w./-]*/(?=\w)", "…/", said)
    said = re.sub(r"sha256 of its weights \w+…?", "sha256 of its weights …", said)
    said = re.sub(r"\d+\.\d+ ([KMG]iB)", r"… \1", said)
    return re.sub(r"\d[\d.]*e-\d+", "…", said)[:160]


if __name__ == "__main__":
    sys.exit(main())
