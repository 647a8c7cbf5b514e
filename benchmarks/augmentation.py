"""What changes of few training rows gain, and what `data.augment: auto` decides: texts, sounds, images.

    python benchmarks/augmentation.py --sounds free-spoken-digits.tar.gz   run, keep augmentation.json, print the table
    python benchmarks/augmentation.py --table                              only the table of the kept results

Each row of the table is a setting of `data.augment` against none: trained as a run trains it, accuracy on the same test
rows, mean over seeds (of the order of rows and of the changes), with a 95 % paired bootstrap over the rows of the mean
difference, and the difference by seed. `auto` is a run of its own, which sees no test row. Sounds are those of the Free
Spoken Digit Dataset, of speakers that were not trained on (see spoken_digits.py).
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from spoken_digits import clips, write

from hfadapt import load_recipe, run
from hfadapt.core.progress import Silent
from hfadapt.hardware.processes import World
from hfadapt.hardware.versions import versions
from hfadapt.records.augment import named
from hfadapt.run_folder import Cell
from hfadapt.train.augmentation import AugmentTrial

RESULTS = Path(__file__).parent / "augmentation.json"
SEEDS = 3
QUICK = {"security": False, "drift": False, "transfer": False, "resamples": 200}
Shares = Mapping[str, float]
CASES: dict[str, tuple[dict[str, Any], tuple[Shares, ...]]] = {
    "texts": (
        {
            "model": "sample:minilm-l6",
            "task": "text-classification",
            "domains": {"tweets": {"source": "sample:vader/tweets"}},
            "data": {"train_rows": 200, "validation": 200, "test": 600},
            "train": {"epochs": 5},
        },
        ({"punctuation": 0.2}, {"word_dropout": 0.1, "word_swap": 0.1}, {"typos": 0.2}),
    ),
    "sounds": (
        {
            "model": "sample:whisper-tiny.en-5s",
            "task": "audio-classification",
            "domains": {"digits": {}},
            "train": {"epochs": 4},
        },
        ({"noise": 0.5, "gain": 0.5, "shift": 0.5, "speed": 0.5}, {"spec_augment": 1.0}),
    ),
    "images": (
        {
            "model": "sample:dinov2-small",
            "task": "image-classification",
            "domains": {"mnist": {"source": "sample:digits/mnist"}},
            "data": {"train_rows": 100, "validation": 150, "test": 250, "max_length": 16},
            "train": {"epochs": 8},
        },
        ({"trivial": 1.0}, {"crop": 1.0}, {"mixup": 0.5, "cutmix": 0.5}),
    ),
}
TAKES = 2
"""Of each digit by each of four speakers."""


class Tested(AugmentTrial):
    """Trainings from one start, scored on the test rows."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell, World(), None, "benchmark", Silent())
        self.validation_rows = self._encode(self.lock, cell.read_split("test"))
        assert self.steps * self.lock.train.batch_rows >= self.lock.train.epochs * len(self.train_rows)

    def right(self, shares: Shares, number: int) -> np.ndarray:
        """Whether each test row was right (N,), after a training with changes."""
        self.losses(shares, number)
        return np.asarray(self.scores.predictions == self.scores.gold)


