"""The live tensors of one real training step, traced under fake tensors: shapes and lifetimes, no memory, no weights.

The model is built on the meta device, cut to one and to two layers, given its adapter, and run forward and backward at
three lengths while every storage is counted from its creation to its release. What is live at the end of the forward
pass, and the peaks on the way, are then affine in the number of layers and quadratic in the length, so a few traces
answer every (layers, rows, tokens).
"""

from __future__ import annotations

import json
import logging
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hfadapt import fast
from hfadapt.adapters import ALL_LINEAR, targets
from hfadapt.core import registry
from hfadapt.core.progress import quiet_libraries
from hfadapt.fast import compiled
from hfadapt.models.facts import build, freeze_front, head_names, is_linear, layer_stacks
from hfadapt.plan.memory.shapes import called
from hfadapt.plan.memory.step import FORWARD_ONLY, MARKS, PASSES, TRAINED, StepKey, Terms
from hfadapt.recipe.schema import LockedAdapter

ROWS = 2
TRACED_DROPOUT = 0.1
"""Any share: masks are as large for each."""


@cache
@quiet_libraries()
def step_terms(key: StepKey) -> Terms:
    """For each mark: coefficients of (1, B T, B T^2) outside the layers, and the same for one layer.

    Where layers differ (`pattern`), one group of them is traced and two, and a layer is the mean of a group; where they
    do not repeat, all of them are traced, once.
    """
    lead, period = key.pattern
    fewer = lead + period
    one = two = dict(_marks(key, fewer))
    if period:
        two = dict(_marks(key, fewer + period))
    found: Terms = {}
    for mark in MARKS:
        first, second = (_fit({t: marks[t][mark] for t in marks}) for marks in (one, two))
        if mark in FORWARD_ONLY:
            # Without gradients a layer leaves nothing behind; one layer alone is not typical, two are.
            first = second
        layer = tuple((b - a) / max(1, period) for a, b in zip(first, second, strict=True))
        found[mark] = (tuple(a - fewer * b for a, b in zip(first, layer, strict=True)), layer)
    few, more = (float(next(iter(marks.values()))[TRAINED]) for marks in (one, two))
    each = (more - few) / max(1, period)
    found[PASSES] = ((float(next(iter(one.values()))[PASSES]), 0.0, 0.0), (0.0, 0.0, 0.0))
    found[TRAINED] = ((few - fewer * each, 0.0, 0.0), (each, 0.0, 0.0))
    return found


def _fit(values: dict[int, int]) -> tuple[float, ...]:
    """Coefficients of (1, B T, B T^2) through the traced bytes by length.

    Two lengths leave no constant, one length neither a constant nor a square.
    """
    import numpy as np

    powers = {1: (1,), 2: (1, 2), 3: (0, 1, 2)}[len(values)]
    table = np.array([[ROWS * float(t) ** n if n else 1.0 for n in powers] for t in values])
    found = dict(zip(powers, np.linalg.solve(table, np.array(list(values.values()), dtype=float)), strict=True))
    return tuple(float(found.get(n, 0.0)) for n in range(3))


