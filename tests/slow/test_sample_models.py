"""With the sample models: what the tiny ones cannot show. The samples are fetched on first use."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from tiny import command, finish, start, write_recipe
from tiny_sounds import CLIPS

import hfadapt
from hfadapt.data.rows import SPLITS
from hfadapt.run_folder import read_rows

pytestmark = pytest.mark.slow
RECIPES = Path(hfadapt.__file__).parents[1] / "recipes"


def cell(folder, name, domain, runs="runs"):
    return folder / runs / name / domain / "this-machine"


def losses(cell_folder):
    lines = [json.loads(line) for line in (cell_folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_minilm_beats_its_probe_on_tweets(tmp_path):
    settings = ["data.train_rows=1200", "train.max_steps=80"]
    done = command("evaluate", RECIPES / "sentiment.yaml", "--domain", "tweets", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    evaluation = json.loads((cell(tmp_path, "sentiment", "tweets") / "evaluation.json").read_text())
    accuracy = next(metric for metric in evaluation["metrics"] if metric["name"] == "accuracy")
    assert 0.4 < accuracy["base"] < 0.75
    assert accuracy["low"] > 0
    assert accuracy["adapter"] > 0.7


def test_canaries_are_found_where_they_were_planted(tmp_path):
    """MiniLM on 400 tweets: canaries that were trained on sixteen times are found, others of their kind are not."""
    import torch

    from hfadapt.core.progress import Silent
    from hfadapt.data import canaries
    from hfadapt.evaluate.context import open_context
    from hfadapt.evaluate.privacy.exposure import REFERENCES, exposure, judge, rank_among
    from hfadapt.run_folder import Cell

    settings = ["data.train_rows=400", "data.test=100", "data.canaries.count=12", "train.epochs=6"]
    done = command("train", RECIPES / "sentiment.yaml", "--domain", "tweets", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    trained = Cell(cell(tmp_path, "sentiment", "tweets"))
    context = open_context(trained, torch.device("cpu"), Silent())
    found = exposure(context)
    assert found.found
    assert next(group for group in found.groups if group.repeats == 16).found >= 3
    never, others = (canaries.draw(trained.folder, trained.data, 99, kind, n) for kind, n in (("a", 12), ("b", 320)))
    assert not judge([16] * 12, rank_among(context, never, others), REFERENCES).found


def test_evaluating_every_few_steps_changes_nothing_in_four_bits(tmp_path):
    """SmolLM2 in nf4: final losses and adapter equal to the last bit, with and without validation in between."""
    settings = ["data.train_rows=120", "data.validation=20", "data.test=20", "train.max_steps=8"]
    for runs, every in (("never", 1000), ("often", 2)):
        recipe = RECIPES / "sentiment-llm.yaml"
        done = command(
            "train", recipe, *settings, f"train.evaluate_every_steps={every}", "--runs", runs, folder=tmp_path
        )
        assert done.code == 0, done.err
    never, often = (cell(tmp_path, "sentiment-llm", "tweets", runs) for runs in ("never", "often"))
    assert losses(never) == losses(often)
    adapters = [(each / "adapter/adapter_model.safetensors").read_bytes() for each in (never, often)]
    assert adapters[0] == adapters[1]


def test_killed_without_warning_and_resumed(tmp_path):
    """SIGKILL in the middle of training: the next run goes on from the last whole checkpoint, to the same adapter."""
    fields = {
        "name": "killed",
        "model": "sample:minilm-l6",
        "task": "text-classification",
        "domains": {"tweets": {"source": "sample:vader/tweets"}},
        "data": {"train_rows": 400, "validation": 50, "test": 50},
        "train": {"max_steps": 60, "checkpoint_every_steps": 5},
    }
    write_recipe(tmp_path / "killed.yaml", fields)
    process = start("train", "killed.yaml", folder=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 30/60"):
            break
    os.kill(process.pid, signal.SIGKILL)
    assert finish(process).code == -signal.SIGKILL
    again = command("train", "killed.yaml", folder=tmp_path)
    assert again.code == 0, again.err
    record = json.loads((cell(tmp_path, "killed", "tweets") / "train.json").read_text())
    assert record["resumed_from_step"] >= 25
    whole = command("train", "killed.yaml", "--runs", "whole", folder=tmp_path)
    assert whole.code == 0, whole.err
    adapters = [
        (cell(tmp_path, "killed", "tweets", runs) / "adapter/adapter_model.safetensors").read_bytes()
        for runs in ("runs", "whole")
    ]
    assert adapters[0] == adapters[1]


def test_a_chat_recipe_trains(tmp_path):
    settings = ["data.train_rows=60", "data.validation=10", "data.test=10", "train.max_steps=6"]
    done = command("evaluate", RECIPES / "chat.yaml", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    evaluation = json.loads((cell(tmp_path, "chat", "helpdesk") / "evaluation.json").read_text())
    perplexity = evaluation["metrics"][0]
    assert perplexity["name"] == "perplexity"
    assert perplexity["adapter"] < perplexity["base"]


def test_the_recipe_that_adapts_to_texts_first(tmp_path):
    settings = [
        "pretrain.max_steps=20",
        "train.max_steps=20",
        "data.train_rows=200",
        "data.test=200",
        "evaluate.drift=false",
    ]
    done = command("run", RECIPES / "pretrain.yaml", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    found = cell(tmp_path, "pretrain", "diagnoses")
    record = json.loads((found / "pretrain.json").read_text())
    assert record["objective"] == "tsdae", "MiniLM was saved without the layer that says hidden words"
    assert record["loss_after"] < record["loss_before"]
    assert record["like_held_out"] > 100, "the held-out diagnoses are among the texts"
    assert (found / "without_pretrain.json").exists()


def test_parts_of_speech_are_found_better_than_by_a_probe(tmp_path):
    settings = ["data.validation=50", "data.test=200"]
    settings += ["evaluate.security=false", "evaluate.drift=false"]
    done = command("run", RECIPES / "pos.yaml", "--domain", "oil", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    metrics = json.loads((cell(tmp_path, "pos", "oil") / "evaluation.json").read_text())["metrics"]
    assert metrics[0]["low"] > 0
    assert metrics[0]["adapter"] > 0.7


def test_licenses_of_a_notice_are_found_better_than_by_a_probe(tmp_path):
    settings = ["data.test=200", "evaluate.security=false", "evaluate.drift=false"]
    done = command("run", RECIPES / "licenses.yaml", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    metrics = json.loads((cell(tmp_path, "licenses", "notices") / "evaluation.json").read_text())["metrics"]
    assert metrics[0]["name"] == "micro_f1"
    assert metrics[0]["low"] > 0.05


def test_handwritten_digits_are_read_better_than_by_a_probe(tmp_path):
    """A convolutional net whose own head is for a thousand classes without names, on 200 pictures."""
    settings = ["model=sample:efficientnet-lite0", "data.train_rows=200", "data.validation=50", "data.test=200"]
    settings += ["evaluate.security=false", "evaluate.drift=false"]
    done = command("run", RECIPES / "digits.yaml", "--domain", "uci", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    found = cell(tmp_path, "digits", "uci")
    accuracy = json.loads((found / "evaluation.json").read_text())["metrics"][0]
    assert accuracy["low"] > 0
    assert accuracy["adapter"] > 0.85
    assert "is new" in json.loads((found / "train.json").read_text())["base_head"]


def test_an_encoder_finds_more_diagnoses_than_its_base(tmp_path):
    settings = ["data.test=1500", "evaluate.security=false", "evaluate.drift=false"]
    done = command("evaluate", RECIPES / "search.yaml", "--domain", "diagnoses", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    evaluation = json.loads((cell(tmp_path, "search", "diagnoses") / "evaluation.json").read_text())
    ndcg = evaluation["metrics"][0]
    assert ndcg["name"] == "ndcg_at_10"
    assert 0.4 < ndcg["base"] < 0.8
    assert ndcg["low"] > 0


def test_spoken_digits_of_speakers_that_were_not_trained_on(tmp_path):
    """Whisper with the recipe's own settings on the 120 clips: no speaker in two splits, and most digits are known."""
    for path in CLIPS.glob("*.wav"):
        (tmp_path / "clips" / path.name[0]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "clips" / path.name[0])
    settings = [f"domains.digits.source={tmp_path / 'clips'}", "evaluate.security=false", "evaluate.drift=false"]
    done = command("run", RECIPES / "spoken.yaml", *settings, folder=tmp_path)
    assert done.code == 0, done.err
    folder = cell(tmp_path, "spoken", "digits")
    accuracy = json.loads((folder / "evaluation.json").read_text())["metrics"][0]
    assert accuracy["adapter"] > 0.7
    train = json.loads((folder / "train.json").read_text())
    assert train["head_start"] == "linear probe"
    assert train["memory"]["train"]["measured_peak_bytes"] < 1.1 * train["memory"]["train"]["predicted_peak_bytes"]
    speakers = [{row["group"] for row in read_rows(folder / f"data/{split}.parquet")} for split in SPLITS]
    assert sum(map(len, speakers)) == len(set.union(*speakers)) == 6
