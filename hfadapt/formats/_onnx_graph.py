"""ONNX graphs: made, rounded, stripped, looked at, and opened in ONNX Runtime."""

from __future__ import annotations

import collections
import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RunError
from hfadapt.formats._single_file import quietly

if TYPE_CHECKING:
    import numpy as np

NUMPY = {"tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(float)": "float32", "tensor(bool)": "bool"}
DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Where operators of ONNX Runtime come from: ONNX itself, and its own."""
ROUNDED = ("MatMul", "Gather")
"""What is rounded as it comes: matrices, and embeddings, which are most of a small model."""
MOST_DENORMAL = 0.01
SUFFIX = "_quantized"


def exported(model: Any, inputs: dict[str, Any], shapes: Mapping[str, Any], outputs: Sequence[str]) -> Any:
    """The graph of a model as an `onnx.ModelProto`.

    Args:
        inputs: An example: tensors, and other arguments, which become part of the graph.
        shapes: For each input the names of its free axes, by number.
        outputs: Those that are kept, in their order.
    """
    import onnx_ir
    import torch
    from onnx_ir.passes.common import RemoveUnusedNodesPass
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    free: dict[str, Any] = {}
    axes = {
        name: axes and {axis: free.setdefault(each, torch.export.Dim.DYNAMIC) for axis, each in axes.items()}
        for name, axes in shapes.items()
    }
    with quietly(), torch.no_grad():
        made = OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic_shapes=axes))
        program = made.program
        made_outputs = {each.name: each for each in program.graph.outputs}
        if lacking := [name for name in outputs if name not in made_outputs]:
            raise ValueError(f"the graph has no output {', '.join(lacking)}, but {', '.join(made_outputs)}")
        program.graph.outputs[:] = [made_outputs[name] for name in outputs]
        RemoveUnusedNodesPass()(program)
        proto = onnx_ir.to_proto(program)
    _name_axes(proto, shapes)
    return proto


def _name_axes(proto: Any, shapes: Mapping[str, Any]) -> None:
    """Gives free axes the names that were said; the exporter counts them."""
    renamed: dict[str, str] = {}
    for each in proto.graph.input:
        for axis, name in (shapes.get(each.name) or {}).items():
            renamed[each.type.tensor_type.shape.dim[axis].dim_param] = name
    for each in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for size in each.type.tensor_type.shape.dim:
            if size.dim_param in renamed:
                size.dim_param = renamed[size.dim_param]


def save(proto: Any, path: Path, about: Mapping[str, str]) -> None:
    """Writes a graph without where it came from, and with what it says of itself."""
    import onnx

    import hfadapt

    proto.producer_name, proto.producer_version = "hfadapt", hfadapt.__version__
    proto.doc_string = proto.graph.doc_string = ""
    for part in (proto.graph, *proto.graph.node, *proto.graph.initializer, *proto.graph.value_info):
        part.doc_string = ""
        with contextlib.suppress(AttributeError):
            del part.metadata_props[:]
    for each in (*proto.graph.input, *proto.graph.output):
        del each.metadata_props[:]
    onnx.helper.set_model_props(proto, dict(about))
    path.write_bytes(proto.SerializeToString())


def quantise(
    proto: Any, path: Path, about: Mapping[str, str], rows: Sequence[Mapping[str, Any]] | None, *, reduce_range: bool
) -> None:
    """Rounds a graph to 8 bits and writes it.

    Args:
        rows: Inputs from which the ranges of activations are learned; without them these are taken as they come.
        reduce_range: Weights of 7 bits, for processors on which the sums of full ones overflow.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(CalibrationDataReader):
        """One row after the other."""

        def __init__(self) -> None:
            self.left = iter(rows or ())

        def get_next(self) -> dict[str, np.ndarray] | None:
            found = next(self.left, None)
            return None if found is None else {name: found[name].numpy() for name in names}

    names = [each.name for each in proto.graph.input]
    with tempfile.TemporaryDirectory() as place, quietly():
        plain, ready, rounded = (Path(place) / f"{name}.onnx" for name in ("plain", "ready", "rounded"))
        save(proto, plain, {})
        if rows is None:
            _without_old_shapes(plain)
            quantize_dynamic(
                plain, rounded, op_types_to_quantize=list(ROUNDED), per_channel=True, reduce_range=reduce_range,
                weight_type=QuantType.QInt8,
            )  # fmt: skip
        else:
            quant_pre_process(plain, ready, skip_symbolic_shape=True)
            quantize_static(
                ready, rounded, Rows(), quant_format=QuantFormat.QDQ, per_channel=True, reduce_range=reduce_range,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        save(onnx.load(rounded), path, about)


def _without_old_shapes(path: Path) -> None:
    """Rounding turns some matrices round, and trips over the shapes that are known of them."""
    import onnx

    proto = onnx.load(path)
    weights = {each.name for each in proto.graph.initializer}
    kept = [each for each in proto.graph.value_info if each.name not in weights]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    onnx.save(proto, path)


# --- running ---------------------------------------------------------------------------------------------------------


def session(path: Path, threads: int) -> Any:
    """A session of ONNX Runtime on the CPU.

    Raises:
        RunError: it refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # Of pybind, with no base class of their own.
        said = " ".join(str(error).replace(str(path), path.name).split())[:300]
        raise RunError("ONNX Runtime cannot open the file", place=path.name, got=said) from None


def run(session: Any, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of one batch. Raises RunError where ONNX Runtime does not take it."""
    try:
        found: list[np.ndarray] = session.run(None, dict(arrays))
    except Exception as error:
        # As of `session`.
        said = " ".join(str(error).split())[:300]
        raise RunError("ONNX Runtime does not take these rows", place="model.onnx", got=said) from None
    return found


# --- looking ---------------------------------------------------------------------------------------------------------


def words(path: Path) -> str:
    """All that is readable in a file: names, metadata, comments."""
    import onnx

    proto = onnx.load(path)
    found = [proto.producer_name, proto.domain, proto.doc_string, proto.graph.name, proto.graph.doc_string]
    for node in proto.graph.node:
        found += [node.name, node.doc_string, *node.input, *node.output]
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.initializer):
        found += [f"{each.key}: {each.value}" for each in part.metadata_props]
    found += [each.name for each in (*proto.graph.initializer, *proto.graph.input, *proto.graph.output)]
    return "\n".join(dict.fromkeys(found))


