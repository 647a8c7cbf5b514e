"""What an adapter gains over a sentence encoder on the queries of its own domain, and what it loses on another's.

    python benchmarks/embedding.py               run, keep embedding.json, print the table and renew it in docs/tasks.md
    python benchmarks/embedding.py --table       only the table of the kept results

It runs `hfadapt run recipes/search.yaml` in a process of its own and reads evaluation.json and transfer.json: nDCG@10
of base and adapter on the same queries, with the 95 % paired bootstrap over queries.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "embedding.json"
PAGE = HERE.parent / "docs/tasks.md"
REGION = re.compile(r"(<!-- embedding:begin -->\n).*(<!-- embedding:end -->)", re.DOTALL)
QUICK = ("evaluate.security=false", "evaluate.drift=false")


def run(settings: list[str]) -> list[dict[str, Any]]:
    """All domains of the recipe: what their records say."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "hfadapt", "run", "recipes/search.yaml", "--runs", runs, *QUICK, *settings]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
        if done.returncode:
            raise SystemExit(done.returncode)
        found = []
        for cell in sorted((Path(runs) / "search").glob("*/this-machine")):
            evaluation, train, transfer = (
                json.loads((cell / name).read_text()) for name in ("evaluation.json", "train.json", "transfer.json")
            )
            (row,) = transfer["targets"]
            found.append(
                {
                    "domain": evaluation["domain"],
                    "setting": evaluation["setting"],
                    "metrics": evaluation["metrics"],
                    "others": [one for one in row["cells"] if one["data"] != evaluation["domain"]],
                    "rows": json.loads((cell / "data.json").read_text())["splits"]["train"],
                    "seconds": train["seconds"],
                    "processor": train["versions"]["processor"],
                }
            )
    return found


def _difference(found: dict[str, Any]) -> str:
    return f"{found['delta']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def table(results: list[dict[str, Any]]) -> str:
    """A line for each adapter."""
    lines = [
        "| adapter | training rows | its own test | base | adapter | difference | on the other domain's queries |",
        "|---|---:|---|---:|---:|---|---|",
    ]
    for one in results:
        metric = one["metrics"][0]
        others = "; ".join(f"{each['base']:.3f} → {each['value']:.3f}, {_difference(each)}" for each in one["others"])
        lines.append(
            f"| {one['domain']} | {one['rows']:,} | {one['setting']} | {metric['base']:.3f} | "
            f"{metric['adapter']:.3f} | {_difference(metric)} | {others} |"
        )
    return "\n".join([*lines, "", f"nDCG@10, measured on {results[0]['processor']}."])


def main() -> None:
    """Runs, keeps and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of the kept results")
    parser.add_argument("settings", nargs="*", help="settings of the recipe; with some, nothing is kept")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if asked.table else run(asked.settings)
    found = table(results)
    print(found)
    if not asked.settings:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(REGION.sub(lambda m: m[1] + found + "\n" + m[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
