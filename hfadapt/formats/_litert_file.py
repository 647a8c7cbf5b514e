"""A .tflite file, read: what it says of itself, its operators and weights, and its answers in LiteRT's interpreter."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RunError

if TYPE_CHECKING:
    import numpy as np

MOST_DENORMAL = 0.01
SAME, MOST_STEPS = 1e-5, 1.01
"""What float32 may differ by, of the largest, and how many steps what is rounded may."""
FITTED = 0.5
"""By how many steps more a scale that is fitted to rounded numbers may be wrong."""
CUSTOM = "CUSTOM"
"""What operators that are no part of LiteRT are called in a file."""


@dataclass(frozen=True)
class Weights:
    """Numbers that are part of a file.

    Args:
        values: As the file means them: unpacked where they are rounded.
        step: What they are rounded to, as wide as `values` or 1; 0 where they are not rounded.
    """

    values: np.ndarray
    step: np.ndarray


@dataclass(frozen=True)
class Opened:
    """A file in the interpreter.

    Args:
        run: One batch of the file's shape, arrays in and out by name.
        inputs: Names of what it takes, with numpy's name of their type.
        shapes: The shapes of these.
        answers: The shapes of what it gives, by name.
    """

    run: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    inputs: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    answers: Mapping[str, tuple[int, ...]]


def opened(path: Path, threads: int) -> Opened:
    """A file in LiteRT's interpreter on the CPU.

    Raises:
        RunError: it refuses the file.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        (signature,) = interpreter.get_signature_list()
        runner = interpreter.get_signature_runner(signature)
    except (ValueError, RuntimeError) as error:
        said = " ".join(str(error).replace(str(path), path.name).split())[:300]
        raise RunError("LiteRT cannot open the file", place=path.name, got=said) from None
    details = runner.get_input_details()

    def run(arrays: Mapping[str, Any]) -> dict[str, Any]:
        # The next call overwrites what this one answers.
        return {name: value.copy() for name, value in runner(**arrays).items()}

    return Opened(
        run,
        {name: np.dtype(each["dtype"]).name for name, each in details.items()},
        _shapes(details),
        _shapes(runner.get_output_details()),
    )


def _shapes(details: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(int(size) for size in each["shape"]) for name, each in details.items()}


def _read(path: Path) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def about(path: Path) -> dict[str, str]:
    """The texts in a file's metadata, by name."""
    model = _read(path)
    return {
        entry.name.decode(): bytes(model.buffers[entry.buffer].data).decode(errors="replace").rstrip("\0")
        for entry in model.metadata or ()
    }


def operators(path: Path) -> dict[str, int]:
    """How often each operator stands in a file, by its name in LiteRT, the most frequent first."""
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = _read(path)
    codes = [max(each.builtinCode, each.deprecatedBuiltinCode) for each in model.operatorCodes]
    found = (names[codes[each.opcodeIndex]] for graph in model.subgraphs for each in graph.operators)
    return dict(collections.Counter(found).most_common())


def words(path: Path) -> str:
    """All that is readable in a file: names, description, metadata."""
    model = _read(path)
    found = [(model.description or b"").decode(errors="replace"), *about(path).values()]
    for graph in model.subgraphs:
        found += [(each.name or b"").decode(errors="replace") for each in (graph, *graph.tensors)]
    for signature in model.signatureDefs or ():
        found += [each.name.decode(errors="replace") for each in (*signature.inputs, *signature.outputs)]
    return "\n".join(dict.fromkeys(found))