class Live(TorchDispatchMode):
    """Counts the bytes of every storage made inside, while it is alive."""

    def __init__(self, model: nn.Module, fakes: FakeTensorMode) -> None:
        super().__init__()
        self._fakes = fakes
        self.bytes = 0
        self.peak_bytes = 0
        # What exists before the step is counted elsewhere.
        self._known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        self._known |= {p.grad.untyped_storage()._cdata for p in model.parameters() if p.grad is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            result = called(self._fakes, func, args, kwargs or {})
        except RuntimeError:
            # Shapes that depend on values, and kernels whose stand-in knows fewer dtypes than the kernel.
            result = _assumed(str(func), args, kwargs or {})
            if result is None:
                raise
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

        def release() -> None:
            self._known.discard(key)
            self.bytes -= size

        weakref.finalize(storage, release)


def _assumed(operator: str, args: Any, kwargs: Any) -> Any:
    """What an operator whose result depends on values gives where nothing is padded: every number is 1, all rows have
    as many end tokens, every mask is true. None for other operators."""
    name, first = operator.split(".")[1], args[0]
    if name == "_local_scalar_dense":
        return first.dtype == torch.bool or (1.0 if first.is_floating_point() else 1)
    if name == "unique_consecutive":
        return first.new_empty(1), first.new_empty(0), first.new_empty(0)
    if name == "nonzero":
        return first.new_empty((first.numel(), first.dim()), dtype=torch.long)
    if name == "index" and args[1][0] is not None and args[1][0].dtype == torch.bool:
        return first.new_empty((args[1][0].numel(), *first.shape[args[1][0].dim() :]))
    if name == "_grouped_mm" and first.dim() == 2:
        # Tokens times the experts' weights, or in the backward pass one product of tokens for each expert.
        ends = args[2] if len(args) > 2 else kwargs["offs"]
        experts = () if args[1].dim() == 3 else (ends.numel(),)
        return first.new_empty((*experts, first.shape[0], args[1].shape[-1]))
    return None


def _marks(key: StepKey, layers: int) -> list[tuple[int, dict[str, int]]]:
    """The marks of one model at each of the key's lengths."""
    model = _adapted(key, layers)
    with FakeTensorMode() as fakes, quiet():
        make_fake(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                # As in the second micro-batch of a step: gradients are there and are added to.
                parameter.grad = torch.empty_like(parameter)
        try:
            rows = key.fast and "attention" not in key.without
            return [(length, _step(key, model, length, fakes, rows=rows)) for length in key.lengths]
        except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            if not key.fast:
                raise
            # As the loop does where a model's attention is of another kind: rows side by side.
            return [(length, _step(key, model, length, fakes, rows=False)) for length in key.lengths]


def _step(key: StepKey, model: nn.Module, length: int, fakes: FakeTensorMode, rows: bool) -> dict[str, int]:
    """Forward and backward, then a forward pass for scoring.

    Args:
        rows: Attention inside rows, which a generating model is then given in one line.
    """
    inputs = _inputs(key, model, length, packed=rows and key.generates)
    marks = {TRAINED: sum(p.numel() for p in model.parameters() if p.requires_grad)}
    model.train()
    with Live(model, fakes) as live:
        with _fast(key, model, length, rows) as marks[PASSES]:
            copies = live.bytes
            live.peak_bytes = copies
            loss = _loss(key, model, inputs)
            marks["forward_peak"], marks["forward_end"] = live.peak_bytes - copies, live.bytes - copies
            live.peak_bytes = live.bytes
            if loss.requires_grad:  # Of a language model's trained head alone, what comes before it has no gradient.
                loss.backward()
            marks["backward_peak"] = live.peak_bytes - copies
            del loss
            model.eval()
            before = live.peak_bytes = live.bytes
            with torch.no_grad():
                _loss(key, model, inputs)
            marks["validate_peak"] = live.peak_bytes - before
    # Scoring pads rows side by side and uses the libraries' own forward passes.
    with Live(model, fakes) as live, torch.no_grad():
        _loss(key, model, _inputs(key, model, length, packed=False))
        marks["evaluate_peak"] = live.peak_bytes
    return marks


@contextmanager
def _fast(key: StepKey, model: nn.Module, length: int, rows: bool) -> Iterator[int]:
    """The training loop's own fast path, when it is on; what it copies once is counted with the weights.

    Yields how many passes are its own.
    """
    if not key.fast:
        yield 0
        return
    products = getattr(torch, key.matmul_dtype) if key.dtype == "float32" else None
    names, lengths = ["default"] * ROWS, [length] * ROWS
    packed = rows and key.generates
    documents = fast.packed_rows(lengths, names) if packed else fast.padded_rows(lengths, length, names)
    machine = compiled.Machine(key.kernels, key.tiles, key.attention_on_tiles)
    path = fast.FastPath(model, products, without=key.without)
    # Training tries it out; of the layers that this part knows all classifiers read the first token.
    first = key.auto_class == "AutoModelForSequenceClassification"
    with compiled.assuming(machine), path.on(rows=rows, first_token=first), fast.batch(documents, products):
        yield path.norms + path.gates + path.rotary


def _adapted(key: StepKey, layers: int) -> nn.Module:
    """The cut model with its adapter on the meta device, as hfadapt trains it."""
    from peft import get_peft_model

    method = registry.adapter(key.method)
    base: Any = cut_model(key.config, key.auto_class, key.generates, layers)
    base.to(getattr(torch, key.dtype))
    base.requires_grad_(method.whole_model)
    freeze_front(base)
    heads = head_names(base)
    if key.bits:
        # Unpacked to the dtype of the products; 8 bits by bitsandbytes itself to that of their input.
        ours = not key.integer_products or (key.fast and key.on_cpu)
        _quantise(base, key.bits, getattr(torch, key.matmul_dtype if ours else key.dtype))
    model: nn.Module = base
    with torch.device("meta"), quiet():
        if method.adapts_layers:
            modules = ALL_LINEAR[0] if key.modules == ALL_LINEAR else targets(key.modules, base)
            dropout = TRACED_DROPOUT if key.dropout else 0.0
            settings = LockedAdapter(
                method=key.method, rank=key.rank, alpha=key.rank, dropout=dropout, modules=key.modules
            )
            config = method.peft_config(settings, target_modules=modules, exclude_modules=list(heads) or None)
            if method.low_rank:
                config.init_lora_weights = True  # other starts read the weights, which are not there
            model = get_peft_model(base, config)
        if not key.predicts_tokens or not method.adapts_layers:
            for name, parameter in base.named_parameters():
                if name.split(".")[0] in heads and parameter.is_floating_point():
                    parameter.requires_grad_(True)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if key.checkpointing:
            base.activation_checkpointing_enable({"use_reentrant": False})
            if not method.whole_model:
                base.disable_input_require_grads()  # as attach_adapters does
    return model


def cut_model(config: str, auto_class: str, generates: bool, layers: int) -> nn.Module:
    """A config's model with its first `layers` layers; built small where the config allows it, else whole and cut."""
    from transformers import AutoConfig

    fields = {
        name: 0.0 if "drop" in name and isinstance(value, float) else value
        for name, value in json.loads(config).items()
    }
    if not generates and fields.get("pad_token_id") is None:
        # As loading does from the tokenizer: decoders classify at the last token that is not padding.
        fields["pad_token_id"] = 0
    count = fields.get("num_hidden_layers")
    small = {
        name: value[:layers] if isinstance(value, list) and len(value) == count else value
        for name, value in fields.items()
    }
    try:
        model = build(AutoConfig.for_model(**{**small, "num_hidden_layers": layers}), auto_class, "traced")
    except Exception:
        # Configs refuse other numbers of layers in ways of their own.
        model = build(AutoConfig.for_model(**fields), auto_class, "traced")
    for stack in layer_stacks(model).values():
        del stack[layers:]
    return model


class _Dequantise(torch.autograd.Function):
    """A product with a weight that is unpacked for each use, forward and backward, and not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Any) -> torch.Tensor:
        ctx.layer = layer
        if not isinstance(layer, Linear4bit):
            # As bitsandbytes does for 8 bits: kept outside the saved tensors, so checkpointing does not release it.
            ctx.x = x
        weight = x.new_empty((layer.out_features, layer.in_features), dtype=layer.compute_dtype)
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        layer, grad = ctx.layer, grads[0]
        weight = grad.new_empty((layer.out_features, layer.in_features), dtype=layer.compute_dtype)
        return grad.to(layer.compute_dtype) @ weight, None


class Linear8bit(nn.Linear):
    """Stands for Linear8bitLt: the same shapes outside, a packed weight inside. On the fast path it unpacks itself."""

    def __init__(self, layer: nn.Linear, compute_dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.bias = layer.bias
        self.compute_dtype = compute_dtype
        packed = torch.empty(layer.weight.numel() // 2, 1, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)

    def unpacked(self) -> torch.Tensor:
        """The weight (O, I) for one use."""
        return self.weight.new_empty((self.out_features, self.in_features), dtype=self.compute_dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Unpacks for this use; (..., I) to (..., O)."""
        result = _Dequantise.apply(x.to(self.compute_dtype), self).to(x.dtype)
        return result if self.bias is None else result + self.bias


class Linear4bit(Linear8bit):
    """Stands for the class of this name in bitsandbytes."""


def _quantise(model: nn.Module, bits: int, compute_dtype: torch.dtype) -> None:
    kind = Linear4bit if bits == 4 else Linear8bit
    heads = head_names(model)
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            full = f"{name}.{child_name}" if name else child_name
            if isinstance(child, nn.Linear) and is_linear(child) and full.split(".")[0] not in heads:
                setattr(module, child_name, kind(child, compute_dtype))


def make_fake(model: nn.Module) -> None:
    """Replaces every meta parameter and buffer by a fake one on the CPU; ties stay ties. Runs in a FakeTensorMode."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, old in table.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new: torch.Tensor = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=old.requires_grad)
                    made[id(old)] = (old, new)
                table[name] = made[id(old)][1]


def _inputs(key: StepKey, model: Any, length: int, packed: bool) -> dict[str, torch.Tensor]:
    if packed:
        tokens = fast.packed_rows([length] * ROWS, ["default"] * ROWS).tokens
        ids = torch.zeros(1, tokens, dtype=torch.long)
        return {"input_ids": ids, "position_ids": ids}
    made = registry.modality(key.modality).traced(model.config, ROWS, length)
    dtype = getattr(torch, key.dtype)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in made.items()}


def _loss(key: StepKey, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A scalar that needs the whole model; an output layer over the vocabulary is counted elsewhere."""
    if not key.predicts_tokens:
        logits = getattr(model(**inputs), key.reads)
        # A row of outputs for each row of the batch or, for labels at tokens, for each token.
        outputs = logits.float().flatten(0, -2)
        return nn.functional.cross_entropy(outputs, torch.zeros(len(outputs), dtype=torch.long), reduction="sum")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = getattr(base, base.base_model_prefix)
    cached = {"use_cache": False} if key.generates else {}
    return body(**inputs, **cached).last_hidden_state[:, -1].float().sum()


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, and without the tracebacks that torch logs of operators that stand-ins answer for here."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
