"""Models of texts, out of the files of other libraries."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hfadapt.core.samples import onnx_file
from hfadapt.core.samples.preparation import Content, Sample, prepares, write_json

if TYPE_CHECKING:
    import numpy as np

MIDDLE = 8
"""What stands for 0 among the numbers of 4 bits."""


@prepares("bert-q4-onnx")
def bert(sample: Sample, content: Content, folder: Path) -> None:
    """A BERT with its trained head in ONNX, whose linear layers are stored in 4 bits and embeddings in 8.

    Layers have lost the names of their weights and are found by the node that multiplies by them; what is not rounded
    still has its name. The files of its tokenizer are beside it, and are kept as they are.
    """
    import torch
    from safetensors.torch import save_file

    model = next(name for name in content if name.endswith(".onnx"))
    values, nodes = onnx_file.read(content[model])
    weights = {name: value for name, value in values.items() if name.endswith((".weight", ".bias"))}
    for node in nodes:
        if node.operator == "MatMulNBits":
            layer = node.name.strip("/").replace("/", ".").removesuffix(".MatMul_Q4")
            weights[f"{layer}.weight"] = _of_four_bits(*(values[name] for name in node.inputs[1:3]))
        elif node.operator == "DequantizeLinear":
            scale, middle = (values[name] for name in node.inputs[1:3])
            name = node.inputs[1].removesuffix("_scale")
            weights[name] = (values[f"{name}_quantized"].astype("float32") - middle) * scale
    tensors = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = sample.config or {}
    numbers = {label: int(number) for number, label in config.get("id2label", {}).items()}
    write_json(folder / "config.json", {**config, "label2id": numbers})
    for name in content.keys() - {model}:
        (folder / PurePosixPath(name).name).write_bytes(content[name])


def _of_four_bits(stored: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(out, in) in float32 of bytes (out, blocks, bytes) that hold two numbers each, the lower first, and a scale for
    each block."""
    import numpy as np

    outputs, blocks = stored.shape[:2]
    numbers = np.stack([stored & 15, stored >> 4], axis=-1).reshape(outputs, blocks, -1).astype(np.float32)
    return np.asarray((numbers - MIDDLE) * scales.reshape(outputs, blocks, 1)).reshape(outputs, -1)
