"""Makes the golden cards in `cards/examples/` anew from real runs of the recipes, smaller, with all their records.

    python tests/renew_golden_cards.py                     both; needs the sample models, and minutes on a CPU
    python tests/renew_golden_cards.py causal-lm           one of them
    python tests/renew_golden_cards.py causal-lm --from runs/NAME/DOMAIN/TARGET     the records of a run that is there
    python tests/renew_golden_cards.py --only-cards        the cards alone, from the records in cards/examples

The weights are left out: a card follows from the records. Look at the difference, and commit records and cards.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from hfadapt.card.build import build_card
from hfadapt.card.check import check_card
from hfadapt.run_folder import Cell

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "cards" / "examples"
DOMAIN, TARGET = "tweets", "this-machine"
RUNS = {
    "text-classification": (
        ["recipes/sentiment.yaml", "data.test=400", "--domain", "tweets", "--domain", "movies"],
        "sentiment",
    ),
    "causal-lm": (
        ["recipes/sentiment-llm.yaml", "domains.movies.source=sample:vader/movies", "data.test=120"],
        "sentiment-llm",
    ),
}
"""What is run for each example, and the name of the run. Two domains each, so that there is a cross-domain matrix."""

NEEDED = (
    "lock.yaml",
    "plan.json",
    "data.json",
    "train.json",
    "metrics.jsonl",
    "evaluation.json",
    "predictions.parquet",
    "data/test.parquet",
    "adapter/hfadapt.json",
    "adapter/adapter_config.json",
    "card.json",
)
OPTIONAL = ("security.json", "drift.json", "transfer.json")


def take(source: Path, target: Path) -> None:
    """Puts the records of a finished cell in the place of those of an example, and writes its card."""
    shutil.rmtree(target, ignore_errors=True)
    for name in (*NEEDED, *OPTIONAL):
        if name in OPTIONAL and not (source / name).exists():
            print(f"  {name} is not there: the card will say that it was not measured")
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    renew(target)


def renew(target: Path) -> None:
    """The card from the records; what the snippet printed in the run is kept."""
    build_card(Cell(target), execute=False)
    if problems := check_card(target):
        raise SystemExit("\n".join(str(problem) for problem in problems))
    print(f"  {target / 'README.md'}")


def run(words: list[str], name: str, folder: Path) -> Path:
    """Runs a recipe, and returns the cell that becomes the example."""
    subprocess.run([sys.executable, "-m", "hfadapt", "run", *words, "--runs", str(folder)], cwd=ROOT, check=True)
    return folder / name / DOMAIN / TARGET


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", nargs="*", help=" or ".join(RUNS))
    parser.add_argument("--from", dest="source", type=Path, help="a finished cell, for one example")
    parser.add_argument("--only-cards", action="store_true", help="run nothing, take the records that are there")
    asked = parser.parse_args()
    names = asked.examples or list(RUNS)
    if strangers := [name for name in names if name not in RUNS]:
        parser.error(f"no such example: {', '.join(strangers)}")
    if asked.source and len(names) != 1:
        parser.error("--from needs the name of one example")
    for name in names:
        print(name)
        if asked.only_cards:
            renew(EXAMPLES / name)
        elif asked.source:
            take(asked.source, EXAMPLES / name)
        else:
            with tempfile.TemporaryDirectory(prefix="hfadapt-golden-") as folder:
                words, run_name = RUNS[name]
                take(run(words, run_name, Path(folder)), EXAMPLES / name)


if __name__ == "__main__":
    main()
