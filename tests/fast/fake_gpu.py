"""A GPU that is not there: fake CUDA tensors, which have a device, a dtype and a shape, and no values.

What fails on a GPU for one of these three fails here, and every time that the program would wait for the GPU is noted.
Not seen are values, memory, speed, and what a kernel refuses for reasons that are not in `_refuse`.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda", 0)
ATTENTION = "torch_attn._varlen_attn.default"
ATTENTION_BACKWARD = "torch_attn._varlen_attn_backward.default"
COPIES = ("aten._to_copy.default", "aten.copy_.default")
NONZERO = "aten.nonzero.default"
BY_INDEX = ("index", "index_put", "index_put_")
ONE_DTYPE = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "index_add", "index_add_", "index_put", "index_put_")
ONE_DTYPE += ("native_layer_norm",)
"""Operations that refuse several floating dtypes. Fake tensors do not, or not always."""


class Gpu(TorchDispatchMode):
    """Sees every operation.

    Args:
        found: How many `nonzero` finds, since fake tensors have no values. Whatever else depends on values, such as
            `item`, is an error.
    """

    def __init__(self, found):
        super().__init__()
        self.found = found
        self.forget()

    def forget(self):
        self.waits, self.mixed, self.calls = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.ops.prim.device.default:
            # For autograd, which without CUDA refuses its tensors. Python and the operations see the device itself.
            return torch.device("meta")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if kwargs.get("device") == torch.device("meta"):
            kwargs["device"] = tensors[0].device if tensors else DEVICE
        name = str(func)
        self.calls.append(name)
        if _waits(name, args, kwargs):
            self.waits.append(name)
        elif len({x.device.type for x in tensors}) > 1:
            self.mixed.append(name)
        _refuse(name, args, tensors)
        if name == NONZERO and args[0].is_cuda:
            return torch.empty((self.found, args[0].dim()), dtype=torch.long, device=DEVICE)
        return func(*args, **kwargs)


def _waits(name, args, kwargs):
    """Whether the program waits for the GPU: a copy to it or from it, or a shape that depends on values."""
    if name in COPIES:
        here = kwargs.get("device", args[0].device) if name == COPIES[0] else args[1].device
        return here.type != args[0].device.type and not kwargs.get("non_blocking")
    return name == NONZERO and args[0].is_cuda


def _refuse(name, args, tensors):
    """Raises for what a GPU refuses and fake tensors do not, and for masks as indices, which are waited for."""
    operation = name.split(".")[1]
    if operation in ONE_DTYPE and len({x.dtype for x in tensors if x.is_floating_point()}) > 1:
        raise RuntimeError(f"{name} of several dtypes: {[x.dtype for x in tensors]}")
    if operation in BY_INDEX and any(x is not None and x.dtype == torch.bool for x in tree_leaves(args[1])):
        raise RuntimeError(f"{name} by a mask waits for the GPU")
    if name == ATTENTION:
        _check_attention(*args[:7])
    if name == ATTENTION_BACKWARD and args[0].dtype != args[1].dtype:
        raise RuntimeError(f"a gradient of attention in {args[0].dtype}, not {args[1].dtype}")


def _check_attention(q, k, v, starts, starts_k, longest, longest_k):
    """The conditions of torch's kernel (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp)."""
    assert q.dtype == k.dtype == v.dtype
    assert q.dtype in (torch.float16, torch.bfloat16), f"{q.dtype} is not a dtype of the kernel"
    assert k.shape == v.shape
    assert len(q) == len(k)
    assert q.shape[2] == k.shape[2] <= 256
    assert q.shape[2] % 8 == 0
    assert q.shape[1] % k.shape[1] == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    for offsets in (starts, starts_k):
        assert offsets.dtype == torch.int32
        assert offsets.device == q.device == DEVICE
        assert offsets.is_contiguous()
    assert 0 < longest == longest_k <= len(q)


@contextmanager
def gpu(found=0):
    """While inside, new tensors are fake."""
    with FakeTensorMode(), Gpu(found) as seen:
        yield seen


def there(tensor):
    """A tensor like this one, on the GPU."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def move(model):
    """Puts a model on the GPU; ties stay ties."""
    made = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is not None:
                    new = made.get(id(old)) or (old, _moved(old))
                    made[id(old)] = new
                    table[name] = new[1]
    return model


def _moved(old):
    if not isinstance(old, torch.nn.Parameter):
        return there(old)
    new = torch.nn.Parameter(there(old), requires_grad=old.requires_grad)
    if hasattr(old, "quant_state"):
        new.quant_state = _moved_state(old.quant_state)
    return new


def _moved_state(state):
    """bitsandbytes' own description of a quantised weight, with its tensors on the GPU."""
    new = object.__new__(type(state))
    for name, value in vars(state).items():
        if isinstance(value, torch.Tensor):
            value = there(value)
        setattr(new, name, _moved_state(value) if isinstance(value, type(state)) else value)
    return new
