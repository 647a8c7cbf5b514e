"""What operators give on fake tensors, remembered by the shapes they were given.

torch looks at every argument of every call for all that a compiler may want to know of it. A trace calls the same few
operators with the same shapes thousands of times, and asks for shapes alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

OTHERWISE, ITSELF = object(), object()
"""Not to be told from shapes, such as an alias or a value; the first argument, with other numbers in it."""
_Made = tuple[tuple[Any, ...], tuple[Any, ...], torch.dtype, torch.device]
_Known = tuple[bool, tuple["_Made | None", ...]]
_KNOWN: dict[Any, Any] = {}
"""For each operator and the shapes it was given: OTHERWISE, ITSELF, or (whether it is one tensor, each)."""


def called(mode: FakeTensorMode, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operator gives under `mode`, which is entered already and that of all tensors; raises what it raises."""
    if func is torch.ops.prim.device.default and type(args[0]) is FakeTensor:
        return args[0].fake_device
    if func.is_view and args and _is_plain(args[0]):
        return _view(mode, func, args, kwargs)
    key = _key(func, args, kwargs)
    known = OTHERWISE if key is None else _KNOWN.get(key)
    if known is OTHERWISE:
        return func(*args, **kwargs)
    if known is None:
        result = func(*args, **kwargs)
        _KNOWN[key] = _in_place(key, args, result) if func._schema.is_mutable else _remembered(result, args)
        return result
    if known is ITSELF:
        return args[0]
    single, made = cast(_Known, known)
    results = tuple(one and _fresh(mode, *one) for one in made)
    return results[0] if single else results


def _view(mode: FakeTensorMode, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Another look at the storage of the first argument, which the meta kernel gives."""
    with in_kernel_invocation_manager(mode):
        view = func(*args, **kwargs)
    device = args[0].fake_device
    if isinstance(view, torch.Tensor):
        return FakeTensor(mode, view, device)
    return type(view)(FakeTensor(mode, each, device) for each in view)


def _fresh(mode: FakeTensorMode, shape: Any, stride: Any, dtype: torch.dtype, device: torch.device) -> FakeTensor:
    with in_kernel_invocation_manager(mode):
        empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    return FakeTensor(mode, empty, device)


def _key(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """None where something is no plain tensor, number or word."""
    found = [func]
    for each in (*args, *kwargs.items()) if kwargs else args:
        part = _part(each)
        if part is OTHERWISE:
            return None
        found.append(part)
    return tuple(found)


def _is_plain(tensor: Any) -> bool:
    return type(tensor) is FakeTensor and tensor.constant is None and not tensor.dtype.is_complex


def _part(value: Any) -> Any:
    """What a result's shape depends on; types count, since 1, 1.0 and True are equal."""
    if type(value) is FakeTensor:
        if not _is_plain(value):
            return OTHERWISE
        return (value.shape, value.stride(), value.dtype, value.fake_device)
    if isinstance(value, torch.Tensor):
        return OTHERWISE
    if isinstance(value, (list, tuple)):
        parts = tuple(map(_part, value))
        return OTHERWISE if OTHERWISE in parts else parts
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, torch.layout)):
        return (type(value), value)
    return (type(value), value) if isinstance(value, torch.memory_format) else OTHERWISE


def _in_place(key: Any, args: Sequence[Any], result: Any) -> Any:
    """ITSELF where the first argument was given back in the shape it had, as `add_` does."""
    return ITSELF if result is args[0] and _part(result) == key[1] else OTHERWISE


def _remembered(result: Any, args: Sequence[Any]) -> Any:
    """(whether it is one tensor, shape and the like of each), or OTHERWISE."""
    single = isinstance(result, torch.Tensor)
    results = (result,) if single else result
    if not isinstance(results, tuple):
        return OTHERWISE
    given = {each.untyped_storage()._cdata for each in _tensors(args)}
    made: list[_Made | None] = []
    for each in results:
        if each is None:
            made.append(None)
            continue
        if not _is_plain(each) or each.untyped_storage()._cdata in given:
            return OTHERWISE
        made.append((each.shape, each.stride(), each.dtype, each.fake_device))
    return single, tuple(made)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [
        each
        for value in values
        for each in (_tensors(value) if isinstance(value, (list, tuple)) else [value])
        if isinstance(each, torch.Tensor)
    ]
