"""Names, weights and nodes of an ONNX file: the few fields of its protobuf messages that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import numpy as np

# Field numbers of onnx.proto.
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_INPUT, NODE_NAME, NODE_OPERATOR = 1, 3, 4
TENSOR_DIMENSIONS, TENSOR_TYPE, TENSOR_FLOATS, TENSOR_INTEGERS, TENSOR_NAME, TENSOR_BYTES = 1, 2, 4, 5, 8, 9
TYPES = {1: "<f4", 2: "u1", 3: "i1"}
"""Of numpy, by ONNX's number of it."""

VARINT, EIGHT_BYTES, SIZED, FOUR_BYTES = 0, 1, 2, 5
"""How a protobuf field is written."""


@dataclass(frozen=True)
class Node:
    """One operation: its name, its operator such as `MatMul`, and the names of its inputs."""

    name: str
    operator: str
    inputs: tuple[str, ...]


def read(content: bytes) -> tuple[dict[str, np.ndarray], list[Node]]:
    """The weights of float32 and of 8 bits by name, each of its own shape and read-only, and all nodes of the graph."""
    weights: dict[str, np.ndarray] = {}
    nodes: list[Node] = []
    for graph in _messages(memoryview(content), MODEL_GRAPH):
        nodes += [_node(node) for node in _messages(graph, GRAPH_NODE)]
        weights.update(each for tensor in _messages(graph, GRAPH_INITIALIZER) for each in _weight(tensor))
    return weights, nodes


def _node(message: memoryview) -> Node:
    (name,), (operator,) = (_texts(message, field) or [""] for field in (NODE_NAME, NODE_OPERATOR))
    return Node(name, operator, tuple(_texts(message, NODE_INPUT)))


def _weight(message: memoryview) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values of a tensor; nothing for one of another type."""
    import numpy as np

    shape: list[int] = []
    kind, integers = "", list[int]()
    for number, value in _fields(message):
        if number == TENSOR_TYPE:
            kind = TYPES.get(value, "") if isinstance(value, int) else ""
        if number == TENSOR_DIMENSIONS:
            shape += [value] if isinstance(value, int) else _varints(value)
        if number == TENSOR_INTEGERS:
            integers += [value] if isinstance(value, int) else _varints(value)
    if kind:
        (name,) = _texts(message, TENSOR_NAME)
        data = b"".join([*_messages(message, TENSOR_BYTES), *_messages(message, TENSOR_FLOATS)])
        # Few values of 8 bits may stand as integers of any size.
        values = np.array(integers, dtype=kind) if integers else np.frombuffer(data, kind)
        yield name, values.reshape(shape)


def _messages(message: memoryview, wanted: int) -> list[memoryview]:
    return [cast(memoryview, value) for number, value in _fields(message) if number == wanted]


def _texts(message: memoryview, wanted: int) -> list[str]:
    return [str(value, "utf-8") for value in _messages(message, wanted)]


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or the bytes of a text, of a message or of several numbers."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == VARINT:
            number, at = _varint(message, at)
            yield key >> 3, number
            continue
        if kind == SIZED:
            size, at = _varint(message, at)
        else:
            size = {EIGHT_BYTES: 8, FOUR_BYTES: 4}[kind]
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at


def _varints(message: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        values.append(value)
    return values
