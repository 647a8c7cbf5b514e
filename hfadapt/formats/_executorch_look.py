"""What stands in a .pte file: its operators and weights, its own and those of what XNNPACK computes."""

from __future__ import annotations

import collections
import functools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfadapt.core.errors import RunError
from hfadapt.formats import _weights
from hfadapt.formats._executorch_file import library, words
from hfadapt.formats._weights import Weights

if TYPE_CHECKING:
    import numpy as np

TABLE = "quantized_decomposed::embedding_byte"
"""The operator whose first inputs are a table in 8 bits and its steps."""
NUMBERS = {1: "i1", 3: "i4", 5: "f2", 6: "f4"}
"""numpy's types by torch's scalar types, of what may be a weight."""
XNNPACK_NUMBERS = {
    "xnn_datatype_fp32": "f4",
    "xnn_datatype_fp16": "f2",
    "xnn_datatype_qint8": "i1",
    "xnn_datatype_qcint8": "i1",
    "xnn_datatype_qint32": "i4",
    "xnn_datatype_qcint32": "i4",
}
HEADER_BYTES = 30
NO_JSON, PYTHON = re.compile(r"(?<=[ :\[])(?:inf|nan)\b|(?<=-)inf\b"), {"inf": "Infinity", "nan": "NaN"}
"""Numbers as that compiler writes them, and as Python reads them."""


@dataclass(frozen=True)
class Parts:
    """A file, read.

    Args:
        plan: What is run, as ExecuTorch's schema has it.
        constants: Buffers of numbers that its own operators read.
        named: Buffers of numbers that XNNPACK reads, by name.
        graphs: What XNNPACK computes, in its schema as JSON.
    """

    plan: Any
    constants: Sequence[bytes]
    named: Mapping[str, bytes]
    graphs: Sequence[dict[str, Any]]


@functools.lru_cache(maxsize=1)
def _parts(path: Path, changed: int) -> Parts:
    try:
        found = library("exir._serialize._program").deserialize_pte_binary(path.read_bytes())
        program = found.program
        (plan,) = [each for each in program.execution_plan if each.name == "forward"]
        blobs = [bytes(program.backend_delegate_data[each.processed.index].data) for each in plan.delegates]
        stored = found.named_data
        named = {
            name: bytes(stored.buffers[each.buffer_index]) for name, each in (stored.pte_data if stored else {}).items()
        }
        return Parts(plan, [bytes(each.storage) for each in program.constant_buffer], named, _graphs(blobs))
    except (ValueError, IndexError, AssertionError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:300]
        raise RunError("the file is no whole ExecuTorch program", place=path.name, got=said) from None


def parts(path: Path) -> Parts:
    """A file, read once.

    Raises:
        RunError: it is not whole.
    """
    return _parts(path, path.stat().st_mtime_ns)


def _graphs(blobs: Sequence[bytes]) -> list[dict[str, Any]]:
    """XNNPACK's graphs as JSON, by the compiler of schemas that ExecuTorch has with it."""
    serialize = library("backends.xnnpack.serialization.xnnpack_graph_serialize")
    decompile = library("exir._serialize._flatbuffer")._flatc_decompile
    found = []
    with tempfile.TemporaryDirectory(prefix="hfadapt-") as made:
        schema = Path(made) / "schema.fbs"
        schema.write_bytes(serialize._get_schema_bytes())
        for at, blob in enumerate(blobs):
            head = serialize.XNNHeader.from_bytes(blob[:HEADER_BYTES])
            path = Path(made) / f"graph{at}.bin"
            path.write_bytes(blob[head.flatbuffer_offset : head.flatbuffer_offset + head.flatbuffer_size])
            decompile(made, str(schema), str(path), ["--raw-binary", "--strict-json", "--defaults-json"])
            text = path.with_suffix(".json").read_text(encoding="utf-8")
            found.append(json.loads(NO_JSON.sub(lambda match: PYTHON[match[0]], text)))
    return found


