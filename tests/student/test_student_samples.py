"""Students of the sample models: plain transformers opens them from their files and answers as in memory."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hfadapt.core import registry, samples
from hfadapt.models.activation import swap
from hfadapt.models.base import BaseRef
from hfadapt.models.load import Base, load_base
from hfadapt.models.merge import save_base
from hfadapt.models.smaller import narrowed, width_of
from hfadapt.student.parts import parts
from hfadapt.student.shape import cut_ffn, drop_layers, layers_of
from hfadapt.student.vocabulary import cut_otherwise, trim

pytestmark = pytest.mark.slow


def texts(count: int) -> list[str]:
    """Of tweets."""
    import pyarrow.parquet as parquet

    rows = parquet.read_table(samples.dataset("vader/tweets").path).to_pylist()
    return [str(row["text"]) for row in islice(rows, count)]


def loaded(model: str, task: str, labels: tuple[str, ...] = ()) -> tuple[BaseRef, Base]:
    ref = BaseRef(f"sample:{model}", task, "none", "float32")
    base = load_base(ref, labels, torch.device("cpu"))
    base.model.eval()
    # A head that an adapter has learned belongs to the model.
    base.fresh_modules = ()
    return ref, base


def opened(base: Base, ref: BaseRef, folder: Path) -> Any:
    """The model as plain transformers opens it."""
    save_base(base, folder, parent=ref, made_by="student", how="smaller")
    auto = getattr(transformers, registry.task(ref.task).auto_class)
    again, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return again.eval()


def sizes(base: Base) -> dict[str, int]:
    found = {each.name: each.parameters for each in parts(base.model)}
    return {**found, "all": sum(found.values())}


def test_minilm_of_four_layers_for_tweets(tmp_path) -> None:
    ref, base = loaded("minilm-l6", "text-classification", ("bad", "good"))
    rows, before, old = texts(1000), sizes(base), base.tokenizer
    used = {token for text in rows for token in old(text)["input_ids"]}
    vectors = base.model.get_input_embeddings().weight
    first = vectors[old.convert_tokens_to_ids("good")].clone()
    all_tokens, kept = trim(base, used)
    assert kept < all_tokens / 4
    assert torch.equal(base.model.get_input_embeddings().weight[base.tokenizer.convert_tokens_to_ids("good")], first)
    ids = [list(reader(text)["input_ids"]) for reader in (old, base.tokenizer) for text in rows]
    assert cut_otherwise(old, base.tokenizer, ids[:1000], ids[1000:]) == 0
    batch = dict(base.tokenizer(rows[:64], return_tensors="pt", padding=True))
    drop_layers(base.model, 4, [batch])
    cut_ffn(base.model, narrowed(1536, 0.75), [batch])
    swap(base.model, "relu6")
    assert (layers_of(base.model), width_of(base.model.config)) == (4, 1152)
    after = sizes(base)
    assert after["all"] < before["all"] / 2
    again = opened(base, ref, tmp_path / "student")
    assert again.config.hidden_act == "relu6"
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, base.model(**batch).logits)
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "student")
    assert reader(rows[:64])["input_ids"] == base.tokenizer(rows[:64])["input_ids"]


def test_smollm2_with_three_quarters_of_its_layers(tmp_path) -> None:
    ref, base = loaded("smollm2-135m", "causal-lm")
    rows, before, old = texts(400), sizes(base), base.tokenizer
    batch = dict(old(rows[:4], return_tensors="pt", padding=True))
    with torch.no_grad():
        wanted = base.model(**batch).logits
        trim(base, {token for text in rows for token in old(text)["input_ids"]})
        new = dict(base.tokenizer(rows[:4], return_tensors="pt", padding=True))
        found = base.model(**new).logits
    index = [old.convert_tokens_to_ids(token) for token in base.tokenizer.convert_ids_to_tokens(range(found.shape[-1]))]
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[..., index][real], rtol=1e-4, atol=1e-4)
    assert base.tokenizer.chat_template == old.chat_template
    drop_layers(base.model, 23, [new])
    cut_ffn(base.model, narrowed(1536, 0.9), [new])
    assert sizes(base)["all"] < 0.7 * before["all"]
    again = opened(base, ref, tmp_path / "student")
    assert again.lm_head.weight is again.get_input_embeddings().weight
    with torch.no_grad():
        torch.testing.assert_close(again(**new).logits, base.model(**new).logits)


def test_dinov2_with_three_quarters_of_layers_and_units(tmp_path) -> None:
    ref, base = loaded("dinov2-small", "image-classification", ("cat", "dog"))
    batch = {"pixel_values": torch.randn(2, 3, 98, 98)}
    drop_layers(base.model, 9, [batch])
    cut_ffn(base.model, narrowed(width_of(base.model.config), 0.75), [batch])
    swap(base.model, "relu6")
    assert (layers_of(base.model), width_of(base.model.config)) == (9, 1152)
    again = opened(base, ref, tmp_path / "student")
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, base.model(**batch).logits)
