"""Whole runs of their own: language models and encoders, and one that is interrupted."""

from __future__ import annotations

import json
import os
import signal

from run_files import DOMAINS, cell, record, stamps, weights
from tiny import (
    NO_CHECKS,
    chats,
    command,
    finish,
    labelled,
    recipe_fields,
    start,
    write_recipe,
    write_rows,
)

# --- language models -------------------------------------------------------------------------------------------------


def test_a_language_model_end_to_end_in_four_bits(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(300))
    fields = recipe_fields(
        models / "lm",
        "causal-lm",
        quant="nf4",
        template={"prompt": "{text} :", "completion": " {label}"},
        train={"batch_rows": 8, "epochs": 4, "learning_rate": 0.01, "evaluate_every_steps": 3},
        evaluate={**NO_CHECKS, "resamples": 200},
    )
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    evaluation = record(tmp_path, "evaluation.json")
    names = [metric["name"] for metric in evaluation["metrics"]]
    assert names == ["label_accuracy", "macro_f1", "calibration_error", "perplexity"]
    accuracy, perplexity = evaluation["metrics"][0], evaluation["metrics"][-1]
    assert evaluation["general_text"]["rows"] == 48
    assert evaluation["baseline"] == "base"
    assert perplexity["adapter"] < perplexity["base"]
    assert accuracy["low"] > 0, "the words say the label, so it must be learned"
    train = record(tmp_path, "train.json")
    assert train["quantised_modules"] == 14
    predicted = command("predict", "runs/tiny", "a lovely bright film", "a dreadful stale film", folder=tmp_path)
    assert predicted.code == 0, predicted.err
    assert [line.split()[0] for line in predicted.out.splitlines()] == ["good", "bad"]


def test_the_last_layer_of_an_encoder_end_to_end(models, tmp_path):
    """Trained for three epochs on kept outputs, opened again by its check, predicting."""
    write_rows(tmp_path / "one.jsonl", labelled(100))
    fields = recipe_fields(
        models / "encoder", adapter={"layers": 1}, train={"batch_rows": 8, "epochs": 3.0}, evaluate={"resamples": 200}
    )
    write_recipe(tmp_path / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    train = record(tmp_path, "train.json")
    assert (train["frozen_layers"], train["steps"]) == (1, 24)
    assert "1 frozen layers run once" in train["fast_path"]
    assert not list(cell(tmp_path).glob("*.bin"))
    assert "weights of linear layers below all that is trained" in train["compute"]["how"]
    assert "alpha 32, the last 1 of 2 layers |" in (cell(tmp_path) / "README.md").read_text()
    assert "differs from its records" not in command("card", "check", cell(tmp_path)).err
    predicted = command("predict", "runs/tiny", "lovely room", folder=tmp_path)
    assert predicted.code == 0, predicted.err


def test_chats_end_to_end(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", chats(60))
    write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "lm", "causal-lm", evaluate__drift=False))
    done = command("evaluate", "tiny.yaml", folder=tmp_path)
    assert done.code == 0, done.err
    metrics = record(tmp_path, "evaluation.json")["metrics"]
    assert [m["name"] for m in metrics] == ["perplexity", "exact_match", "rouge_l", "chrf", "bleu"]
    assert [m["rows"] for m in metrics] == [24] * 5, "all test rows are generated, there are fewer than generate_rows"
    predicted = command("predict", "runs/tiny", "room film", folder=tmp_path)
    assert predicted.code == 0, predicted.err


# --- interruption ----------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_done_and_the_next_run_goes_on(models, tmp_path):
    write_rows(tmp_path / "one.jsonl", labelled(120))
    write_rows(tmp_path / "two.jsonl", labelled(120, seed=1))
    fields = recipe_fields(
        models / "encoder", domains=DOMAINS, train={"batch_rows": 8, "max_steps": 80, "together": False}
    )
    write_recipe(tmp_path / "tiny.yaml", fields)
    process = start("train", "tiny.yaml", folder=tmp_path)
    started = 0
    assert process.stderr is not None
    for line in process.stderr:
        started += line.startswith("step 1/80")
        if started == 2:
            break
    os.kill(process.pid, signal.SIGINT)
    done = finish(process)
    assert done.code == 130, done.err
    assert "interrupted" in done.err
    assert "Traceback" not in done.err
    first, second = record(tmp_path, "cell.json", "one"), record(tmp_path, "cell.json", "two")
    assert "train" in first["stages"]
    assert second["status"] == "interrupted"
    assert len(list((cell(tmp_path, "two") / "checkpoints").iterdir())) >= 1
    assert [c["status"] for c in json.loads((tmp_path / "runs/tiny/report.json").read_text())["cells"]][
        1
    ] == "interrupted"
    kept = stamps(cell(tmp_path, "one"))

    again = command("train", "tiny.yaml", folder=tmp_path)
    assert again.code == 0, again.err
    assert "going on from step" in again.err
    assert stamps(cell(tmp_path, "one")) == kept
    assert record(tmp_path, "train.json", "two")["resumed_from_step"] > 0

    whole = command("train", "tiny.yaml", "--runs", "whole", "--domain", "two", folder=tmp_path)
    assert whole.code == 0, whole.err
    adapter = tmp_path / "whole/tiny/two/this-machine/adapter/adapter_model.safetensors"
    assert adapter.read_bytes() == weights(tmp_path, "two")
