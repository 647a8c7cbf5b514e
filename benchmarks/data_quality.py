"""Measures what hfadapt promises about data, and prints each figure beside its bar.

    python benchmarks/data_quality.py            # everything, about 5 minutes on two cores
    python benchmarks/data_quality.py near speed # only these parts: near, libraries, speed, audit, faults, vader

Texts are the four VADER domains (samples of hfadapt, fetched once from the package index). The part `libraries`
compares the join of hfadapt.data.joins with MinHash from datasketch and rensa where these are installed.
Exit code 1 when a bar is missed.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hfadapt.data import audit, prepare, read_split
from hfadapt.data.joins import Join
from hfadapt.data.rows import tokens
from hfadapt.recipe.schema import Recipe

DOMAINS = ("tweets", "movies", "products", "news")
PLANTED_ROWS = 2_000
SPEED_ROWS = 100_000
AUDIT_ROWS = 10_000
SEED = 17
missed: list[str] = []


def bar(what: str, got: float, holds: bool, limit: str) -> None:
    """One line of the result."""
    print(f"{'ok    ' if holds else 'MISSED'}  {what:62} {got:>10,.3f}   bar {limit}", flush=True)
    if not holds:
        missed.append(what)


def recipe(domains: dict[str, Any], **data: Any) -> Recipe:
    """A recipe of these domains for classification."""
    return Recipe(name="bench", model="sample:minilm-l6", task="text-classification", domains=domains, data=data)


def vader_rows() -> list[dict[str, str]]:
    """Clean rows of all four domains, no two of them alike."""
    with tempfile.TemporaryDirectory() as folder:
        made = prepare(
            recipe({name: f"sample:vader/{name}" for name in DOMAINS}), recipe_folder=Path(), cache=Path(folder)
        )
        return [row for each in made.values() for split in ("train", "validation", "test") for row in each.rows(split)]


# --- planted near-duplicates -----------------------------------------------------------------------------------------


def edit(text: str, share: float, draw: random.Random, vocabulary: Sequence[str], least: int = 0) -> str | None:
    """Edits at most `share` of the words: replaces, deletes, inserts, mistypes or swaps; None when none may be."""
    words = text.split()
    budget = int(share * len(words))
    if budget < max(1, least):
        return None
    for _ in range(draw.randint(max(1, least), budget)):
        at = draw.randrange(len(words))
        kind = draw.choice(("replace", "delete", "insert", "typo"))
        if kind == "replace":
            words[at] = draw.choice(vocabulary)
        elif kind == "delete" and len(words) > 2:
            del words[at]
        elif kind == "insert":
            words.insert(at, draw.choice(vocabulary))
        else:
            words[at] = words[at][:-1] + draw.choice("abcdefghij") + words[at][-1:]
    return " ".join(words)


def near() -> None:
    """Recall and precision on planted rows, and what is left across splits."""
    rows = vader_rows()
    draw = random.Random(SEED)
    vocabulary = [word for row in rows for word in row["text"].split()]
    chosen = draw.sample([row for row in rows if len(row["text"].split()) >= 7], 2 * PLANTED_ROWS)
    lines = [{"text": row["text"], "label": row["label"]} for row in rows]
    planted: set[int] = set()
    for row in chosen[:PLANTED_ROWS]:
        edited = edit(row["text"], 0.15, draw, vocabulary)
        assert edited is not None
        planted.add(len(lines))
        lines.append({"text": edited, "label": row["label"]})
    for row in chosen[PLANTED_ROWS:]:
        # Rows that only resemble another one: 40 to 60 % of the words changed. They must stay.
        words = len(row["text"].split())
        edited = edit(row["text"], 0.6, draw, vocabulary, least=max(1, round(0.4 * words)))
        lines.append({"text": edited or row["text"], "label": row["label"]})
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        start = time.monotonic()
        made = prepare(recipe({"all": str(source)}), recipe_folder=Path(), cache=Path(folder) / "cache")["all"]
        seconds = time.monotonic() - start
        dropped = [json.loads(line) for line in (made.folder / "data" / "dropped.jsonl").open(encoding="utf-8")]
        found = {each["row"] for each in dropped if each["reason"] in ("near-duplicate", "exact-duplicate")}
        print(f"        {len(lines):,} rows, {len(planted):,} planted near-duplicates, prepared in {seconds:.1f} s")
        bar(
            "recall of planted near-duplicates",
            len(found & planted) / len(planted),
            len(found & planted) >= 0.95 * len(planted),
            ">= 0.95",
        )
        bar(
            "precision of dropped near-duplicates",
            len(found & planted) / len(found),
            len(found & planted) >= 0.95 * len(found),
            ">= 0.95",
        )
        left = count_across({split: made.rows(split) for split in ("train", "validation", "test")})
        bar("near-duplicate pairs left across splits (brute force)", left, left == 0, "0")


def count_across(splits: dict[str, list[dict[str, Any]]], similarity: float = 0.8) -> int:
    """Pairs across splits that are alike, by comparing every pair of rows."""
    import numpy as np
    from rapidfuzz import process
    from rapidfuzz.distance import Levenshtein

    vocabulary: dict[str, int] = {}

    def encode(rows: Iterable[dict[str, Any]]) -> list[str]:
        # One character a word, so that distances over characters are distances over words.
        coded = []
        for row in rows:
            words = tokens(row["text"])
            if len(words) >= 6:
                coded.append("".join(chr(0x10000 + vocabulary.setdefault(word, len(vocabulary))) for word in words))
        return coded

    test, validation, train = (encode(splits[name]) for name in ("test", "validation", "train"))
    count = 0
    for one, others in ((test, train), (validation, train), (test, validation)):
        for start in range(0, len(one), 500):
            scores = process.cdist(
                one[start : start + 500],
                others,
                scorer=Levenshtein.normalized_similarity,
                score_cutoff=similarity,
                dtype=np.float32,
                workers=-1,
            )
            count += int((scores >= similarity).sum())
    return count


def libraries() -> None:
    """The same planted pairs with three ways to find candidates."""
    rows = vader_rows()
    draw = random.Random(SEED)
    vocabulary = [word for row in rows for word in row["text"].split()]
    base = [row["text"] for row in rows]
    chosen = [i for i in draw.sample(range(len(base)), len(base)) if len(base[i].split()) >= 7][:PLANTED_ROWS]
    texts = base + [str(edit(base[i], 0.15, draw, vocabulary)) for i in chosen]
    wanted = {(i, len(base) + number) for number, i in enumerate(chosen)}
    words = [tokens(text) for text in texts]
    ways: list[tuple[str, Callable[[Sequence[Sequence[str]]], set[tuple[int, int]]]]] = [("hfadapt join", by_join)]
    if importlib.util.find_spec("datasketch"):
        ways.append(("datasketch MinHash LSH", by_datasketch))
        ways.append(("datasketch + verified", by_datasketch_verified))
    if importlib.util.find_spec("rensa"):
        ways.append(("rensa R-MinHash LSH", by_rensa))
        ways.append(("rensa + verified", by_rensa_verified))
    print(f"        {'way':26} {'recall':>8} {'precision':>10} {'seconds':>8}   ({len(texts):,} rows)")
    for name, way in ways:
        start = time.monotonic()
        pairs = way(words)
        seconds = time.monotonic() - start
        recall = len(pairs & wanted) / len(wanted)
        precision = len(pairs & wanted) / max(len(pairs), 1)
        print(f"        {name:26} {recall:8.3f} {precision:10.3f} {seconds:8.1f}", flush=True)


def by_join(words: Sequence[Sequence[str]]) -> set[tuple[int, int]]:
    """hfadapt: exact candidates, verified."""
    return {(pair.first, pair.second) for pair in Join(words, 0.8).pairs()}


def shingles(words: Sequence[str]) -> list[str]:
    """Pairs of words: the usual choice for short texts."""
    return [f"{a} {b}" for a, b in itertools.pairwise(words)] or list(words)


def by_datasketch(words: Sequence[Sequence[str]], threshold: float = 0.5) -> set[tuple[int, int]]:
    """datasketch: 128 permutations, Jaccard of word pairs."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=128)
    pairs: set[tuple[int, int]] = set()
    for number, sketch in enumerate(
        MinHash.generator([[each.encode() for each in shingles(text)] for text in words], num_perm=128)
    ):
        pairs.update((other, number) for other in index.query(sketch))
        index.insert(number, sketch)
    return pairs


