"""`hfadapt convert` on public examples of other tools: no field is lost, and what is taken is right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import command, write_rows

from hfadapt.converters import To
from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.recipe.convert import Converted, convert
from hfadapt.recipe.other_tools import OTHER_TOOLS, other_words
from hfadapt.recipe.places import fields
from hfadapt.recipe.reading import load_recipe
from hfadapt.recipe.schema import Recipe

EXAMPLES = Path(__file__).parent / "examples"
FILES = sorted(EXAMPLES.glob("*/*.y*ml"))
SEVEN = ("gate_proj", "down_proj", "up_proj", "q_proj", "v_proj", "k_proj", "o_proj")

EXPECTED: dict[str, dict[str, Any]] = {
    "qlora-1b.yml": {
        "model": "NousResearch/Llama-3.2-1B", "task": "causal-lm", "quant": "nf4", "adapter.method": "lora",
        "adapter.rank": 32, "adapter.alpha": 16, "adapter.dropout": 0.05, "adapter.modules": SEVEN,
        "data.max_length": 2048, "data.packing": True, "data.validation": 0.1, "train.batch_rows": 8,
        "train.epochs": 1, "train.optimizer": "adamw-8bit", "train.schedule": "cosine", "train.learning_rate": 2e-4,
        "train.warmup_ratio": 0.1, "train.weight_decay": 0.0, "train.checkpointing": True,
        "domains.GPT4-LLM-Cleaned.source": "teknium/GPT4-LLM-Cleaned",
    },
    "instruct-dpo-lora-8b.yml": {
        "task": "preference", "quant": "int8", "data.packing": False, "data.validation": 0.05,
        "train.objective": "preference", "adapter.modules": "auto", "train.warmup_ratio": "auto",
        "domains.alpaca_messages_2k_dpo_test.columns.prompt": "conversation",
        "domains.alpaca_messages_2k_dpo_test.columns.rejected": "rejected",
    },
    "instruct-lora-8b.yml": {
        "task": "causal-lm", "quant": "int8", "train.epochs": 4,
        "domains.alpaca_messages_2k_test.columns.messages": "messages",
    },
    "fft-8b.yaml": {
        "adapter.method": "full", "quant": "none", "train.learning_rate": 2e-5, "train.optimizer": "paged-adamw-8bit",
        "train.batch_rows": 8, "data.max_length": 8192,
    },
    "llama3_lora_sft.yaml": {
        "task": "causal-lm", "adapter.rank": 8, "adapter.modules": "auto", "dtype": "bfloat16",
        "train.batch_rows": 8, "train.learning_rate": 1e-4, "train.checkpoint_every_steps": 500,
        "domains.data.sources.0.rows": 1000, "domains.data.template.messages.1.content": "{output}",
        "domains.data.template.messages.0.content": "{instruction}\n{input}",
    },
    "qwen3_lora_dpo.yaml": {
        "task": "preference", "train.objective_options": {"beta": 0.1}, "train.learning_rate": 5e-6,
        "domains.dpo_en_demo.columns.prompt": "conversations", "domains.dpo_en_demo.rows": 1000,
    },
    "qwen3_lora_pretrain.yaml": {"task": "causal-lm", "domains.c4_demo.columns.text": "text"},
    "llama3_lora_sft_otfq.yaml": {
        "quant": "nf4", "data.validation": 0.1, "train.evaluate_every_steps": 500, "adapter.rank": "auto",
    },
    "llama3_freeze_sft.yaml": {"adapter.method": "lora", "adapter.layers": 8, "dtype": "float16"},
    "example_config.yaml": {
        "model": "Qwen/Qwen2.5-0.5B", "adapter.method": "full", "train.learning_rate": 1e-4,
        "train.schedule": "cosine", "domains.imdb.source": "stanfordnlp/imdb", "train.batch_rows": "auto",
    },
    "zephyr_sft_qlora.yaml": {
        "model": "mistralai/Mistral-7B-v0.1@main", "quant": "nf4", "dtype": "bfloat16", "train.batch_rows": 8,
        "train.trackers": ("tensorboard",), "train.seed": 42, "data.validation": 1000, "train.epochs": 1,
        "domains.data.sources.0.split": "train_sft", "domains.data.sources.1.split": "test_sft",
    },
    "zephyr_dpo_qlora.yaml": {
        "task": "preference", "train.objective_options": {"beta": 0.01}, "train.optimizer": "adamw",
        "domains.ultrafeedback_binarized.split": "train_prefs", "train.evaluate_every_steps": 100,
        "domains.ultrafeedback_binarized.validation": "test_prefs", "data.max_length": 1024,
    },
}  # fmt: skip

LACKING: dict[str, set[str]] = {
    "qlora-1b.yml": {"special_tokens"},
    "instruct-dpo-lora-8b.yml": {"special_tokens", "warmup_steps"},
    "instruct-lora-8b.yml": {"special_tokens", "warmup_steps"},
    "fft-8b.yaml": {"special_tokens", "warmup_steps"},
    "llama3_lora_sft.yaml": {"trust_remote_code"},
    "qwen3_lora_dpo.yaml": {"trust_remote_code"},
    "qwen3_lora_pretrain.yaml": {"trust_remote_code"},
    "llama3_lora_sft_otfq.yaml": set(),
    "llama3_freeze_sft.yaml": {"finetuning_type", "use_llama_pro"},
    "example_config.yaml": set(),
    "zephyr_sft_qlora.yaml": set(),
    "zephyr_dpo_qlora.yaml": {"bf16", "max_prompt_length"},
}


def value(recipe: Recipe, place: str) -> Any:
    """What a recipe says at a dotted place."""
    found: Any = recipe
    for part in place.split("."):
        inside = found[int(part)] if isinstance(found, tuple) else None
        found = inside or (found[part] if isinstance(found, dict) else getattr(found, part))
    return found


def lists(done: Converted) -> list[str]:
    """The fields of all three lists."""
    return [line.field for line in (*done.taken, *done.needless, *done.lacking)]


def made(folder: Path, tool: str | None = None, **said: Any) -> tuple[Recipe, Converted]:
    """The recipe of a file with these fields."""
    source = folder / "theirs.json"
    source.write_text(json.dumps(said), encoding="utf-8")
    (folder / "ours.yaml").unlink(missing_ok=True)
    done = convert(source, folder / "ours.yaml", tool)
    return load_recipe(folder / "ours.yaml"), done


def axolotl(folder: Path, **said: Any) -> tuple[Recipe, Converted]:
    """A small file of axolotl."""
    usual = {"base_model": "a/b", "adapter": "lora", "datasets": [{"path": "c/d", "type": "alpaca"}]}
    return made(folder, "axolotl", **{**usual, **said})


def trl(folder: Path, **said: Any) -> tuple[Recipe, Converted]:
    """A small file of TRL."""
    return made(folder, "trl", **{"model_name_or_path": "a/b", "dataset_name": "c/d", "use_peft": True, **said})


def test_every_example_is_expected():
    assert {path.name for path in FILES} == EXPECTED.keys() == LACKING.keys()
    assert {path.parent.name for path in FILES} == {*registry.names("converters")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_public_example(path: Path, tmp_path: Path):
    done = convert(path, tmp_path / "ours.yaml")
    assert done.tool == registry.converter(path.parent.name).title
    recipe = load_recipe(tmp_path / "ours.yaml")
    for place, expected in EXPECTED[path.name].items():
        assert value(recipe, place) == expected, place
    assert {line.field for line in done.lacking} == LACKING[path.name]
    text = (tmp_path / "ours.yaml").read_text()
    assert all(f"#   {line.field} = " in text for line in done.lacking)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_field_is_lost(path: Path, tmp_path: Path):
    """Every field, at whatever depth, is in one of the lists: itself, or a field around it."""
    said = yaml.safe_load(path.read_text())
    done = lists(convert(path, tmp_path / "ours.yaml"))
    assert len(done) == len(set(done))

    def lost(name: str, inner: Any) -> list[str]:
        if name in done:
            return []
        if isinstance(inner, dict) and inner:
            return [each for key, below in inner.items() for each in lost(f"{name}.{key}" if name else key, below)]
        if isinstance(inner, list) and inner:
            return [each for index, below in enumerate(inner) for each in lost(f"{name}[{index}]", below)]
        return [name]

    assert lost("", said) == []


@pytest.mark.parametrize("tool", registry.names("converters"))
def test_places_are_those_of_a_recipe(tool: str):
    known = {*fields(), *(f"train.objective_options.{option}" for option in ("beta", "nll")), ""}
    rules = registry.converter(tool).fields
    assert {rule.place for rule in rules.values() if isinstance(rule, To)} <= known


@pytest.mark.parametrize("tool", registry.names("converters"))
def test_an_unknown_field_is_listed(tool: str, tmp_path: Path):
    path = next(path for path in FILES if path.parent.name == tool)
    (path.parent / "data").is_dir() and shutil.copytree(path.parent / "data", tmp_path / "data")
    (tmp_path / path.name).write_text(path.read_text() + "\nnobody_knows: {this: 1}\n")
    done = convert(tmp_path / path.name, tmp_path / "ours.yaml")
    assert [line.text for line in done.lacking if line.field == "nobody_knows"] == ["nobody_knows = {this: 1}"]
    assert "nobody_knows = {this: 1}" in str(done)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"warmup_steps": 10, "max_steps": 200, "num_epochs": 3}, {"train.max_steps": 200, "train.warmup_ratio": 0.05}),
        ({"max_steps": -1, "num_epochs": 3}, {"train.max_steps": None, "train.epochs": 3}),
        ({"micro_batch_size": 3}, {"train.batch_rows": 3}),
        ({"gradient_accumulation_steps": 4}, {"train.batch_rows": 4}),
        ({"bf16": True}, {"dtype": "bfloat16"}),
        ({"bf16": False, "fp16": True}, {"dtype": "float16"}),
        ({"peft_use_dora": True}, {"adapter.method": "dora"}),
        ({"adapter": None, "lora_r": 8}, {"adapter.method": "full", "adapter.rank": "auto"}),
        ({"lr_scheduler": "polynomial"}, {"train.schedule": "auto"}),
        ({"val_set_size": 0}, {"data.validation": 0.1}),
        ({"val_set_size": 200}, {"data.validation": 200}),
        ({"wandb_project": "mine"}, {"train.trackers": ("wandb",)}),
        ({"datasets": [{"path": "c/d", "type": "completion", "field": "body"}]}, {"domains.d.columns.text": "body"}),
        ({"datasets": [{"path": "c/d", "name": "en", "split": "train[:5%]"}]}, {"domains.d.config": "en"}),
        (
            {"test_datasets": [{"path": "c/d", "split": "dev", "type": "alpaca"}]},
            {"domains.d.validation": "dev"},
        ),
        (
            {"datasets": [{"path": "c/d", "type": {"field_instruction": "ask", "field_output": "say", "format": "Q {instruction}"}}]},  # noqa: E501
            {"domains.d.template.prompt": "Q {ask}", "domains.d.template.completion": "{say}"},
        ),
    ],
    ids=str,
)  # fmt: skip
def test_values_of_axolotl(said: dict[str, Any], expected: dict[str, Any], tmp_path: Path):
    recipe, done = axolotl(tmp_path, **said)
    assert {place: value(recipe, place) for place in expected} == expected
    assert {name for name in said if name not in ("datasets", "test_datasets")} <= {*lists(done)}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"per_device_train_batch_size": 2, "num_processes": 2}, {"train.batch_rows": 4, "processes": 2}),
        ({"gradient_accumulation_steps": 2}, {"train.batch_rows": 16}),
        ({"lora_target_modules": "all-linear"}, {"adapter.modules": "auto"}),
        ({"use_rslora": True, "use_dora": False}, {"adapter.method": "rslora"}),
        ({"dataset_test_split": "test", "dataset_config": "en"}, {"domains.d.validation": "test"}),
        ({"beta": 0.2}, {"task": "preference", "train.objective_options": {"beta": 0.2}}),
        ({"eval_steps": 0.1, "save_steps": 7}, {"train.evaluate_every_steps": "auto"}),
        (
            {"datasets": [{"path": "c/d", "name": "en"}, {"path": "e/f", "fraction": 0.5}]},
            {"domains.data.sources.0.config": "en", "domains.data.sources.1.weight": 0.5},
        ),
    ],
    ids=str,
)
def test_values_of_trl(said: dict[str, Any], expected: dict[str, Any], tmp_path: Path):
    recipe, _ = trl(tmp_path, **said)
    assert {place: value(recipe, place) for place in expected} == expected


@pytest.mark.parametrize(
    ("tool", "said", "named"),
    [
        ("axolotl", {"rl": "grpo"}, "rl: grpo"),
        ("axolotl", {"reward_model": True}, "reward_model: true"),
        ("axolotl", {"datasets": None}, "no datasets"),
        ("trl", {"reward_funcs": ["accuracy_reward"]}, "reward_funcs"),
        ("trl", {"beta": 0.1, "loss_type": "ipo"}, "loss_type: ipo"),
        ("trl", {"dataset_name": None}, "no dataset_name"),
        ("llama-factory", {"stage": "ppo"}, "stage: ppo"),
        ("llama-factory", {"finetuning_type": "oft"}, "finetuning_type: oft"),
        ("llama-factory", {"dataset": "identity"}, "dataset_info.json"),
    ],
)
def test_what_no_recipe_can_ask_for_is_refused(tool: str, said: dict[str, Any], named: str, tmp_path: Path):
    small = {"axolotl": axolotl, "trl": trl, "llama-factory": lambda folder, **more: made(folder, tool, **more)}
    usual = {"model_name_or_path": "a/b"} if tool == "llama-factory" else {}
    with pytest.raises(RequestError, match="recipe has nothing that stands for this") as found:
        small[tool](tmp_path, **{**usual, **said})
    assert named in str(found.value)
    assert not (tmp_path / "ours.yaml").exists()


def test_files_are_named_from_the_recipe(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    write_rows(tmp_path / "data/rows.jsonl", [{"instruction": "a", "output": "b"}])
    source = tmp_path / "theirs.yml"
    source.write_text(
        "base_model: a/b\nadapter: lora\ndatasets: [{path: data/rows.jsonl, type: alpaca, ds_type: json}]\n"
    )
    convert(source, tmp_path / "out/ours.yaml")
    assert load_recipe(tmp_path / "out/ours.yaml").domains["rows"].source == "../data/rows.jsonl"


def test_a_recipe_that_is_not_valid_is_not_left(tmp_path: Path):
    with pytest.raises(RequestError, match=r"rows\.jsonl"):
        axolotl(tmp_path, datasets=[{"path": "./rows.jsonl", "type": "alpaca"}])
    assert not (tmp_path / "ours.yaml").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a list", "has no fields"),
        ("a: [", "cannot be read"),
        ("model_name_or_path: a/b\nlearning_rate: 1", "cannot be told"),
        ("name: x\n", "cannot be told"),
    ],
)
def test_a_file_of_nobody(text: str, said: str, tmp_path: Path):
    (tmp_path / "theirs.yaml").write_text(text)
    done = command("convert", "theirs.yaml", folder=tmp_path)
    assert done.code == 2
    assert said in done.err


def test_a_tool_of_another_name(tmp_path: Path):
    (tmp_path / "theirs.yaml").write_text("a: 1\n")
    done = command("convert", "theirs.yaml", "--from", "llamafactory", folder=tmp_path)
    assert done.code == 2
    assert "did you mean 'llama-factory'?" in done.err


def test_an_existing_recipe_is_kept(tmp_path: Path):
    shutil.copy(EXAMPLES / "trl/example_config.yaml", tmp_path)
    (tmp_path / "example_config-recipe.yaml").write_text("mine")
    done = command("convert", "example_config.yaml", folder=tmp_path)
    assert done.code == 2
    assert "exists already" in done.err
    assert (tmp_path / "example_config-recipe.yaml").read_text() == "mine"


def test_a_plan_is_made_of_it(models: Path, tmp_path: Path):
    write_rows(tmp_path / "rows.jsonl", [{"instruction": f"Add {n} and 1", "output": str(n + 1)} for n in range(60)])
    shutil.copytree(models / "lm", tmp_path / "model")
    (tmp_path / "theirs.yml").write_text(
        "base_model: ./model\nadapter: lora\nlora_r: 4\nsequence_len: 64\nmicro_batch_size: 2\n"
        "datasets: [{path: rows.jsonl, type: alpaca}]\nnum_epochs: 1\n"
    )
    done = command("convert", "theirs.yml", folder=tmp_path)
    assert done.code == 0, done.err
    assert "adapter.rank: 4" in done.out
    planned = command("plan", "theirs-recipe.yaml", folder=tmp_path)
    assert planned.code == 0, planned.err
    assert "rank=4" in planned.out


def test_words_of_all_tools_are_hints(tmp_path: Path):
    assert other_words().items() >= OTHER_TOOLS.items()
    assert other_words()["sample_packing"] == "data.packing"
    assert "" not in other_words().values()
    (tmp_path / "r.yaml").write_text(
        "model: sample:minilm-l6\ntask: text-classification\nsample_packing: true\ndomains: {a: sample:vader/tweets}\n"
    )
    with pytest.raises(RequestError, match=r"hfadapt calls it `data\.packing`"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("value", [[3, None], 7])
def test_a_value_that_the_tool_itself_does_not_take_is_listed(value: Any, tmp_path: Path):
    recipe, done = axolotl(tmp_path, lora_target_modules=value)
    assert "lora_target_modules" in [line.field for line in done.lacking]
    assert recipe.adapter.modules == "auto"
