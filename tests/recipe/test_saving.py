"""Recipes and locks are written as YAML that reads back equal."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hfadapt.core.errors import RunError
from hfadapt.hardware import catalogue
from hfadapt.recipe.reading import load_recipe, save_recipe
from hfadapt.recipe.schema import (
    Adapter,
    Columns,
    Data,
    Domain,
    Evaluate,
    Fast,
    Lock,
    LockedAdapter,
    LockedData,
    LockedEvaluate,
    LockedTrain,
    Recipe,
    Source,
    Template,
    Train,
)
from hfadapt.run_folder import read_lock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("data.csv", "test.csv"):
        (tmp_path / name).write_text("text,label\ngood,yes\n", encoding="utf-8")
    return tmp_path


WORDS = st.text(min_size=1, max_size=20)
NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
TEMPLATES = st.builds(
    Template,
    prompt=st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), max_size=20),
    completion=st.sampled_from([" {label}", "{text}\n", "'{text}': #no"]),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique_by=str.lower))
    domain = st.builds(
        Domain,
        source=st.sampled_from(["sample:vader/tweets", "imdb", "owner/name"]),
        language=st.none() | WORDS,
        license=st.none()
        | st.sampled_from(
            [
                "no",
                "1e5",
                "0x10",
                "2024-01-01",
                "null",
                "~",
                "",
                "\x00\t",
                "1_000",
                " a ",
                "a: b",
                "\x85",
                "\u2028a\ufeff",
            ]
        ),
        rows=st.none() | st.integers(1, 10**12),
        template=st.none() | TEMPLATES,
        labels=st.none() | st.lists(WORDS, min_size=1, max_size=3, unique=True),
    )
    return Recipe(
        name=draw(NAMES),
        model=draw(st.sampled_from(["sample:smollm2-135m", "gpt2"])),
        task="causal-lm",
        domains={name: draw(domain) for name in names},
        targets=tuple(draw(st.lists(st.sampled_from(catalogue.names()), min_size=1, max_size=3, unique=True))),
        quant=draw(st.sampled_from(["auto", "none", "nf4"])),
        adapter=Adapter(dropout=draw(st.just("auto") | st.floats(0, 0.99)), modules=("a", "b")),
        data=Data(seed=draw(st.integers()), validation=draw(st.sampled_from([0.1, 0.25, 200]))),
        train=Train(
            learning_rate=draw(st.just("auto") | st.floats(1e-300, 1)),
            trackers=draw(st.sampled_from([(), ("wandb",)])),
            fast=Fast(norms=draw(st.booleans()), compile=draw(st.sampled_from(["auto", True, False]))),
        ),
        evaluate=Evaluate(gates=draw(st.dictionaries(st.sampled_from(["accuracy", "loss"]), st.floats(-1, 1)))),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=recipes(), full=st.booleans(), header=st.text(max_size=30))
def test_saved_recipes_read_back_equal(folder: Path, recipe: Recipe, full: bool, header: str) -> None:
    header = "".join(char for char in header if char.isprintable() or char == "\n")
    path = save_recipe(recipe, folder / "saved.yaml", header, full=full)
    assert load_recipe(path) == recipe


def test_saved_recipe_is_minimal(folder: Path) -> None:
    text = "model: sample:minilm-l6\ntask: text-classification\ndomains:\n  mine: data.csv\n"
    small = folder / "small.yaml"
    small.write_text(text + "train: {epochs: 3, seed: 17}\ntargets: [this-machine]\n")
    recipe = load_recipe(small)
    path = save_recipe(recipe, folder / "out.yaml", "made by hand\n\nfor tests")
    assert path.read_text() == (
        "# made by hand\n#\n# for tests\n"
        "name: small\nmodel: sample:minilm-l6\ntask: text-classification\n"
        "domains:\n  mine:\n    source: data.csv\ntrain:\n  epochs: 3.0\n"
    )
    full = save_recipe(recipe, folder / "full.yaml", full=True).read_text()
    assert "learning_rate: auto" in full
    assert "similarity: 0.8" in full


def test_saved_recipe_with_every_kind_of_source(folder: Path) -> None:
    recipe = Recipe(
        name="x",
        model="gpt2",
        task="text-classification",
        domains={"a": Domain(sources=(Source(source="data.csv", columns=Columns(text="text"), weight=2), "test.csv"))},
    )
    assert load_recipe(save_recipe(recipe, folder / "x.yaml")) == recipe


def lock_of(method: str) -> Lock:
    return Lock(
        name="x",
        model="gpt2",
        task="causal-lm",
        domains={"a": Domain(source="gone.csv")},
        targets=("t4",),
        quant="none",
        dtype="float16",
        adapter=LockedAdapter(method=method, rank=16, alpha=32.0, dropout=0.0, modules=("all-linear",)),
        data=LockedData(max_length=256, packing=False),
        train=LockedTrain(
            epochs=3,
            learning_rate=2e-4,
            schedule="linear",
            warmup_ratio=0.1,
            batch_rows=16,
            micro_batch_rows=4,
            weight_decay=0,
            evaluate_every_steps=10,
            checkpoint_every_steps=10,
            optimizer="adamw",
            checkpointing=False,
        ),
        evaluate=LockedEvaluate(metrics=("perplexity",), batch_rows=8),
    )


@pytest.mark.parametrize("full", [False, True])
def test_locks_read_back_and_run_again(folder: Path, full: bool) -> None:
    lock = lock_of("head")
    path = save_recipe(lock, folder / "lock.yaml", full=full)
    assert read_lock(path) == lock
    (folder / "gone.csv").write_text("text\nx\n")
    assert load_recipe(path).adapter.rank == 16


@pytest.mark.parametrize("fast", [True, False])
def test_a_lock_with_one_word_for_all_fast_parts(folder: Path, fast: bool) -> None:
    path = save_recipe(lock_of("lora"), folder / "lock.yaml")
    path.write_text(path.read_text().replace("train:\n", f"train:\n  fast: {str(fast).lower()}\n"))
    found = read_lock(path).train.fast
    assert (found.used, found.compile) == (fast, False)


def test_lock_without_an_answer(folder: Path) -> None:
    path = save_recipe(lock_of("lora"), folder / "lock.yaml")
    path.write_text(path.read_text().replace("batch_rows: 16", "batch_rows: auto"))
    with pytest.raises(RunError, match=r"lock.yaml(.|\n)*train.batch_rows") as caught:
        read_lock(path)
    assert caught.value.problems[0].fix