def operators(path: Path) -> dict[str, int]:
    """How often each operator stands in a file, the most frequent first."""
    found = parts(path)
    own = [
        found.plan.operators[step.op_index].name
        for chain in found.plan.chains
        for step in (each.instr_args for each in chain.instructions)
        if type(step).__name__ == "KernelCall"
    ]
    inner = [f"xnnpack::{node['xnode_union_type']}" for graph in found.graphs for node in graph["xnodes"]]
    return dict(collections.Counter([*own, *inner]).most_common())


def weights(path: Path) -> Iterator[tuple[str, Weights]]:
    """Names and values of the constant numbers of a file that are weights, rounded to integers or not."""
    found = parts(path)
    yield from _own(found)
    for at, graph in enumerate(found.graphs):
        for value in (each["xvalue_union"] for each in graph["xvalues"]):
            if (read := _inner(value, graph["constant_data"], found.named)) is not None:
                yield f"value {value.get('tensor_value', value)['id_out']} of graph {at}", read


def _own(found: Parts) -> Iterator[tuple[str, Weights]]:
    """What ExecuTorch's own operators read."""
    import numpy as np

    values = found.plan.values

    def numbers(index: int) -> np.ndarray | None:
        tensor = values[index].val
        buffer = getattr(tensor, "data_buffer_idx", 0)
        kind = NUMBERS.get(int(getattr(tensor, "scalar_type", 0)))
        if not buffer or kind is None or tensor.allocation_info is not None or not found.constants[buffer]:
            return None
        count = int(np.prod(tensor.sizes, dtype=np.int64))
        return np.frombuffer(found.constants[buffer], dtype=kind)[:count].reshape(tensor.sizes)

    told = set()
    for chain in found.plan.chains:
        for step in (each.instr_args for each in chain.instructions):
            if type(step).__name__ != "KernelCall" or found.plan.operators[step.op_index].name != TABLE:
                continue
            table, steps = (numbers(index) for index in step.args[:2])
            if table is not None and steps is not None:
                yield f"value {step.args[0]}", Weights(table.astype(np.float32) * steps[:, None], steps[:, None])
                told |= {*step.args[:2]}
    for index in range(len(values)):
        plain = None if index in told else numbers(index)
        if plain is not None and plain.dtype.kind == "f":
            yield f"value {index}", Weights(plain.astype(np.float32), np.zeros(1, dtype=np.float32))


def _inner(value: Mapping[str, Any], data: Sequence[Mapping[str, Any]], named: Mapping[str, bytes]) -> Weights | None:
    """A value of an XNNPACK graph, where it is a constant."""
    import numpy as np

    tensor = value.get("tensor_value", value)
    kind = XNNPACK_NUMBERS.get(tensor["datatype"])
    if kind is None or not tensor["constant_buffer_idx"]:
        return None

    def buffer(index: int, kind: str, count: int) -> np.ndarray:
        return np.frombuffer(named[data[index]["named_key"]], dtype=kind)[:count]

    sizes = tensor["dims"]
    numbers = buffer(tensor["constant_buffer_idx"], kind, int(np.prod(sizes, dtype=np.int64))).reshape(sizes)
    if numbers.dtype.kind == "f":
        return Weights(numbers.astype(np.float32), np.zeros(1, dtype=np.float32))
    rounding = value.get("quant_params", {})
    steps, zero = np.asarray(rounding.get("scale", 1.0), dtype=np.float32), rounding.get("zero_point", 0)
    if rounding.get("scale_buffer_idx", -1) > 0:
        steps = buffer(rounding["scale_buffer_idx"], "f4", rounding["num_scales"])
    if steps.size > 1:
        wide = [1] * numbers.ndim
        wide[rounding["channel_dim"]] = -1
        steps = steps.reshape(wide)
    return Weights((numbers.astype(np.float32) - zero) * steps, steps.reshape(steps.shape or (1,)))


def faults(path: Path, model: Any, places: Sequence[str]) -> Iterator[str]:
    """What is wrong with a file without running it.

    Args:
        model: Of torch, on the CPU; each matrix of the file has to be one of its.
        places: Folders that the file must not name.
    """
    text = words(path)
    if any(place in text for place in places if len(place) > 4):
        yield "its metadata names folders of this machine"
    yield from _weights.faults(weights(path), model)
