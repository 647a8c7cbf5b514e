"""`hfadapt export --for vllm`: what vLLM would refuse or answer wrongly is refused, and its command is shown."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny import command, labelled, recipe_fields, write_recipe, write_rows

from hfadapt.core.errors import RequestError
from hfadapt.export.servers import check_server
from hfadapt.formats.adapter import KIND as ADAPTER
from hfadapt.formats.merged import KIND as MERGED
from hfadapt.run_folder import Cell


@pytest.fixture(scope="module")
def cell(models, tmp_path_factory):
    return made("causal-lm", models, tmp_path_factory.mktemp("lm"))


def made(task, models, folder):
    """A trained cell, without an evaluation."""
    write_rows(folder / "one.jsonl", labelled(60))
    template = {"template": {"prompt": 'Is "{text}"\ngood?', "completion": " {label}"}} if task == "causal-lm" else {}
    model = models / ("lm" if template else "encoder")
    write_recipe(folder / "tiny.yaml", recipe_fields(model, task, adapter__rank=12, dtype="float32", **template))
    done = command("train", "tiny.yaml", folder=folder)
    assert done.code == 0, done.err
    return Cell(folder / "runs/tiny/one/this-machine")


@pytest.fixture
def changed(cell, tmp_path):
    """A copy of the cell whose adapter's config says something else."""

    def change(**fields):
        shutil.copytree(cell.folder, tmp_path / "cell", dirs_exist_ok=True)
        path = tmp_path / "cell/adapter/adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        return Cell(tmp_path / "cell")

    return change


def test_the_command_serves_and_asks_as_training_did(cell, models, tmp_path):
    done = command("export", cell.folder, "--for", "vllm", "--to", tmp_path / "a b")
    assert done.code == 0, done.err
    lines = [line.strip().removeprefix("$ ") for line in done.out.splitlines()]
    serve = shlex.split(next(line for line in lines if line.startswith("vllm serve")))
    assert serve == [
        *("vllm", "serve", str(models / "lm"), "--dtype", "float32", "--enable-lora", "--max-lora-rank", "16"),
        *("--lora-modules", f"one={tmp_path / 'a b'}"),
    ]
    assert (tmp_path / "a b/adapter_config.json").exists()
    asked = shlex.split(next(line for line in lines if line.startswith("curl")))
    assert asked[1] == "localhost:8000/v1/completions"
    body = json.loads(asked[-1])
    assert (body["model"], body["prompt"]) == ("one", 'Is "TEXT"\ngood?')


def test_a_merged_model_is_served_as_it_is(cell, tmp_path):
    check_server("vllm", cell, MERGED)
    done = command("export", cell.folder, "--for", "vllm", "--format", "merged", "--force", "--to", tmp_path / "out")
    assert f"vllm serve {tmp_path / 'out'} --served-model-name one" in done.out, done.err
    assert "--enable-lora" not in done.out


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"r": 513}, "at most 512"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ],
)
def test_what_vllm_does_not_take_is_refused_before_anything_is_written(changed, tmp_path, fields, named):
    with pytest.raises(RequestError) as caught:
        check_server("vllm", changed(**fields), ADAPTER)
    assert named in str(caught.value)
    assert "--format merged --for vllm" in str(caught.value)


def test_the_largest_rank_fits_and_other_tensors_do_not(changed):
    found = changed(r=512)
    check_server("vllm", found, ADAPTER)
    path = found.adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "base_model.model.lm_head.weight": next(iter(tensors.values())).clone()}, path)
    with pytest.raises(RequestError, match="linear layers alone"):
        check_server("vllm", found, ADAPTER)


def test_only_models_that_write_and_known_servers(cell, models, tmp_path):
    with pytest.raises(RequestError, match="no such server") as caught:
        check_server("vlm", cell, ADAPTER)
    assert "did you mean 'vllm'?" in str(caught.value)
    with pytest.raises(RequestError, match="write texts"):
        check_server("vllm", made("text-classification", models, tmp_path), ADAPTER)