def about(path: Path) -> dict[str, str]:
    """What a file says of itself, by name."""
    import onnx

    return {each.key: each.value for each in onnx.load(path, load_external_data=False).metadata_props}


def operators(path: Path) -> dict[str, int]:
    """How often each operator stands in a graph, the most frequent first."""
    import onnx

    proto = onnx.load(path, load_external_data=False)
    names = (f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in proto.graph.node)
    return dict(collections.Counter(names).most_common())


def faults(path: Path, model: Any, places: Sequence[str]) -> Iterator[str]:
    """What is wrong with a file without running it.

    Args:
        model: Of torch, on the CPU; each matrix of the file has to be one of its.
        places: Folders that the file must not name.
    """
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(path)
    for node in proto.graph.node:
        if node.domain not in DOMAINS:
            yield f"the operator {node.domain}.{node.op_type} is unknown to ONNX Runtime"
    text = words(path)
    if any(place in text for place in places if len(place) > 4) or re.search(r'File "[^"]+", line', text):
        yield "its metadata names folders of this machine"
    values = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    yield from _bad_numbers(values)
    yield from _foreign_matrices(values, model)
    yield from _other_biases(values, model)


def _bad_numbers(values: Mapping[str, np.ndarray]) -> Iterator[str]:
    """NaN, infinities, and numbers so small that processors compute with them slowly."""
    import numpy as np

    small = total = 0
    for name, value in values.items():
        if value.dtype.kind != "f":
            continue
        if not np.isfinite(value).all():
            # A mask is filled with minus infinity, which is one number.
            if value.size > 1 or np.isnan(value).any():
                yield f"the weights of {name} hold NaN or Inf"
        else:
            size = np.abs(value)
            small += int(((size > 0) & (size < np.finfo(value.dtype).tiny)).sum())
            total += value.size
    if small > MOST_DENORMAL * max(total, 1):
        yield f"{small:,} of {total:,} weights are denormal numbers"


def _foreign_matrices(values: Mapping[str, np.ndarray], model: Any) -> Iterator[str]:
    """Matrices that are none of the model's: not within one step of rounding, or clipped."""
    import numpy as np

    own: dict[tuple[int, ...], list[np.ndarray]] = {}
    for tensor in model.state_dict().values():
        if tensor.ndim == 2 and min(tensor.shape) > 1:
            array = tensor.float().cpu().numpy()
            for each in (array, array.T):
                own.setdefault(each.shape, []).append(each)
    for name, value in values.items():
        if value.ndim != 2 or value.shape not in own:
            continue
        ways: list[tuple[Any, Any]] = [(value, 1e-6)]
        if name.endswith(SUFFIX):
            plain = name.removesuffix(SUFFIX)
            ways = list(_unrounded(value, values[f"{plain}_scale"], values[f"{plain}_zero_point"]))
        elif value.dtype.kind != "f":
            continue
        steps = min(float((np.abs(read - each) / step).max()) for read, step in ways for each in own[value.shape])
        if not steps <= 1.01:
            yield f"the matrix {name} is none of the model's: the nearest one is {steps:.3g} steps of rounding away"


def _other_biases(values: Mapping[str, np.ndarray], model: Any) -> Iterator[str]:
    """Biases of linear layers that are not those of their names; rounding leaves them in 32 bits."""
    import numpy as np

    own = model.state_dict()
    for name, value in values.items():
        plain = name.removesuffix(SUFFIX)
        weight = own.get(plain.removesuffix("bias") + "weight")
        if not plain.endswith(".bias") or weight is None or weight.ndim != 2 or plain not in own:
            continue
        read, step = (value * values[f"{name}_scale"], values[f"{name}_scale"]) if plain != name else (value, 1e-6)
        expected = own[plain].float().cpu().numpy()
        if read.shape != expected.shape or not float((np.abs(read - expected) / step).max()) <= 1.01:
            yield f"the bias {plain} is not the model's"


def _unrounded(value: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What a rounded matrix may stand for, and the size of a step: its scale is one, or of rows, or of columns."""
    import numpy as np

    for axis in (0, 1) if scale.ndim else (None,):
        if axis is None or value.shape[axis] == scale.size:
            step, start = (each if axis is None else np.expand_dims(each, 1 - axis) for each in (scale, zero))
            yield (value.astype(np.float32) - start.astype(np.float32)) * step, step
