"""Blocks of weights: what is packed is read by the package gguf, and errs no more than what llama.cpp packs itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import xllamacpp
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import byte_level, configured, made

from hfadapt.core.gguf import MIXTURES, read_model, rounded
from hfadapt.core.gguf.blocks import BITS, NARROW
from hfadapt.formats._llama_cpp import LlamaCpp
from hfadapt.formats.gguf import TYPES, write_gguf

KINDS = {"Q4_K": 0.075, "Q5_K": 0.04, "Q6_K": 0.02, "Q4_0": 0.085, "Q4_1": 0.08, "Q5_0": 0.042, "Q5_1": 0.04}
"""The root of the mean squared error of values that are normal, of their own size at most."""
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}


def read(packed: np.ndarray, kind: str) -> np.ndarray:
    return dequantize(packed, gguf.GGMLQuantizationType[kind])


def normal(rows: int = 64, columns: int = 512) -> np.ndarray:
    draw = np.random.default_rng(0)
    return (draw.standard_normal((rows, columns)) * draw.gamma(1, 0.05, (rows, 1))).astype(np.float32)


def by_llama_cpp(values: np.ndarray, kind: str, importance: np.ndarray | None) -> np.ndarray:
    library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    packed = np.zeros((len(values), values.shape[1] // block * size), np.uint8)
    long, address = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk(
        ctypes.c_int(int(number)),
        address(values.ctypes.data),
        address(packed.ctypes.data),
        long(0),
        long(len(values)),
        long(values.shape[1]),
        address(None if importance is None else importance.ctypes.data),
    )
    return packed


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_of_llama_cpp(kind, weighed):
    values = normal()
    importance = np.random.default_rng(1).gamma(0.3, 1, values.shape[1]).astype(np.float32) if weighed else None
    weights = 1 if importance is None else importance

    def error(packed: np.ndarray) -> float:
        return float((weights * (read(packed, kind) - values) ** 2).mean() ** 0.5)

    ours, theirs = rounded(values, kind, importance), by_llama_cpp(values, kind, importance)
    assert ours.shape == theirs.shape
    assert error(ours) <= 1.02 * error(theirs)
    assert error(rounded(values, kind)) <= KINDS[kind] * float((weights * values**2).mean() ** 0.5)
    if weighed:
        assert error(ours) < error(rounded(values, kind))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    block=st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8),
    size=st.sampled_from([1e-12, 1e-4, 1.0]),
    alone=st.booleans(),
)
def test_any_block_is_read_back_within_its_steps(kind, block, size, alone):
    """Zeros, one value alone, one sign only, values of very different sizes."""
    values = np.zeros(256, np.float32)
    values[:8] = block
    values = (values if alone else np.resize(block, 256).astype(np.float32)) * np.float32(size)
    found = read(rounded(values[None], kind), kind)[0]
    assert np.isfinite(found).all()
    largest = float(np.abs(values).max())
    # A unit in float16 is 0 below 6e-8, and one of all groups is rounded to 6 bits.
    assert np.abs(found - values).max() <= 0.2 * largest + 1e-4
    if not values.any():
        assert not found.any()


@pytest.mark.parametrize("name", MIXTURES)
def test_every_mixture_is_read_and_run_by_llama_cpp(name, tmp_path):
    tokenizer, path = byte_level(), tmp_path / "a.gguf"
    model = made(configured("llama", **WIDE, vocab_size=len(tokenizer)))
    write_gguf(model, tokenizer, path, name, "a")
    run, ids = LlamaCpp(path, model.config, 64), tokenizer("lovely day in 2024")["input_ids"]
    again, _ = read_model(path, "float32")
    with torch.inference_mode():
        own = again(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    # llama.cpp rounds what is multiplied with such blocks to 8 bits as well.
    assert float((run.following(ids) - own).abs().mean()) < 0.2
    tensors = {each.name: each.tensor_type.name for each in gguf.GGUFReader(path).tensors if len(each.shape) == 2}
    assert {*tensors.values()} <= {MIXTURES[name].usual, MIXTURES[name].finer, MIXTURES[name].ends}
    size = sum(each.n_bytes for each in gguf.GGUFReader(path).tensors)
    vocabulary = 2 * model.config.vocab_size * 256
    assert MIXTURES[name].bytes(model.num_parameters(), vocabulary, 256) == pytest.approx(size, rel=0.03)


def test_what_a_model_feels_most_is_stored_finer(tmp_path):
    model = made(configured("llama", **WIDE))
    write_gguf(model, byte_level(), tmp_path / "a.gguf", "q4_k_m", "a")
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    finer = [layer for layer in range(8) if kinds[f"blk.{layer}.attn_v.weight"] == "Q6_K"]
    assert finer == [layer for layer in range(8) if kinds[f"blk.{layer}.ffn_down.weight"] == "Q6_K"] == [0, 3, 6, 7]
    assert kinds["blk.1.attn_q.weight"] == kinds["blk.1.attn_v.weight"] == "Q4_K"
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "Q6_K"


def test_rows_that_are_no_multiple_of_a_block_are_stored_narrower(tmp_path):
    model = made(configured("llama"))
    write_gguf(model, byte_level(), tmp_path / "a.gguf", "q4_k_m", "a")
    kinds = {each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds == {"F32", "Q5_0", "Q8_0"}


def test_sizes_are_those_of_the_package():
    for kind, bits in BITS.items():
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        assert bits == size * 8 / block
    assert {*NARROW, *NARROW.values()} <= {*KINDS, "Q8_0"}
    assert not {*MIXTURES} & {*TYPES}
