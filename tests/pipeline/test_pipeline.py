"""A recipe from start to end through the command line: what is written, kept, redone, and survives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from filelock import FileLock
from run_files import DOMAINS, cell, record, stamps, weights
from tiny import (
    NO_CHECKS,
    command,
    labelled,
    pairs,
    recipe_fields,
    write_recipe,
    write_rows,
)


@pytest.fixture(scope="module")
def ready(models, tmp_path_factory):
    """A folder with two domains, a recipe, and its run up to the evaluation; tests work on copies."""
    folder = tmp_path_factory.mktemp("ready")
    write_rows(folder / "one.jsonl", labelled(120))
    write_rows(folder / "two.jsonl", labelled(120, seed=1))
    fields = recipe_fields(models / "encoder", domains=DOMAINS)
    fields["evaluate"] |= NO_CHECKS
    write_recipe(folder / "tiny.yaml", fields)
    done = command("evaluate", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def folder(ready, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(ready, tmp_path / "work"))


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_report_has_the_names_that_others_rely_on(ready):
    report = json.loads((ready / "runs/tiny/report.json").read_text())
    assert [each["domain"] for each in report["cells"]] == ["one", "two"]
    for each in report["cells"]:
        assert each["target"] == "this-machine"
        assert each["status"] in ("done", "pending")
        assert each["error"] is None
        for metric in each["metrics"]:
            assert metric["delta"] == pytest.approx(metric["adapter"] - metric["base"])
            assert metric["low"] <= metric["delta"] <= metric["high"]
            assert metric["rows"] == 24
        assert {metric["name"] for metric in each["metrics"]} == {"accuracy", "macro_f1", "calibration_error", "loss"}
        for phase in ("load", "train", "evaluate", "save"):
            assert each["memory"][phase]["predicted_peak_bytes"] > 0
            assert each["memory"][phase]["measured_peak_bytes"] >= 0
        assert each["seconds"] > 0
        assert each["tokens_per_second"] > 0
        adapter = cell(ready, each["domain"]) / "adapter/adapter_model.safetensors"
        assert each["adapter_bytes"] == adapter.stat().st_size
    assert "linear probe" in (ready / "runs/tiny/report.md").read_text()


def test_every_record_is_there_and_agrees(ready):
    train, evaluation = record(ready, "train.json"), record(ready, "evaluation.json")
    assert train["steps"] == 4
    assert (train["world_size"], train["resumed_from_step"]) == (1, None)
    assert evaluation["rows"] == 24
    assert evaluation["reopened_difference"] < 1e-4
    assert sum(sum(row.values()) for row in evaluation["confusion"].values()) == 24
    accuracy = next(metric for metric in evaluation["metrics"] if metric["name"] == "accuracy")
    right = sum(evaluation["confusion"][label][label] for label in ("bad", "good"))
    assert accuracy["adapter"] == pytest.approx(right / 24)
    lines = [json.loads(line) for line in (cell(ready) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert lines[-1].get("loss", train["final_loss"]) == train["final_loss"]
    assert not (cell(ready) / "checkpoints").exists()


def test_the_test_rows_are_in_no_other_split(ready):
    from pyarrow import parquet

    seen = [
        set(parquet.read_table(cell(ready) / f"data/{split}.parquet")["row"].to_pylist())
        for split in ("train", "validation", "test")
    ]
    assert [len(rows) for rows in seen] == [80, 16, 24]
    assert len(set.union(*seen)) == 120


def test_predictions_are_kept_row_by_row(ready):
    from pyarrow import parquet

    rows = parquet.read_table(cell(ready) / "predictions.parquet").to_pylist()
    assert len(rows) == 24
    accuracy = sum(row["gold"] == row["adapter"] for row in rows) / 24
    metrics = record(ready, "evaluation.json")["metrics"]
    assert accuracy == pytest.approx(next(m["adapter"] for m in metrics if m["name"] == "accuracy"))


def test_run_adds_the_card_and_says_what_comes_next(folder):
    done = command("run", "tiny.yaml", "--domain", "one", folder=folder)
    assert done.code == 0, done.err
    assert "step 1/" not in done.err, "what was trained is kept"
    report = json.loads((folder / "runs/tiny/report.json").read_text())
    assert [each["status"] for each in report["cells"]] == ["done", "pending"]
    assert (folder / report["cells"][0]["card"]).read_text().startswith("---\n")
    assert report["next_commands"][0].startswith("hfadapt predict runs/tiny/one/this-machine")
    assert all(command in done.out for command in report["next_commands"])


# --- doing it again --------------------------------------------------------------------------------------------------


def test_a_run_is_shown_by_its_folder_or_a_cells(ready):
    shown = [command("show", "run", name, folder=ready) for name in ("runs/tiny", cell(ready))]
    assert [one.code for one in shown] == [0, 0], shown[1].err
    assert shown[0].out == shown[1].out
    assert "linear probe" in shown[0].out


def test_finished_cells_are_kept(folder):
    before = stamps(folder / "runs/tiny/one") | stamps(folder / "runs/tiny/two")
    done = command("evaluate", "tiny.yaml", folder=folder)
    assert done.code == 0
    assert done.err.count("done already, kept") == 2
    assert "step 1/" not in done.err
    assert stamps(folder / "runs/tiny/one") | stamps(folder / "runs/tiny/two") == before


def test_a_changed_evaluation_does_not_train_again(folder):
    before = weights(folder)
    done = command("evaluate", "tiny.yaml", "evaluate.metrics=[loss]", "--domain", "one", folder=folder)
    assert done.code == 0, done.err
    assert "step 1/" not in done.err
    assert weights(folder) == before
    assert [metric["name"] for metric in record(folder, "evaluation.json")["metrics"]] == ["loss"]


def test_a_changed_recipe_trains_again_and_keeps_the_earlier_result(folder):
    before = weights(folder)
    done = command("train", "tiny.yaml", "train.learning_rate=0.01", "--domain", "one", folder=folder)
    assert done.code == 0, done.err
    assert "earlier result kept in" in done.err
    kept = list((folder / "runs/tiny/.kept").iterdir())
    assert len(kept) == 1
    assert (kept[0] / "adapter/adapter_model.safetensors").read_bytes() == before
    assert weights(folder) != before


def test_a_changed_license_makes_the_card_again_and_nothing_else(folder):
    assert command("run", "tiny.yaml", folder=folder).code == 0
    before = stamps(cell(folder))
    fields = yaml.safe_load((folder / "tiny.yaml").read_text())
    fields["domains"]["one"] |= {"license": "cc-by-4.0", "language": "pt"}
    write_recipe(folder / "tiny.yaml", fields)
    done = command("run", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    assert "earlier result" not in done.err
    assert "two on this-machine: done already" in done.err
    changed = {path.relative_to(cell(folder)).as_posix() for path, stamp in stamps(cell(folder)).items()
               if before[path] != stamp}  # fmt: skip
    papers = {"README.md", "loss.svg", "adapter/README.md", "adapter/loss.svg", "card.json"}
    assert changed == {*papers, "cell.json", "data.json", "lock.yaml"}
    (source,) = record(folder, "data.json")["sources"]
    assert (source["license"], source["language"]) == ("cc-by-4.0", "pt")
    assert "| one.jsonl | `cc-by-4.0` |" in (cell(folder) / "README.md").read_text()
    assert yaml.safe_load((cell(folder) / "lock.yaml").read_text())["domains"]["one"]["license"] == "cc-by-4.0"
    assert "done already" in command("run", "tiny.yaml", "-d", "one", folder=folder).err
    fields["domains"]["one"] = {"source": "one.jsonl"}
    write_recipe(folder / "tiny.yaml", fields)
    assert command("run", "tiny.yaml", folder=folder).code == 0
    assert record(folder, "data.json")["sources"][0]["license"] is None


def test_rows_that_were_cut_off_come_back_with_more_room(models, tmp_path):
    chat = [{"messages": [{"role": "user", "content": row["prompt"] * (9 if n < 3 else 1)},
                          {"role": "assistant", "content": f"so {row['prompt']}"}]}
            for n, row in enumerate(pairs(80))]  # fmt: skip
    write_rows(tmp_path / "one.jsonl", chat)
    fields = recipe_fields(models / "lm", "causal-lm", data__dedupe={"near": False}, data__allow=["answer-cut"])
    write_recipe(tmp_path / "tiny.yaml", fields)
    assert command("prepare", "tiny.yaml", "data.max_length=48", folder=tmp_path).code == 0
    assert record(tmp_path, "data.json")["dropped"]["answer-cut-off"] == 3
    assert command("prepare", "tiny.yaml", "data.max_length=200", folder=tmp_path).code == 0
    assert record(tmp_path, "data.json")["dropped"] == {}
    assert record(tmp_path, "data.json")["rows_kept"] == 80


def test_changed_rows_train_again(folder):
    with (folder / "one.jsonl").open("a") as file:
        file.write(json.dumps({"text": "a completely new and bright river", "label": "good"}) + "\n")
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    assert "one on this-machine: recipe or data changed" in done.err


def same_within_rounding(one, other):
    one, other = safetensors.torch.load(one), safetensors.torch.load(other)
    assert one.keys() == other.keys()
    for name, value in other.items():
        assert torch.allclose(one[name], value, rtol=0, atol=1e-6), name


def test_the_plan_of_other_data_does_not_use_what_was_prepared(folder):
    same = command("plan", "tiny.yaml", "--domain", "one", folder=folder)
    assert "not prepared yet" not in same.out
    other = command("plan", "tiny.yaml", "--domain", "one", "data.seed=3", folder=folder)
    assert "not prepared yet" in other.out


def test_fresh_starts_over_and_gives_the_same(folder):
    before, stamp = weights(folder), stamps(cell(folder) / "adapter")
    done = command("train", "tiny.yaml", "--fresh", folder=folder)
    assert done.code == 0, done.err
    assert "step 4/4" in done.err
    assert weights(folder) == before
    assert stamps(cell(folder) / "adapter") != stamp


def test_alone_and_beside_another_domain_an_adapter_is_the_same_within_rounding(folder):
    before = weights(folder)
    done = command("train", "tiny.yaml", "--fresh", "--domain", "one", folder=folder)
    assert done.code == 0, done.err
    same_within_rounding(weights(folder), before)


def test_a_lock_is_a_recipe_that_gives_the_same(folder):
    # A lock holds one domain: so that its run is the same, this one is trained alone too.
    assert command("train", "tiny.yaml", "--fresh", "--domain", "one", folder=folder).code == 0
    lock = cell(folder) / "lock.yaml"
    assert "auto" not in str(yaml.safe_load(lock.read_text())["train"])
    again = folder / "again.yaml"
    shutil.copy(lock, again)
    done = command("train", "again.yaml", "--runs", "other", folder=folder)
    assert done.code == 0, done.err
    adapter = folder / "other/tiny/one/this-machine/adapter/adapter_model.safetensors"
    assert adapter.read_bytes() == weights(folder)


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_tampered_adapter_is_said_kept_aside_and_trained_again(folder):
    for domain in ("one", "two"):
        state = cell(folder, domain) / "cell.json"
        content = json.loads(state.read_text())
        del content["stages"]["evaluate"]
        state.write_text(json.dumps(content))
    path = cell(folder) / "adapter/adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)
    done = command("evaluate", "tiny.yaml", folder=folder)
    assert done.code == 0
    assert "one on this-machine: files of training are not as they were saved and are made again" in done.err
    assert "two on this-machine: files" not in done.err
    (kept,) = (folder / "runs/tiny/.kept").glob("one-*")
    assert (kept / "adapter/adapter_model.safetensors").read_bytes() == bytes(content)
    assert path.read_bytes() != bytes(content)
    cells = json.loads((folder / "runs/tiny/report.json").read_text())["cells"]
    assert [each["status"] for each in cells] == ["pending", "pending"]


def test_an_adapter_that_scores_otherwise_fails_its_cell(folder):
    """The file is whole, its manifest says so, but it is not what was trained."""
    from safetensors.torch import load_file, save_file

    from hfadapt.core.hashing import file_sha256

    path = cell(folder) / "adapter/adapter_model.safetensors"
    save_file({name: tensor * 1.2 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    manifest = cell(folder) / "adapter/hfadapt.json"
    content = json.loads(manifest.read_text())
    content["files"][path.name] = file_sha256(path)
    manifest.write_text(json.dumps(content))
    done = command("evaluate", "tiny.yaml", "evaluate.metrics=[loss]", "--domain", "one", folder=folder)
    assert done.code == 1
    assert "does not score as the trained one did" in done.err


def test_a_missed_gate_fails_the_cell(folder):
    done = command("evaluate", "tiny.yaml", "evaluate.gates={accuracy: 0.9}", folder=folder)
    assert done.code == 1
    assert "the recipe asks for at least +0.900" in record(folder, "cell.json")["errors"][0]["message"]


def test_a_loss_that_is_not_finite_ends_with_1(models, tmp_path):
    import torch
    from transformers import AutoModel

    write_rows(tmp_path / "one.jsonl", labelled(60))
    model = AutoModel.from_pretrained(models / "encoder")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[0, 0] = float("inf")
    shutil.copytree(models / "encoder", tmp_path / "poisoned")
    model.save_pretrained(tmp_path / "poisoned")
    write_recipe(tmp_path / "tiny.yaml", recipe_fields("poisoned"))
    done = command("evaluate", "tiny.yaml", folder=tmp_path)
    assert done.code == 1
    assert "the loss of step 1 is not finite" in done.err
    assert "Traceback" not in done.err + done.out
    assert record(tmp_path, "cell.json")["status"] == "failed"


def test_a_folder_in_use_is_refused(folder):
    with FileLock(folder / "runs/tiny/.lock"):
        done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 2
    assert "another run is using this folder" in done.err


# --- memory that ran out ---------------------------------------------------------------------------------------------


def test_a_run_that_was_killed_is_explained_the_next_time(folder):
    state = cell(folder) / "cell.json"
    killed = json.loads(state.read_text())
    killed["stages"] = {name: kept for name, kept in killed["stages"].items() if name in ("prepare", "plan")}
    state.write_text(json.dumps({**killed, "status": "pending", "running": "train"}))
    done = command("train", "tiny.yaml", "--domain", "one", folder=folder)
    assert done.code == 0, done.err
    assert "the previous run was killed during train, probably out of memory" in done.err
    assert "train.micro_batch_rows=" in done.err
    assert json.loads(state.read_text())["running"] is None
    again = command("train", "tiny.yaml", "--domain", "one", folder=folder)
    assert "the previous run was killed" not in again.err


def test_memory_that_runs_out_is_no_traceback(folder, monkeypatch):
    from hfadapt.pipeline.run import run_recipe
    from hfadapt.recipe.reading import load_recipe

    def train_cells(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 GB")

    monkeypatch.setattr("hfadapt.train.train_cells", train_cells)
    recipe = load_recipe(folder / "tiny.yaml", ["train.learning_rate=0.002"])
    run = run_recipe(recipe, domains=["one"], recipe_folder=folder, folder=folder / "runs/tiny", until="train")
    failed = next(each for each in run.report.cells if each.domain == "one")
    assert failed.status == "failed"
    assert "out of memory during train; the plan predicted" in failed.error
    assert "memory_margin" in failed.error


def test_predicted_and_measured_training_time_are_kept(ready):
    train = record(ready, "train.json")
    assert train["predicted_seconds"] > 0
    assert train["predicted_tokens_per_second"] > 0
    shown = (ready / "runs/tiny/report.md").read_text()
    assert "training predicted | training measured" in shown


# --- a choice of domains ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("across", [True, False])
def test_every_way_to_choose_a_domain_gives_it_the_same_rows(models, tmp_path, across):
    """`two` has rows of `one`; which of them it keeps does not depend on whether `one` is done, nor on who says so."""
    from hfadapt import load_recipe, run

    write_rows(tmp_path / "one.jsonl", labelled(80))
    write_rows(tmp_path / "two.jsonl", [*labelled(40), *labelled(80, seed=1)])
    fields = recipe_fields(models / "encoder", domains=DOMAINS, data__dedupe={"across_domains": across})
    path = write_recipe(tmp_path / "tiny.yaml", fields)

    def rows(folder):
        cells = sorted(each.name for each in (folder / "tiny").iterdir() if each.is_dir())
        return cells, {f.name: f.read_bytes() for f in (folder / "tiny/two/this-machine/data").glob("*.parquet")}

    options = {"recipe_folder": tmp_path, "until": "prepare"}
    run(load_recipe(path), folder=tmp_path / "all/tiny", **options)
    run(load_recipe(path, domains=["two"]), folder=tmp_path / "loaded/tiny", **options)
    run(load_recipe(path), domains=["two"], folder=tmp_path / "asked/tiny", **options)
    done = command("prepare", "tiny.yaml", "-d", "two", "--runs", tmp_path / "typed", folder=tmp_path)
    assert done.code == 0, done.err
    names, whole = rows(tmp_path / "all")
    assert names == ["one", "two"]
    for way in ("loaded", "asked", "typed"):
        assert rows(tmp_path / way) == (["two"], whole), way
    (record,) = json.loads(command("check", "tiny.yaml", "-d", "two", "--json", folder=tmp_path).out)
    assert record["splits"]["train"] == (40 if across else 80)


def test_stages_and_domains_that_are_not_there_are_named(models, tmp_path):
    from hfadapt import load_recipe, make_plan, run
    from hfadapt.core.errors import RequestError

    write_rows(tmp_path / "one.jsonl", labelled(80))
    recipe = load_recipe(write_recipe(tmp_path / "tiny.yaml", recipe_fields(models / "encoder")))
    with pytest.raises(
        RequestError,
        match=r"'evaluation'(.|\n)*card, evaluate, export, plan, prepare, pretrain, student, track(.|\n)*'evaluate'",
    ):
        run(recipe, until="evaluation", folder=tmp_path / "run")
    with pytest.raises(RequestError, match=r"no domain of that name(.|\n)*'on'(.|\n)*did you mean 'one'"):
        run(recipe, domains=["on"], folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert [cell.domain for cell in make_plan(recipe.choose(["one"])).cells] == ["one"]
