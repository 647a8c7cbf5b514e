"""A Whisper of CTranslate2: what it computes stays the same, for sounds as short as the catalogue says."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from test_sample_images import wheel
from test_samples import offer
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from hfadapt.core import samples
from hfadapt.core.errors import RunError

POSITIONS = 6
TOKENIZER = {"added_tokens": [{"id": 1, "content": "<|endoftext|>"}, {"id": 3, "content": "<|notimestamps|>"}]}
GENERATION = {"suppress_ids": [5], "suppress_ids_begin": [2, 1], "alignment_heads": [[0, 1]], "lang_ids": [4]}
CODES = {"float32": 0, "int8": 1, "int16": 2, "float16": 4}


def binary(values, model="WhisperSpec"):
    """A model file of CTranslate2."""

    def text(content):
        return struct.pack("<H", len(content) + 1) + content.encode() + b"\0"

    made = struct.pack("<I", 6) + text(model) + struct.pack("<II", 3, len(values))
    for name, value in values.items():
        made += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        made += struct.pack("<BI", CODES[str(value.dtype)], value.nbytes) + value.tobytes()
    return made


def ct2(model, config):
    """The model as CTranslate2 lays it out: query, key and value in one layer, or the query in one of its own."""
    ours, made = {name: value.numpy() for name, value in model.state_dict().items()}, {}

    def linear(theirs, *names):
        weights = [ours[f"{name}.weight"] for name in names]
        biases = [ours.get(f"{name}.bias", np.zeros(len(w), "f4")) for name, w in zip(names, weights, strict=True)]
        made[f"{theirs}/weight"], made[f"{theirs}/bias"] = np.concatenate(weights), np.concatenate(biases)

    def norm(theirs, name):
        made[f"{theirs}/gamma"], made[f"{theirs}/beta"] = ours[f"{name}.weight"], ours[f"{name}.bias"]

    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        made[f"{side}/num_heads"] = np.array(2, dtype="i2")
        made[f"{side}/position_encodings/encodings"] = ours[f"model.{side}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(layers):
            place, name = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            norm(f"{place}/self_attention/layer_norm", f"{name}.self_attn_layer_norm")
            linear(f"{place}/self_attention/linear_0", *(f"{name}.self_attn.{part}_proj" for part in "qkv"))
            linear(f"{place}/self_attention/linear_1", f"{name}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{place}/attention/layer_norm", f"{name}.encoder_attn_layer_norm")
                linear(f"{place}/attention/linear_0", f"{name}.encoder_attn.q_proj")
                linear(f"{place}/attention/linear_1", *(f"{name}.encoder_attn.{part}_proj" for part in "kv"))
                linear(f"{place}/attention/linear_2", f"{name}.encoder_attn.out_proj")
            norm(f"{place}/ffn/layer_norm", f"{name}.final_layer_norm")
            linear(f"{place}/ffn/linear_0", f"{name}.fc1")
            linear(f"{place}/ffn/linear_1", f"{name}.fc2")
    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"model.encoder.{conv}")
    made["decoder/embeddings/weight"] = ours["model.decoder.embed_tokens.weight"]
    made["decoder/scale_embeddings"] = np.array(0, dtype="i1")
    return {name: value.astype("f2") if value.dtype == "f4" else value for name, value in made.items()}


def offered(monkeypatch, cache_folder, content, config):
    files = {"p/model.bin": content, "p/config.json": json.dumps(GENERATION), "p/tokenizer.json": json.dumps(TOKENIZER)}
    fields = {"archive": "wheel", "files": [*files], "prepare": "whisper-ctranslate2", "config": config}
    offer(monkeypatch, cache_folder, "models", "m", wheel(files), **fields, processor={"chunk_length": 1})
    return samples.model_path("m")


def test_whisper_of_ctranslate2_for_shorter_sounds(cache_folder, monkeypatch):
    tokens = {"pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 2, "decoder_start_token_id": 2}
    sizes = {"d_model": 8, "encoder_layers": 2, "decoder_layers": 1, "max_source_positions": 16, "num_mel_bins": 4}
    sizes |= {"encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "max_target_positions": 9, "vocab_size": 11}
    config = WhisperConfig(**tokens, **sizes, encoder_attention_heads=2, decoder_attention_heads=2)
    torch.manual_seed(1)
    theirs = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for value in theirs.parameters():
            # The file holds half precision.
            value.copy_(value.normal_(0.1, 0.3).half())
    shorter = {**config.to_dict(), "max_source_positions": POSITIONS}
    folder = offered(monkeypatch, cache_folder, binary(ct2(theirs, config)), shorter)
    ours, found = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    sound, said = torch.randn(2, 4, 2 * POSITIONS), torch.tensor([[2, 3, 7], [2, 3, 9]])
    positions = theirs.model.encoder.embed_positions
    positions.weight, positions.num_embeddings = torch.nn.Parameter(positions.weight[:POSITIONS]), POSITIONS
    theirs.model.encoder.max_source_positions = theirs.config.max_source_positions = POSITIONS
    with torch.no_grad():
        expected, logits = (each.eval()(input_features=sound, decoder_input_ids=said).logits for each in (theirs, ours))
    assert torch.equal(logits, expected)
    assert logits.std() > 0.1
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.no_timestamps_token_id, generation.suppress_tokens) == (3, [5])
    assert generation.max_length == 9
    assert json.loads((folder / "tokenizer.json").read_text()) == TOKENIZER
    assert json.loads((folder / "preprocessor_config.json").read_text()) == {"chunk_length": 1}


def test_a_file_of_another_model_is_refused(cache_folder, monkeypatch):
    with pytest.raises(RunError, match="holds another model") as caught:
        offered(monkeypatch, cache_folder, binary({}, "TransformerSpec"), {"max_source_positions": 1})
    assert "TransformerSpec" in str(caught.value)
