"""Models of pictures out of other libraries' files: what they compute stays the same."""

from __future__ import annotations

import io
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_sample_images import wheel
from test_samples import offer
from transformers import Dinov2Config, Dinov2Model, EfficientNetConfig, EfficientNetForImageClassification

from hfadapt.core import samples
from hfadapt.core.samples import onnx_file

PROCESSOR = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}}


def varint(value):
    made = b""
    while value > 127:
        made, value = made + bytes([value & 127 | 128]), value >> 7
    return made + bytes([value])


def field(number, value):
    """One field of a protobuf message: an integer, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name, values, packed=False):
    kind = {"float32": 1, "int64": 7}[str(values.dtype)]
    dims = field(1, b"".join(map(varint, values.shape))) if packed else b"".join(field(1, n) for n in values.shape)
    return field(5, dims + field(2, kind) + field(8, name) + field(9, values.tobytes()))


def node(name, operator, *inputs):
    return field(1, b"".join(field(1, each) for each in inputs) + field(2, "out") + field(3, name) + field(4, operator))


def onnx(*parts):
    """A model with a version, a producer and a graph, and fields of the two kinds that have a fixed size."""
    fixed = varint(15 << 3 | 5) + bytes(4) + varint(16 << 3 | 1) + bytes(8)
    return field(1, 8) + field(2, "somebody") + fixed + field(7, b"".join(parts))


def load(monkeypatch, cache_folder, model_class, content, prepare, config):
    fields = {"archive": "wheel", "files": ["p/model"], "prepare": prepare, "config": config, "processor": PROCESSOR}
    offer(monkeypatch, cache_folder, "models", "m", wheel({"p/model": content}), **fields)
    folder = samples.model_path("m")
    model, found = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    return folder, model.eval()


def spread(model):
    """Weights that all differ, so that no two can be mistaken for each other."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5) if name.endswith("running_var") else value.normal_(0.1, 0.3)
    return model.eval()


def test_names_shapes_and_nodes_of_an_onnx_file():
    first = np.arange(6, dtype="f4").reshape(2, 3)
    parts = [
        node("/a/MatMul", "MatMul", "x", "w"),
        node("", "Add", "y", "z"),
        tensor("w", first),
        tensor("v", np.arange(300, dtype="f4").reshape(1, 300, 1), packed=True),
        tensor("n", np.array([1, 2])),
        tensor("s", np.array(2.5, dtype="f4")),
    ]
    weights, nodes = onnx_file.read(onnx(*parts))
    assert nodes == [onnx_file.Node("/a/MatMul", "MatMul", ("x", "w")), onnx_file.Node("", "Add", ("y", "z"))]
    assert {name: value.shape for name, value in weights.items()} == {"w": (2, 3), "v": (1, 300, 1), "s": ()}
    assert (weights["w"] == first).all()
    assert weights["s"] == 2.5


def onnx_of(backbone):
    """As a network around it was exported: linear weights turned and nameless, position embeddings in two parts."""
    parts = [tensor("decoder.0.weight", np.ones((3, 3), dtype="f4")), tensor("onnx::Slice_9", np.array([1]))]
    parts += [
        tensor("onnx::MatMul_1", np.ones((3, 3), dtype="f4")),
        node("/decoder/MatMul", "MatMul", "x", "onnx::MatMul_1"),
    ]
    for i, (name, value) in enumerate(backbone.items()):
        values = value.numpy()
        if name == "embeddings.position_embeddings":
            parts += [tensor("onnx::Reshape_7", values[:, 1:].copy()), tensor("onnx::Concat_8", values[:, :1].copy())]
        elif name.endswith(".weight") and values.ndim == 2:
            place = "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            parts += [node(f"{place}/MatMul", "MatMul", "x", f"onnx::MatMul_1{i}")]
            parts += [tensor(f"onnx::MatMul_1{i}", values.T.copy(), packed=i % 2 == 0)]
        elif name != "embeddings.mask_token":
            parts.append(tensor(f"backbone.{name}", values))
    # Products of two results have no weight.
    parts.append(node("/backbone/encoder/layer.0/attention/MatMul", "MatMul", "q", "k"))
    return onnx(*parts)


def test_dinov2_of_an_onnx_file(cache_folder, monkeypatch, tmp_path):
    config = Dinov2Config(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=14)
    theirs = spread(Dinov2Model(config))
    theirs.save_pretrained(tmp_path)
    content = onnx_of(load_file(tmp_path / "model.safetensors"))
    folder, ours = load(monkeypatch, cache_folder, Dinov2Model, content, "dinov2-onnx", config.to_dict())
    pictures = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.equal(ours(pictures).last_hidden_state, theirs(pictures).last_hidden_state)
    assert not ours.embeddings.mask_token.any()
    assert '"BitImageProcessor"' in (folder / "preprocessor_config.json").read_text()


LITE_NAMES = {
    "efficientnet.embeddings.convolution": "_conv_stem",
    "efficientnet.embeddings.batchnorm": "_bn0",
    "efficientnet.encoder.top_conv": "_conv_head",
    "efficientnet.encoder.top_bn": "_bn1",
    "classifier": "_fc",
    "efficientnet.encoder.blocks.": "_blocks.",
    "expansion.expand_conv": "_expand_conv",
    "expansion.expand_bn": "_bn0",
    "depthwise_conv.depthwise_conv": "_depthwise_conv",
    "depthwise_conv.depthwise_norm": "_bn1",
    "projection.project_conv": "_project_conv",
    "projection.project_bn": "_bn2",
}


@pytest.fixture
def efficientnet():
    """Two stages, the first without an expansion, and its gates taken out, as in Lite."""
    stages = {"kernel_sizes": [3, 5], "in_channels": [32, 16], "out_channels": [16, 24], "strides": [1, 2]}
    stages |= {"num_block_repeats": [1, 2], "expand_ratios": [1, 6], "depthwise_padding": []}
    sizes = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280, "num_labels": 4}
    model = spread(EfficientNetForImageClassification(EfficientNetConfig(**stages, **sizes, hidden_act="relu6")))
    for block in model.efficientnet.encoder.blocks:
        block.squeeze_excite = torch.nn.Identity()
    return model


def test_efficientnet_lite_of_a_checkpoint(cache_folder, monkeypatch, efficientnet):
    checkpoint = OrderedDict()
    for name, value in efficientnet.state_dict().items():
        for ours, theirs in LITE_NAMES.items():
            name = name.replace(ours, theirs)
        checkpoint[name] = value
    file = io.BytesIO()
    torch.save(checkpoint, file)
    config = {**efficientnet.config.to_dict(), "num_labels": 4}
    _, ours = load(
        monkeypatch, cache_folder, EfficientNetForImageClassification, file.getvalue(), "efficientnet-lite", config
    )
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(pictures).logits, efficientnet(pictures).logits)
    assert ours.efficientnet.encoder.blocks[0].squeeze_excite.expand.bias[0] == 20.0


def test_a_checkpoint_that_would_run_code_is_refused(cache_folder, monkeypatch, efficientnet, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "was-here"), "w")

    file = io.BytesIO()
    torch.save({"_fc.weight": Evil()}, file)
    config = efficientnet.config.to_dict()
    with pytest.raises(Exception, match="Weights only load failed"):
        load(
            monkeypatch, cache_folder, EfficientNetForImageClassification, file.getvalue(), "efficientnet-lite", config
        )
    assert not (tmp_path / "was-here").exists()
