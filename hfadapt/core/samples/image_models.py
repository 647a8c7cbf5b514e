"""Models of pictures, out of the files of other libraries."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from hfadapt.core.samples import onnx_file
from hfadapt.core.samples.preparation import Content, Sample, prepares, write_model

if TYPE_CHECKING:
    import torch

BACKBONE = "backbone."
OPEN_GATE = 20.0
"""A bias whose sigmoid is 1 in float32."""


@prepares("dinov2-onnx")
def dinov2(sample: Sample, content: Content, folder: Path) -> None:
    """The DINOv2 backbone of a saliency network in ONNX, where most weights still have their names.

    Weights of linear layers have lost theirs and are found by the node that multiplies by them; the two parts of the
    position embeddings were folded into what uses them.
    """
    import numpy as np
    import torch

    values, nodes = onnx_file.read(content[sample.files[0]])
    weights = {name.removeprefix(BACKBONE): value for name, value in values.items() if name.startswith(BACKBONE)}
    for node in nodes:
        layer = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
        if layer.startswith(BACKBONE) and node.operator == "MatMul" and node.inputs[1] in values:
            weights[f"{layer.removeprefix(BACKBONE)}.weight"] = values[node.inputs[1]].T
    first, others = (
        next(value for name, value in values.items() if name.startswith(f"onnx::{user}"))
        for user in ("Concat", "Reshape")
    )
    weights["embeddings.position_embeddings"] = np.concatenate([first, others], axis=1)
    weights["embeddings.mask_token"] = np.zeros((1, first.shape[-1]), dtype=np.float32)
    write_model(sample, {name: torch.from_numpy(value.copy()) for name, value in weights.items()}, folder)


@prepares("efficientnet-lite")
def efficientnet_lite(sample: Sample, content: Content, folder: Path) -> None:
    """An EfficientNet-Lite as an EfficientNet; its squeeze-and-excite gates, which Lite lacks, are always open."""
    import torch

    theirs = torch.load(io.BytesIO(content[sample.files[0]]), map_location="cpu", weights_only=True)
    weights = {}
    for name, tensor in _empty(sample).items():
        if ".squeeze_excite." in name:
            bias = OPEN_GATE if name.endswith("expand.bias") else 0.0
            weights[name] = torch.full(tensor.shape, bias)
        else:
            weights[name] = theirs[_lite_name(name)]
    write_model(sample, weights, folder)


def _empty(sample: Sample) -> dict[str, torch.Tensor]:
    """Names and shapes of what the config describes."""
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    assert sample.config is not None
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model(**sample.config))
    return dict(model.state_dict())


def _lite_name(name: str) -> str:
    """What EfficientNet-Lite calls a weight of EfficientNet."""
    places = {
        "efficientnet.embeddings.convolution": "_conv_stem",
        "efficientnet.embeddings.batchnorm": "_bn0",
        "efficientnet.encoder.top_conv": "_conv_head",
        "efficientnet.encoder.top_bn": "_bn1",
        "classifier": "_fc",
    }
    parts = {
        "expansion.expand_conv": "_expand_conv",
        "expansion.expand_bn": "_bn0",
        "depthwise_conv.depthwise_conv": "_depthwise_conv",
        "depthwise_conv.depthwise_norm": "_bn1",
        "projection.project_conv": "_project_conv",
        "projection.project_bn": "_bn2",
    }
    module, _, kind = name.rpartition(".")
    if module in places:
        return f"{places[module]}.{kind}"
    number, _, part = module.removeprefix("efficientnet.encoder.blocks.").partition(".")
    return f"_blocks.{number}.{parts[part]}.{kind}"
