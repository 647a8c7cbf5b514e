"""Speech models, out of the files of other libraries."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RunError
from hfadapt.core.samples.preparation import Content, Sample, prepares, write_json, write_model

if TYPE_CHECKING:
    import numpy as np

CT2_TYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
ATTENTION = {"self_attention": "self_attn", "attention": "encoder_attn"}
"""CTranslate2's name of an attention in a layer, and transformers'."""


@prepares("whisper-ctranslate2")
def whisper(sample: Sample, content: Content, folder: Path) -> None:
    """A Whisper of CTranslate2, with position embeddings for as many frames as the catalogue's config says."""
    import torch

    assert sample.config is not None
    files = {Path(name).name: data for name, data in content.items()}
    values = dict(_ct2_values(files["model.bin"]))
    weights = dict(_whisper_weights(values, sample.config))
    positions = "model.encoder.embed_positions.weight"
    weights[positions] = weights[positions][: sample.config["max_source_positions"]]
    write_model(sample, {name: torch.from_numpy(value.astype("f4")) for name, value in weights.items()}, folder)
    tokens = {token["content"]: token["id"] for token in json.loads(files["tokenizer.json"])["added_tokens"]}
    generation = _generation(sample.config, json.loads(files["config.json"]), tokens["<|notimestamps|>"])
    write_json(folder / "generation_config.json", generation)
    (folder / "tokenizer.json").write_bytes(files["tokenizer.json"])
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer"})


def _generation(config: dict[str, Any], theirs: dict[str, Any], no_timestamps: int) -> dict[str, Any]:
    """How an English Whisper writes: no times, no token that stands for no word."""
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return {
        **{name: config[name] for name in tokens},
        "alignment_heads": theirs["alignment_heads"],
        "begin_suppress_tokens": theirs["suppress_ids_begin"],
        "is_multilingual": False,
        "max_length": config["max_target_positions"],
        "no_timestamps_token_id": no_timestamps,
        "suppress_tokens": theirs["suppress_ids"],
    }


def _whisper_weights(values: dict[str, np.ndarray], config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values as transformers has them; the output layer is the embedding of tokens."""
    for side in ("encoder", "decoder"):
        for i in range(config[f"{side}_layers"]):
            ours, theirs = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            for attention, name in ATTENTION.items():
                if f"{theirs}/{attention}/layer_norm/gamma" in values:
                    yield from _norm(values, f"{ours}.{name}_layer_norm", f"{theirs}/{attention}/layer_norm")
                    yield from _attention(values, f"{ours}.{name}", f"{theirs}/{attention}")
            yield from _norm(values, f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
            for j in (0, 1):
                yield from _weight_and_bias(values, f"{ours}.fc{j + 1}", f"{theirs}/ffn/linear_{j}")
        yield from _norm(values, f"model.{side}.layer_norm", f"{side}/layer_norm")
        yield f"model.{side}.embed_positions.weight", values[f"{side}/position_encodings/encodings"]
    for name in ("conv1", "conv2"):
        yield from _weight_and_bias(values, f"model.encoder.{name}", f"encoder/{name}")
    yield "model.decoder.embed_tokens.weight", values["decoder/embeddings/weight"]


def _attention(values: dict[str, np.ndarray], ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
    """Query, key and value lie one after the other, in one layer or two; keys have no bias that counts."""
    import numpy as np

    *inner, last = sorted(name for name in values if name.startswith(f"{theirs}/linear_") and name.endswith("/weight"))
    weight = np.concatenate([values[name] for name in inner])
    bias = np.concatenate([values[name.replace("/weight", "/bias")] for name in inner])
    width = weight.shape[1]
    for i, part in enumerate("qkv"):
        yield f"{ours}.{part}_proj.weight", weight[i * width : (i + 1) * width]
        if part != "k":
            yield f"{ours}.{part}_proj.bias", bias[i * width : (i + 1) * width]
    yield from _weight_and_bias(values, f"{ours}.out_proj", last.removesuffix("/weight"))


def _norm(values: dict[str, np.ndarray], ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{ours}.weight", values[f"{theirs}/gamma"]
    yield f"{ours}.bias", values[f"{theirs}/beta"]


def _weight_and_bias(values: dict[str, np.ndarray], ours: str, theirs: str) -> Iterator[tuple[str, np.ndarray]]:
    for kind in ("weight", "bias"):
        yield f"{ours}.{kind}", values[f"{theirs}/{kind}"]


def _ct2_values(content: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of a CTranslate2 file: of each its name, shape, type and bytes."""
    import numpy as np

    file = io.BytesIO(content)

    def numbers(form: str) -> tuple[int, ...]:
        return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))

    def text() -> str:
        return file.read(numbers("H")[0]).rstrip(b"\0").decode()

    numbers("I")
    model = text()
    if model != "WhisperSpec":
        raise RunError("the file holds another model", got=model, allowed="WhisperSpec")
    _, count = numbers("2I")
    for _ in range(count):
        name = text()
        shape = numbers(f"{numbers('B')[0]}I")
        kind, size = numbers("BI")
        yield name, np.frombuffer(file.read(size), CT2_TYPES[kind]).reshape(shape)