def by_datasketch_verified(words: Sequence[Sequence[str]]) -> set[tuple[int, int]]:
    """datasketch with a low threshold for candidates, then the measure of hfadapt."""
    return verified(words, by_datasketch(words, 0.3))


def by_rensa(words: Sequence[Sequence[str]], threshold: float = 0.5, bands: int = 32) -> set[tuple[int, int]]:
    """rensa: 128 permutations, Jaccard of word pairs."""
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=threshold, num_perm=128, num_bands=bands)
    sketches: list[Any] = []
    pairs = set()
    for number, text in enumerate(words):
        sketch = RMinHash(num_perm=128, seed=SEED)
        sketch.update(shingles(text))
        for other in index.query(sketch):
            if sketches[other].jaccard(sketch) >= threshold:
                pairs.add((other, number))
        index.insert(number, sketch)
        sketches.append(sketch)
    return pairs


def by_rensa_verified(words: Sequence[Sequence[str]]) -> set[tuple[int, int]]:
    """rensa with many bands for candidates, then the measure of hfadapt."""
    return verified(words, by_rensa(words, 0.2, 64))


def verified(words: Sequence[Sequence[str]], pairs: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Candidates that the exact measure confirms."""
    join = Join(words, 0.8)
    return {pair for pair in pairs if join.measure(*pair) > 0}


# --- speed -----------------------------------------------------------------------------------------------------------


def speed_source(path: Path, count: int) -> None:
    """Rows of about 25 words made of halves of real sentences, a twentieth of them near-duplicates."""
    draw = random.Random(SEED)
    rows = vader_rows()
    halves = [row["text"].split() for row in rows if 8 <= len(row["text"].split()) <= 40]
    vocabulary = [word for half in halves for word in half]
    with path.open("w", encoding="utf-8") as file:
        text = ""
        for number in range(count):
            if number % 20 == 19:
                text = edit(text, 0.15, draw, vocabulary) or text
            else:
                first, second = draw.choice(halves), draw.choice(halves)
                text = " ".join(first[: len(first) // 2 + 3] + second[len(second) // 2 - 3 :])
            file.write(json.dumps({"text": text, "label": draw.choice(("a", "b", "c"))}) + "\n")


_SPEED = """
import resource, sys, time
from pathlib import Path
from hfadapt.data import prepare
from hfadapt.recipe.schema import Recipe
folder, streaming = Path(sys.argv[1]), sys.argv[2] == "stream"
recipe = Recipe(name="bench", model="x", task="text-classification", domains={"all": str(folder / "rows.jsonl")},
                data={"streaming": streaming})
start = time.monotonic()
made = prepare(recipe, recipe_folder=folder, cache=folder / f"cache-{streaming}")["all"]
seconds = time.monotonic() - start
start = time.monotonic()
prepare(recipe, recipe_folder=folder, cache=folder / f"cache-{streaming}")
# The peak that getrusage gives can be that of the process that started this one.
status = Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
own = [line.split()[1] for line in lines if line.startswith("VmHWM")]
gib = int(own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**20
print(seconds, time.monotonic() - start, gib, made.record.dropped)
"""


def speed() -> None:
    """100,000 short rows in a process of their own, in memory and on the stream."""
    with tempfile.TemporaryDirectory() as folder:
        speed_source(Path(folder) / "rows.jsonl", SPEED_ROWS)
        for way in ("memory", "stream"):
            done = subprocess.run(
                [sys.executable, "-c", _SPEED, folder, way], capture_output=True, text=True, check=True
            )
            seconds, again, gib, dropped = done.stdout.split(maxsplit=3)
            print(f"        {SPEED_ROWS:,} rows, {way}: dropped {dropped.strip()}")
            bar(f"prepare {SPEED_ROWS:,} rows ({way}), seconds", float(seconds), float(seconds) <= 60, "<= 60")
            bar(f"peak memory ({way}), GiB", float(gib), float(gib) <= 2, "<= 2")
            bar(f"second run from the cache ({way}), seconds", float(again), float(again) <= 2, "<= 2")


def audited() -> None:
    """10,000 rows through the audit, as labels, as completions and as chats."""
    from transformers import AutoTokenizer

    from hfadapt.core import registry, samples

    template = {"prompt": "Text: {text}\nSentiment:", "completion": " {label}"}
    chat = {"messages": [{"role": "user", "content": "{text}"}, {"role": "assistant", "content": "{label}"}]}
    ways = [
        ("labels", "text-classification", "minilm-l6", None),
        ("completions", "causal-lm", "smollm2-135m", template),
        ("chats", "causal-lm", "smollm2-135m", chat),
    ]
    with tempfile.TemporaryDirectory() as folder:
        speed_source(Path(folder) / "rows.jsonl", int(AUDIT_ROWS * 1.32))
        for name, task_name, model, made_by in ways:
            asked = Recipe(
                name="bench",
                model=f"sample:{model}",
                task=task_name,
                template=made_by,
                domains={"all": str(Path(folder) / "rows.jsonl")},
                data={"train_rows": AUDIT_ROWS},
            )
            made = prepare(asked, recipe_folder=Path(folder), cache=Path(folder) / name)["all"]
            record = made.copy_into(Path(folder) / "cell" / name)
            tokenizer = AutoTokenizer.from_pretrained(samples.model_path(model))
            start = time.monotonic()
            result = audit(
                Path(folder) / "cell" / name,
                registry.task(task_name),
                tokenizer,
                max_length=128,
                labels=record.labels,
            )
            seconds = time.monotonic() - start
            hard = [each.code for each in result.findings if each.level == "hard"]
            bar(f"audit of {result.rows:,} rows of {name}, seconds (hard: {hard})", seconds, seconds < 60, "< 60")


def faults() -> None:
    """Every planted fault of supervision is found before training."""
    path = Path(__file__).parent.parent / "tests" / "data" / "faults.py"
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    caught = 0
    for fault in module.FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            said = module.caught(fault, Path(folder))
        caught += bool(said)
        first = said.splitlines()[0][:110] if said else ""
        print(f"        {'caught' if said else 'NOT CAUGHT':10} {fault.name:34} {first}")
    bar(f"planted faults caught, of {len(module.FAULTS)}", caught, caught == len(module.FAULTS) >= 20, "all, >= 20")


def vader() -> None:
    """What the four real domains hold."""
    with tempfile.TemporaryDirectory() as folder:
        asked = recipe({name: f"sample:vader/{name}" for name in DOMAINS})
        made = prepare(asked, recipe_folder=Path(), cache=Path(folder))
        heads = f"{'exact':>6} {'near':>6} {'conflicts':>9} {'other domains':>13}"
        print(f"        {'domain':10} {'rows':>7} {'kept':>7} {heads}")
        for name, each in made.items():
            record = each.record
            steps, conflicts = record.steps["dedupe"], record.dropped.get("label-conflict", 0)
            print(
                f"        {name:10} {record.rows_in:7,} {record.rows_kept:7,} {steps['exact_duplicates']:6,} "
                f"{steps['near_duplicates']:6,} {conflicts:9,} {steps['of_other_domains']:13,}"
            )
        for name, each in made.items():
            left = count_across({split: read_split(each.folder, split) for split in ("train", "validation", "test")})
            bar(f"pairs left across splits of {name} (brute force)", left, left == 0, "0")


PARTS: dict[str, Callable[[], None]] = {
    "near": near,
    "libraries": libraries,
    "speed": speed,
    "audit": audited,
    "faults": faults,
    "vader": vader,
}


if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        print(f"\n{part}: {PARTS[part].__doc__}", flush=True)
        PARTS[part]()
    print(f"\n{'all bars hold' if not missed else 'MISSED: ' + '; '.join(missed)}")
    sys.exit(1 if missed else 0)
