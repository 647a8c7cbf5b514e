"""What Python and the C++ in csrc/ must agree on: the functions with their arguments, and the layout of what they read.

Structures mirror those of the same name in products.cpp and attention_common.h, field by field. `bind` refuses a
library whose structures have other sizes; a test compares the fields.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p

ADDRESS, SIZE, REAL, FLAG = c_void_p, c_int64, c_float, c_int


class Items(ctypes.Structure):
    """An array of structures and their number; it must outlive the call."""

    _fields_ = [("data", c_void_p), ("count", c_int64)]

    @classmethod
    def of(cls, array: ctypes.Array) -> Items:
        """All of an array."""
        return cls(ctypes.addressof(array), len(array))


class Layer(ctypes.Structure):
    """What is frozen of a layer, and its result or that one's gradient."""

    _fields_ = [
        ("weight", c_void_p),
        ("outputs", c_int64),
        ("bias", c_void_p),
        ("data", c_void_p),
        ("stride", c_int64),
    ]


class Part(ctypes.Structure):
    """What an adapter has in a layer, and the gradients."""

    _fields_ = [
        ("a", c_void_p),
        ("b", c_void_p),
        ("rank", c_int64),
        ("da", c_void_p),
        ("db", c_void_p),
        ("scaling", c_float),
    ]


class Segment(ctypes.Structure):
    """The tokens of one adapter, and its parts, one for each layer."""

    _fields_ = [
        ("first", c_int64),
        ("end", c_int64),
        ("threshold", c_int32),
        ("factor", c_float),
        ("parts", Items),
    ]


class Products(ctypes.Structure):
    """All that the matmuls of LoRA layers with a common input read and write."""

    _fields_ = [
        ("tokens", c_int64),
        ("inputs", c_int64),
        ("padded", c_int64),
        ("room", c_int64),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("low", c_void_p),
        ("low_turned", c_void_p),
        ("d_low", c_void_p),
        ("d_low_turned", c_void_p),
        ("dx", c_void_p),
        ("dropped", c_void_p),
        ("token_keys", c_void_p),
        ("column_keys", c_void_p),
        ("layers", Items),
        ("segments", Items),
        ("wide", c_int),
    ]


class Array(ctypes.Structure):
    """Values (N, heads, E) with strides in values; `single` for float32, else bfloat16."""

    _fields_ = [("data", c_void_p), ("token", c_int64), ("head", c_int64), ("single", c_int)]


class Problem(ctypes.Structure):
    """All that attention inside rows reads and writes."""

    _fields_ = [
        *((name, Array) for name in ("q", "k", "v", "out", "dq", "dk", "dv")),
        ("lse", c_void_p),
        ("starts", c_void_p),
        ("lengths", c_void_p),
        *((name, c_int64) for name in ("N", "B", "H", "J", "E")),
        ("scale", c_float),
        ("causal", c_int),
        ("window", c_int64),
    ]


STRUCTURES: dict[str, Sequence[type[ctypes.Structure]]] = {
    "products_sizes": (Products, Segment, Part, Layer),
    "attention_sizes": (Problem, Array),
}
"""By the variable in which C++ has their sizes, in this order."""

_BOTH = {
    "rms_norm": [*[ADDRESS] * 4, *[SIZE] * 2, *[REAL] * 2],
    "rms_norm_backward": [*[ADDRESS] * 5, *[SIZE] * 2, REAL],
    "gated": [*[ADDRESS] * 3, SIZE, FLAG],
    "gated_backward": [*[ADDRESS] * 6, SIZE, FLAG],
    "rotary": [ADDRESS, *[SIZE] * 2, *[ADDRESS] * 3, *[SIZE] * 3, FLAG],
    "softmax": [*[ADDRESS] * 3, *[SIZE] * 5, REAL, FLAG, SIZE],
    "softmax_backward": [*[ADDRESS] * 4, *[SIZE] * 5, REAL, FLAG, SIZE],
    "cross_entropy": [*[ADDRESS] * 3, *[SIZE] * 2, FLAG],
}
_PACKS = {
    "pack": [ADDRESS, *[SIZE] * 2, *[ADDRESS] * 3, *[SIZE] * 4],
    "unpack": [*[ADDRESS] * 2, *[SIZE] * 2, *[ADDRESS] * 2, *[SIZE] * 4],
}
_DTYPES = ("bf16", "f32")
PASSES = {
    **{f"{name}_{dtype}": [*types, FLAG] for name, types in _BOTH.items() for dtype in _DTYPES},
    **{f"{name}_{a}_{b}": [*types, FLAG] for name, types in _PACKS.items() for a in _DTYPES for b in _DTYPES},
}
"""Arguments of the functions of kernels.cpp, which return nothing; the last one is the number of threads."""

_TILES = {
    **dict.fromkeys(("lowrank_forward", "lowrank_backward_input", "lowrank_backward_weights"), Products),
    **dict.fromkeys(("row_attention", "row_attention_backward"), Problem),
}
TILES = {name: [ctypes.POINTER(structure), FLAG] for name, structure in _TILES.items()}
"""Likewise of products.cpp and row_attention.cpp; these return how many units of work found no memory."""


def bind_passes(library: ctypes.CDLL) -> None:
    """Gives the functions of kernels.cpp their types.

    Raises:
        AttributeError: One is not there.
    """
    for name, types in PASSES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None


def bind_tiles(library: ctypes.CDLL) -> None:
    """Gives the functions on tiles their types, and checks the sizes of what they read.

    Raises:
        AttributeError: A function is not there.
        ValueError: A structure has another size in C++, or is not there.
    """
    for variable, structures in STRUCTURES.items():
        there = (c_int64 * len(structures)).in_dll(library, variable)
        for structure, size in zip(structures, there, strict=True):
            if ctypes.sizeof(structure) != size:
                mine = ctypes.sizeof(structure)
                raise ValueError(f"{structure.__name__} has {size} bytes in C++ and {mine} in Python")
    library.tiles_permitted.argtypes, library.tiles_permitted.restype = [], c_int
    for name, types in TILES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, c_int
