"""How long rows may be: as many tokens as a model has positions, which its config need not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_tokenizer

from hfadapt.core.errors import RequestError
from hfadapt.models.facts import model_facts
from hfadapt.models.generate import continuations
from hfadapt.plan.make import make_plan
from hfadapt.recipe.schema import Recipe

SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 1}
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 64},
    "opt": {"max_position_embeddings": 64, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "mpt": {"max_seq_len": 64, "d_model": 32, "n_heads": 4, "n_layers": 2},
    "openai-gpt": {"n_positions": 64},
    **{kind: {"intermediate_size": 64, "max_position_embeddings": 64} for kind in ("bert", "roberta", "llama")},
    "deberta-v2": {
        **{"intermediate_size": 64, "max_position_embeddings": 64, "position_biased_input": False},
        **{"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
    },
}
WRITING = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
SEEING = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 28, "patch_size": 14}
KINDS["gemma3"] = {
    "text_config": {**WRITING, "vocab_size": 512, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8},
    "vision_config": {**SEEING, "num_hidden_layers": 1},
}
CLASSES, LM = "text-classification", "causal-lm"


def folder(tmp_path: Path, kind: str) -> str:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **SIZES, **KINDS[kind]}))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("kind", "task", "most"),
    [("bert", CLASSES, 64), ("roberta", CLASSES, 62), ("gpt2", LM, 64), ("opt", LM, 64), ("openai-gpt", LM, 64)],
)
def test_a_table_of_positions_is_a_limit(tmp_path, kind, task, most):
    """It is the real one: the model reads rows of so many tokens, and none that is longer."""
    import transformers

    found = model_facts(folder(tmp_path, kind), task)
    assert (found.max_positions, found.position_table) == (most, True)
    auto = "AutoModelForCausalLM" if task == LM else "AutoModelForSequenceClassification"
    model = getattr(transformers, auto).from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    ids = torch.full((1, 70), 7)
    with torch.no_grad():
        model(input_ids=ids[:, :most])
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids[:, : most + 1])


def test_places_in_a_picture_are_no_limit_of_a_text(tmp_path):
    """The part of Gemma 3 that sees has four of them here."""
    found = model_facts(folder(tmp_path, "gemma3"), LM)
    assert (found.max_positions, found.position_table) == (64, False)


@pytest.mark.parametrize(
    ("kind", "task", "length", "allowed"),
    [
        ("roberta", CLASSES, 64, False),
        ("roberta", CLASSES, 62, True),
        ("gpt2", LM, 65, False),
        ("mpt", LM, 72, False),
        ("llama", LM, 72, True),
        ("deberta-v2", CLASSES, 72, True),
    ],
)
def test_a_longer_row_is_refused_where_it_cannot_be_read(tmp_path, kind, task, length, allowed):
    fields = {"name": "r", "model": folder(tmp_path, kind), "task": task, "domains": {"d": {"source": "d.csv"}}}
    asked = Recipe.model_validate({**fields, "data": {"max_length": length}})
    if not allowed:
        with pytest.raises(RequestError, match="positions") as error:
            make_plan(asked)
        assert "data.max_length" in str(error.value)
        return
    cell = make_plan(asked).cells[0]
    assert cell.value("data.max_length") == length
    noted = [note for note in cell.warnings if "longer than" in note]
    assert bool(noted) is (length > 64)


def test_a_text_at_the_limit_is_gone_on_with(tmp_path):
    """The prompt loses its start, so that there are positions to write in."""
    import transformers

    config = transformers.AutoConfig.for_model("gpt2", **SIZES, **KINDS["gpt2"])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    prompts = [[7] * 64, [8, 9]]
    written = continuations(model, make_tokenizer(), prompts, 24, batch_rows=2)
    assert len(written) == 2
    assert all(len(text) <= 24 for text in written)
    assert continuations(model, make_tokenizer(), [[7] * 64], 400, batch_rows=1)
