"""Facts from the config alone equal those of the built model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from hfadapt.core import registry
from hfadapt.core.errors import RequestError
from hfadapt.models import facts

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    "bert": {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt2": {"n_embd": 48, "n_layer": 3, "n_head": 4},
    "distilbert": {"dim": 48, "hidden_dim": 96, "n_layers": 2, "n_heads": 4},
}


def folder(tmp_path: Path, kind: str, **more: Any) -> str:
    """A folder with nothing but a config."""
    config = {"model_type": kind, "vocab_size": 500, **CONFIGS[kind], **more}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model(tmp_path: Path, kind: str, tied: bool) -> None:
    import transformers

    found = facts.model_facts(folder(tmp_path, kind, tie_word_embeddings=tied), "causal-lm")
    real = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    assert found.parameters == sum(p.numel() for p in real.parameters())
    assert found.tied is tied
    assert found.generates
    assert found.layers == 3
    assert found.head_parameters == (0 if tied else real.lm_head.weight.numel())
    inner = [m for n, m in real.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and n != "lm_head"]
    assert found.linear_parameters == sum(m.weight.numel() for m in inner)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "llama"])
def test_a_classifier(tmp_path: Path, kind: str) -> None:
    found = facts.model_facts(folder(tmp_path, kind, pad_token_id=0), "text-classification", labels=5)
    assert not found.generates
    assert found.labels == 5
    assert found.head_parameters >= 5 * found.hidden_size
    assert found.linear_parameters + found.embedding_parameters < found.parameters
    assert found.layers == (3 if kind == "llama" else 2)


@pytest.mark.parametrize("name", ["./nothere", "/no/where", "gone.gguf"])
def test_a_path_that_is_not_there_is_no_name_of_the_hub(name: str) -> None:
    with pytest.raises(RequestError, match="the model does not exist"):
        facts.load_config(name)


def test_grouped_queries_and_shapes(tmp_path: Path) -> None:
    found = facts.model_facts(folder(tmp_path, "llama", num_key_value_heads=2), "causal-lm")
    shapes = {s.name: (s.in_features, s.out_features, s.count) for s in found.linears}
    assert shapes["k_proj"] == (64, 32, 3)
    assert shapes["gate_proj"] == (64, 96, 3)
    assert (found.kv_heads, found.head_dim, found.largest_linear) == (2, 16, 64 * 96)


def test_samples_need_no_download() -> None:
    found = facts.model_facts("sample:smollm2-135m", "causal-lm")
    assert found.parameters == 134_515_008
    assert found.layers == 30


def test_a_missing_model_says_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a folder with config"):
        facts.model_facts(str(tmp_path / "none"), "causal-lm")


def test_a_model_that_cannot_do_the_task(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_hidden_layers": 1}))
    with pytest.raises(RequestError, match="cannot do this task"):
        facts.model_facts(str(tmp_path), "causal-lm")


def test_an_encoder_cannot_write(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = {"model_type": "bert", "vocab_size": 40, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="reads text in both directions"):
        facts.model_facts(str(tmp_path), "causal-lm")
    for model_type, more in (("xlm", {"emb_dim": 32, "n_layers": 1, "n_heads": 2}), ("bert-generation", sizes)):
        (tmp_path / model_type).mkdir()
        (tmp_path / model_type / "config.json").write_text(
            json.dumps({"model_type": model_type, "vocab_size": 40, **more})
        )
        with pytest.raises(RequestError, match="reads text in both directions"):
            facts.model_facts(str(tmp_path / model_type), "causal-lm")
    (tmp_path / "decoder").mkdir()
    (tmp_path / "decoder/config.json").write_text(json.dumps({**config, "is_decoder": True}))
    assert facts.model_facts(str(tmp_path / "decoder"), "causal-lm").layers == 1


class Dense(torch.nn.Linear):
    """A layer of another kind than Linear."""


@pytest.mark.parametrize(
    ("letters", "pattern"),
    [("aaaaaa", (0, 1)), ("abababab", (0, 2)), ("daaaaa", (1, 1)), ("aabaabaab", (0, 3)), ("abcd", (4, 0))],
)
def test_the_pattern_of_layers_is_found(letters: str, pattern: tuple[int, int]) -> None:
    sizes = {"a": 4, "b": 5, "c": 6, "d": 7}
    layers = torch.nn.ModuleList(torch.nn.Linear(sizes[kind], 4, device="meta") for kind in letters)
    assert facts.layer_pattern([layers]) == pattern


def test_layers_of_one_shape_and_two_classes_are_two_kinds() -> None:
    made = (Dense if i % 2 else torch.nn.Linear for i in range(6))
    assert facts.layer_pattern([torch.nn.ModuleList(kind(4, 4, device="meta") for kind in made)]) == (0, 2)


@pytest.mark.parametrize(("model_type", "recomputes"), [("bert", True), ("albert", False), ("mpnet", False)])
def test_whether_layers_can_be_recomputed(model_type: str, recomputes: bool) -> None:
    found = small_facts(model_type, "text-classification", embedding_size=64)
    assert found.recomputes is recomputes
    assert found.layers == 4


def test_experts_are_seen() -> None:
    assert small_facts("mixtral", "causal-lm", num_key_value_heads=2, num_local_experts=4).experts
    assert not small_facts("mistral", "causal-lm", num_key_value_heads=2).experts


def small_facts(model_type: str, task: str, **more: Any) -> facts.ModelFacts:
    fields = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, **more}
    config = AutoConfig.for_model(model_type, num_attention_heads=4, pad_token_id=0, **fields)
    built = facts.build(config, registry.task(task).auto_class, model_type)
    return facts.describe(built, model_type, task, 2, config)


def test_the_head_of_a_model_with_a_single_layer_is_known():
    """Before, a student with one layer of a Whisper that classifies had no head, and could not be evaluated."""
    from transformers import WhisperConfig, WhisperForAudioClassification

    sizes = {"d_model": 16, "encoder_attention_heads": 2, "encoder_ffn_dim": 16, "max_source_positions": 20}
    for layers in (1, 2):
        model = WhisperForAudioClassification(WhisperConfig(**sizes, encoder_layers=layers, vocab_size=60_000))
        assert facts.head_names(model) == ("projector", "classifier")


@pytest.mark.parametrize(
    ("model_type", "task", "heads"),
    [
        ("bert", "text-classification", ("classifier",)),
        ("xlm-roberta", "text-classification", ("classifier",)),
        ("camembert", "token-classification", ("classifier",)),
        ("xlm-roberta", "masked-lm", ("lm_head",)),
        ("mistral", "causal-lm", ("lm_head",)),
    ],
)
def test_a_head_is_known_wherever_a_model_has_it(model_type: str, task: str, heads: tuple[str, ...]):
    """XLM-R and CamemBERT make theirs before the body: no cell of theirs could be evaluated."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = AutoConfig.for_model(model_type, **sizes, num_attention_heads=2, num_key_value_heads=2)
    assert facts.head_names(facts.build(config, registry.task(task).auto_class, model_type)) == heads
