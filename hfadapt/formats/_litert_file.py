"""A .tflite file, read: what it says of itself, its operators and weights, and its answers in LiteRT's interpreter."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RunError
from hfadapt.formats import _weights
from hfadapt.formats._weights import Weights

if TYPE_CHECKING:
    import numpy as np

CUSTOM = "CUSTOM"
"""What operators that are no part of LiteRT are called in a file."""


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
    if number := operators(path).get(CUSTOM):
        yield f"{number} of its operators are no part of LiteRT"
    text = words(path)
    if any(place in text for place in places if len(place) > 4):
        yield "its metadata names folders of this machine"
    yield from _weights.faults(weights(path), model)