def weights(path: Path) -> Iterator[tuple[str, Weights]]:
    """Names and values of the constant numbers of a file that are weights, rounded to integers or not."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    types = schema.TensorType
    kinds = {types.FLOAT32: "f4", types.FLOAT16: "f2", types.INT8: "i1", types.INT32: "i4"}
    model = _read(path)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data, kind = model.buffers[tensor.buffer].data, kinds.get(tensor.type)
            if data is None or kind is None or not len(data):
                continue
            shape = tuple(tensor.shape) if tensor.shape is not None else ()
            values = np.frombuffer(bytes(data), dtype=np.dtype(kind)).reshape(shape)
            step: np.ndarray = np.zeros(1, dtype=np.float32)
            quantised = tensor.quantization
            if values.dtype.kind == "i":
                if quantised is None or quantised.scale is None or not len(quantised.scale):
                    continue
                wide = [1] * values.ndim
                if len(quantised.scale) > 1:
                    wide[quantised.quantizedDimension] = -1
                step = np.asarray(quantised.scale, dtype=np.float32).reshape(wide)
                zero = np.asarray(quantised.zeroPoint, dtype=np.float32).reshape(wide)
                values = (values.astype(np.float32) - zero) * step
            yield tensor.name.decode(errors="replace"), Weights(values, step)


def faults(path: Path, model: Any, places: Sequence[str]) -> Iterator[str]:
    """What is wrong with a file without running it.

    Args:
        model: Of torch; each matrix of the file has to be one of its.
        places: Folders that the file must not name.
    """
    import numpy as np

    if number := operators(path).get(CUSTOM):
        yield f"{number} of its operators are no part of LiteRT"
    text = words(path)
    if any(place in text for place in places if len(place) > 4):
        yield "its metadata names folders of this machine"
    own = [tensor.double().cpu().numpy() for tensor in model.state_dict().values() if tensor.ndim == 2]
    small = total = 0
    foreign = {}
    for name, each in weights(path):
        if not np.isfinite(each.values).all():
            # A mask may be filled with minus infinity, which is one number.
            if each.values.size > 1 or np.isnan(each.values).any():
                yield f"the weights of {_short(name)} hold NaN or Inf"
            continue
        size = np.abs(each.values)
        small += int(((size > 0) & (size < np.finfo(np.float32).tiny)).sum())
        total += size.size
        if (steps := _away(each, own)) > MOST_STEPS:
            foreign[name] = steps
    if foreign:
        name, steps = max(foreign.items(), key=lambda found: found[1])
        yield (
            f"{len(foreign)} of its matrices are none of the model's: the nearest one to {_short(name)} is {steps:.3g} "
            "steps of rounding away"
        )
    if small > MOST_DENORMAL * max(total, 1):
        yield f"{small:,} of {total:,} weights are denormal numbers"


def other_head(path: Path, model: Any) -> Iterator[str]:
    """Whether the bias of a model's last linear layer, which rounding leaves in 32 bits, is not in the file."""
    import numpy as np

    own = model.state_dict()
    weight = {name: own.get(f"{name[:-4]}weight") for name in own if name.endswith(".bias")}
    biases = [name for name, each in weight.items() if each is not None and each.ndim == 2]
    bias = own[biases[-1]].double().cpu().numpy() if biases else np.zeros(1)
    least = SAME * max(1.0, float(np.abs(bias).max()))
    steps = [
        float((np.abs(each.values - bias) / np.maximum(each.step, least)).max())
        for _, each in weights(path)
        if each.values.shape == bias.shape
    ]
    if bias.any() and not min(steps, default=np.inf) <= MOST_STEPS:
        yield f"the bias {biases[-1]} is not in the file"


def _short(name: str) -> str:
    """The last module in a name, which the converter makes of all that it has put together."""
    return name.partition(";")[0].rpartition("/")[2] or name[:80]


def _away(each: Weights, own: Sequence[np.ndarray]) -> float:
    """The largest difference from the nearest matrix of a model, in steps of rounding; 0 where none has its shape.

    The converter multiplies a layer by the scales of the norm before it, one for each input: these are left out.
    """
    import numpy as np

    step = np.maximum(each.step, SAME * max(1.0, float(np.abs(each.values).max())))
    values, found = each.values / step, []
    for matrix, axis in ((matrix, axis) for one in own for matrix, axis in ((one, 0), (one.T, 1))):
        if matrix.shape == values.shape:
            found.append(float(np.abs(matrix / step - values).max()))
            found.append(float(np.abs(_scaled(matrix / step, values, axis) - values).max()) - FITTED)
    return min(found, default=0.0)


def _scaled(matrix: np.ndarray, like: np.ndarray, axis: int) -> np.ndarray:
    """A matrix with each of its inputs scaled as in another one, both in steps; its outputs lie along `axis`."""
    import numpy as np

    size = (matrix**2).sum(axis, keepdims=True)
    factor = (matrix * like).sum(axis, keepdims=True) / np.maximum(size, np.finfo(np.float64).tiny)
    return np.asarray(matrix * factor)