def measure(case: str, fields: Mapping[str, Any], settings: tuple[Shares, ...], folder: Path) -> dict[str, Any]:
    """All settings of a case with all seeds, and one run that decides for itself."""

    def cell(augment: Any, until: str) -> Cell:
        recipe = {"name": case, **fields, "evaluate": QUICK, "data": {**fields.get("data", {}), "augment": augment}}
        path = folder / "recipe.yaml"
        path.write_text(json.dumps(recipe), encoding="utf-8")
        name = folder / ("auto" if augment == "auto" else "plain")
        (domain,) = fields["domains"]
        return run(load_recipe(path), recipe_folder=folder, folder=name, until=until).cell(domain, "this-machine")

    trained = Tested(cell(False, "plan"))
    found: dict[str, list[np.ndarray]] = {}
    seconds: dict[str, list[float]] = {}
    for number in range(SEEDS):
        for shares in ({}, *settings):
            started, name = time.perf_counter(), named(dict(shares))
            found.setdefault(name, []).append(trained.right(shares, number).astype(float))
            seconds.setdefault(name, []).append(round(time.perf_counter() - started, 1))
            print(f"{case}, {name}, {number}: {found[name][-1].mean():.3f}, {seconds[name][-1]} s", flush=True)
    auto = cell("auto", "evaluate")
    trial, tested = (json.loads((auto.folder / f"{name}.json").read_text()) for name in ("augment", "evaluation"))
    splits = json.loads((auto.folder / "data.json").read_text())["splits"]
    return {
        "case": case,
        "recipe": fields if case != "sounds" else {**fields, "domains": "see the code"},
        "rows": splits,
        "steps": trained.steps,
        "probe": round(tested["metrics"][0]["base"], 4),
        "off": [round(float(right.mean()), 4) for right in found["off"]],
        "settings": [compared(shares, found[named(dict(shares))], found["off"]) for shares in settings],
        "seconds": seconds,
        "auto": {
            **{name: trial[name] for name in ("taken", "reason", "tried", "steps", "seeds", "seconds")},
            "accuracy": round(tested["metrics"][0]["adapter"], 4),
        },
    }


def compared(shares: Shares, own: list[np.ndarray], plain: list[np.ndarray]) -> dict[str, Any]:
    """A setting against none, over all seeds."""
    differences = np.stack(own) - np.stack(plain)
    gains = differences.mean(axis=0)
    drawn = np.random.default_rng(0).choice(gains, (4000, len(gains))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "shares": dict(shares),
        "accuracy": [round(float(right.mean()), 4) for right in own],
        "gain": round(float(gains.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "gains": [round(float(each), 4) for each in differences.mean(axis=1)],
    }


def table(results: Mapping[str, Any]) -> str:
    """A line for each setting of each case, and what was decided."""
    lines = ["| training rows | changes | accuracy | gain | by seed |", "|---|---|---:|---|---|"]
    for case in results["cases"]:
        words = f"off (linear probe {case['probe']:.3f})"
        lines.append(f"| {case['rows']['train']} {case['case']} | {words} | {np.mean(case['off']):.3f} | | |")
        for one in case["settings"]:
            by_seed = ", ".join(f"{gain:+.3f}" for gain in one["gains"])
            gain = f"{one['gain']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
            lines.append(f"| | {named(one['shares'])} | {np.mean(one['accuracy']):.3f} | {gain} | {by_seed} |")
        auto = case["auto"]
        lines.append(f"| | **auto** takes: {named(auto['taken'])} | {auto['accuracy']:.3f} | | |")
    return "\n".join(lines)


def main() -> None:
    """Runs, keeps and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of the kept results")
    parser.add_argument("--sounds", type=Path, help="the archive of the Free Spoken Digit Dataset")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="only these; others are kept")
    asked = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cases": []}
    for case in () if asked.table else asked.cases:
        fields, settings = CASES[case]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if case == "sounds":
                content = clips(asked.sounds)
                domain = {
                    "source": write(content, ("george", "jackson", "lucas", "nicolas"), TAKES, folder / "train"),
                    "validation": write(content, ("yweweler",), 10, folder / "validation"),
                    "test": write(content, ("theo",), 15, folder / "test"),
                }
                fields = {**fields, "domains": {"digits": domain}}
            found = measure(case, fields, settings, folder)
        kept = [one for one in results["cases"] if one["case"] != case]
        made = versions("cpu")
        results = {
            "machine": f"{platform.machine()}, {made.processor}",
            "versions": made.packages,
            "command": "python benchmarks/augmentation.py --sounds free-spoken-digits.tar.gz",
            "cases": sorted([*kept, found], key=lambda one: [*CASES].index(one["case"])),
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(table({"cases": [found]}), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
