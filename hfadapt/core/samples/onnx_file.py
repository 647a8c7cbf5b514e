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
TENSOR_DIMENSIONS, TENSOR_TYPE, TENSOR_NAME, TENSOR_BYTES = 1, 2, 8, 9
FLOAT32 = 1

VARINT, EIGHT_BYTES, SIZED, FOUR_BYTES = 0, 1, 2, 5
"""How a protobuf field is written."""


@dataclass(frozen=True)
class Node:
    """One operation: its name, its operator such as `MatMul`, and the names of its inputs."""

    name: str
    operator: str
    inputs: tuple[str, ...]


def read(content: bytes) -> tuple[dict[str, np.ndarray], list[Node]]:
    """The float32 weights by name, each of its own shape and read-only, and all nodes of the graph."""
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
    """Name and values of a tensor; nothing for one that is not of float32."""
    import numpy as np

    shape: list[int] = []
    for number, value in _fields(message):
        if number == TENSOR_TYPE and value != FLOAT32:
            return
        if number == TENSOR_DIMENSIONS:
            shape += [value] if isinstance(value, int) else _varints(value)
    (data,), (name,) = _messages(message, TENSOR_BYTES), _texts(message, TENSOR_NAME)
    yield name, np.frombuffer(data, "<f4").reshape(shape)


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
