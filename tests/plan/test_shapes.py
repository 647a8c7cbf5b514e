"""Operators on fake tensors, remembered by shape, give what torch gives for each call."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hfadapt.models.facts import model_facts
from hfadapt.plan.memory import predict as memory
from hfadapt.plan.memory import shapes, trace
from hfadapt.plan.memory.predict import Workload

ATEN = torch.ops.aten


def told(value):
    """All that is asked of a result."""
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    if not isinstance(value, torch.Tensor):
        return value
    return type(value).__name__, value.shape, value.stride(), value.dtype, value.device, value.storage_offset()


@pytest.mark.parametrize(
    ("func", "others"),
    [
        (ATEN.mul.Tensor, (2.0,)),
        (ATEN.mul.Tensor, (True,)),
        (ATEN.mm.default, (torch.zeros(6, 3),)),
        (ATEN.t.default, ()),
        (ATEN.slice.Tensor, (0, 1, 3)),
        (ATEN.split.Tensor, (2,)),
        (ATEN._to_copy.default, ()),
        (ATEN.native_layer_norm.default, ([6], None, None, 1e-5)),
        (ATEN.add_.Tensor, (1,)),
        (ATEN.t_.default, ()),
        (ATEN.zeros_like.default, ()),
    ],
    ids=lambda value: str(value) if callable(value) else "",
)
def test_a_call_gives_what_it_gave(func, others):
    """The second call is answered from the first."""
    with FakeTensorMode() as mode:
        rest = [torch.empty(each.shape) if isinstance(each, torch.Tensor) else each for each in others]
        kwargs = {"dtype": torch.bfloat16} if func is ATEN._to_copy.default else {}
        for _ in range(2):
            given, same = torch.empty(4, 6), torch.empty(4, 6)
            found = shapes.called(mode, func, [given, *rest], kwargs)
            assert told(found) == told(func(same, *rest, **kwargs))
            assert told(given) == told(same)
            if func.is_view:
                first = found[0] if isinstance(found, (list, tuple)) else found
                assert first.untyped_storage()._cdata == given.untyped_storage()._cdata
            if func._schema.is_mutable:
                assert found is given


def test_kinds_of_numbers_are_told_apart():
    """1 and 1.0 and True are equal, and make other dtypes."""
    with FakeTensorMode() as mode:
        x = torch.empty(3, dtype=torch.long)
        kinds = [shapes.called(mode, ATEN.mul.Tensor, (x, factor), {}).dtype for factor in (1, 1.0, True, 1, 1.0, True)]
    assert kinds == [torch.int64, torch.float32, torch.int64] * 2


def test_values_and_errors_are_torchs():
    with FakeTensorMode() as mode:
        number = torch.tensor(3)
        for _ in range(2):
            assert shapes.called(mode, ATEN._local_scalar_dense.default, (number,), {}) == 3
            with pytest.raises(RuntimeError):
                shapes.called(mode, ATEN.mm.default, (torch.empty(2, 3), torch.empty(2, 3)), {})


@pytest.mark.parametrize(
    ("name", "task", "workload"),
    [
        ("encoder", "text-classification", Workload(dropout=True)),
        ("lm", "causal-lm", Workload(quant="nf4", dtype="bfloat16", matmul_dtype="bfloat16", checkpointing=True)),
        ("lm", "causal-lm", Workload(method="full", fast=False)),
    ],
)
def test_a_trace_is_the_same_without_it(models, monkeypatch, name, task, workload):
    key = memory.step_key(model_facts(str(models / name), task), workload)
    key = replace(key, lengths=key.lengths[-1:])
    with_it = [trace._marks(key, layers) for layers in (1, 2)]
    again = [trace._marks(key, layers) for layers in (1, 2)]
    monkeypatch.setattr(trace, "called", lambda mode, func, args, kwargs: func(*args, **kwargs))
    assert with_it == again == [trace._marks(key, layers) for layers in (1, 2)]
