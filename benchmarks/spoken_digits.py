"""Spoken digits of speakers that were never trained on: linear probe against adapter, speaker by speaker.

The Free Spoken Digit Dataset has six speakers with 50 takes of each digit. Each run is tested on one of them and
validated on another; four are trained on, with a part of their takes.

    python benchmarks/spoken_digits.py free-spoken-digits.tar.gz --takes 8 --tested-takes 20

Files are `{digit}_{speaker}_{take}.wav` (https://github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0).
"""

from __future__ import annotations

import argparse
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from hfadapt import load_recipe, run
from hfadapt.modalities.audio import KIND
from hfadapt.run_folder import read_rows

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
NAME = re.compile(r"(\d)_([a-z]+)_(\d+)\.wav$")


def clips(archive: Path) -> dict[tuple[str, str, int], bytes]:
    """Content by digit, speaker and take."""
    found = {}
    with tarfile.open(archive) as packed:
        for member in packed:
            if match := NAME.search(member.name):
                found[match[1], match[2], int(match[3])] = packed.extractfile(member).read()  # type: ignore[union-attr]
    return found


def separation(content: dict[tuple[str, str, int], bytes]) -> float:
    """The highest likeness of two different takes, which has to stay below that of copies."""
    vectors = np.stack([KIND.vector(KIND.take(data).look) for data in content.values()])
    products = vectors @ vectors.T
    np.fill_diagonal(products, -1)
    return float(products.max())


def write(content: dict[tuple[str, str, int], bytes], speakers: tuple[str, ...], takes: int, folder: Path) -> str:
    """Folders of classes with the first takes of some speakers."""
    for (digit, speaker, take), data in content.items():
        if speaker in speakers and take < takes:
            (folder / digit).mkdir(parents=True, exist_ok=True)
            (folder / digit / f"{digit}_{speaker}_{take}.wav").write_bytes(data)
    return str(folder)


def measure(content: dict[tuple[str, str, int], bytes], tested: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Runs one recipe, tested on a speaker; returns its leading metric and what was right, row by row."""
    folder = asked.folder / tested
    validated = SPEAKERS[SPEAKERS.index(tested) - 1]
    trained = tuple(name for name in SPEAKERS if name not in (tested, validated))
    domain = {
        "source": write(content, trained, asked.takes, folder / "train"),
        "validation": write(content, (validated,), 10, folder / "validation"),
        "test": write(content, (tested,), asked.tested_takes, folder / "test"),
    }
    recipe = {
        "name": "spoken",
        "model": "sample:whisper-tiny.en-5s",
        "task": "audio-classification",
        "domains": {"digits": domain},
        "evaluate": {"security": False, "drift": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    done = run(load_recipe(path, asked.settings), recipe_folder=folder, folder=folder / "run")
    cell = done.cell("digits", "this-machine")
    metric = json.loads((cell.folder / "evaluation.json").read_text())["metrics"][0]
    trained_in = json.loads((cell.folder / "train.json").read_text())
    rows = read_rows(cell.folder / "predictions.parquet")
    return {
        "speaker": tested,
        **{name: metric[name] for name in ("base", "adapter", "delta", "low", "high", "rows")},
        **{name: trained_in[name] for name in ("seconds", "predicted_seconds", "steps", "memory")},
        "right": [[row["base"] == row["gold"], row["adapter"] == row["gold"]] for row in rows],
    }


def main() -> None:
    """Prints a line for each speaker and writes all to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--set", nargs="+", default=[], dest="settings", help="of the recipe: data.augment.speed=0.5")
    parser.add_argument("--speakers", nargs="+", default=SPEAKERS, choices=SPEAKERS)
    parser.add_argument("--takes", type=int, default=15, help="of each digit by each of four speakers, for training")
    parser.add_argument("--tested-takes", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path("runs/spoken_digits"))
    parser.add_argument("--to", type=Path, default=Path("spoken_digits.json"))
    asked = parser.parse_args()
    asked.folder = asked.folder.resolve()
    content = clips(asked.archive)
    alike, copies = separation(content), KIND.nearness(0.8)
    print(f"two different takes are alike by at most {alike:.4f}; copies from {copies:.3f} on")
    found = []
    for speaker in asked.speakers:
        one = measure(content, speaker, asked)
        found.append(one)
        print(
            "{speaker}: {base:.3f} -> {adapter:.3f}, {delta:+.3f} [{low:+.3f}, {high:+.3f}]".format(**one), flush=True
        )
        asked.to.write_text(json.dumps({"settings": asked.settings, "takes": asked.takes, "speakers": found}) + "\n")
    right = np.concatenate([np.array(one["right"], dtype=float) for one in found])
    gains = right[:, 1] - right[:, 0]
    drawn = np.random.default_rng(0).choice(gains, (2000, len(gains))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    print("all: {:.3f} -> {:.3f}, {:+.3f} [{:+.3f}, {:+.3f}]".format(*right.mean(axis=0), gains.mean(), low, high))


if __name__ == "__main__":
    main()
