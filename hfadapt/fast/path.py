"""The fast path of training: puts the fast parts on a model, and takes them off again.

Every part stands for a module's or function's own forward and gives the same result; what it does not know keeps its
own. Parts: low-rank layers (lowrank.py), attention inside rows (attention.py), root-mean-square norms, gated
activations, rotary positions, and the loss of a language model on its labelled positions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from hfadapt import hardware
from hfadapt.adapters import DEFAULT
from hfadapt.fast import attention, compiled, kernels
from hfadapt.fast.documents import CURRENT, batch, side_by_side
from hfadapt.fast.lowrank import Frozen, Group, Layer, gated_product, shared_forwards
from hfadapt.tasks.causal_lm import labelled_positions

SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Layers of one module that are given the same input; where they are not, each is worked out alone."""
COMPUTE_8BIT = torch.bfloat16
NARROW = ("intermediate.dense", "lin1", "fc1", "wi", "Wi", "Wqkv")
"""With `SHARED_INPUTS`, layers whose results go into attention or an activation and not into the sum of a residual
stream: they stay in the dtype of the products, as under autocast."""
LOSS_LOGITS = 16_000_000
"""Logits made at once: 32 MB in 16 bits."""


@dataclass
class FastPath:
    """The fast parts of one model.

    Args:
        model: The adapted model.
        products: dtype in which frozen float32 weights are multiplied; None keeps theirs.
        adapters: Names of the adapters that are trained.
        resident: Number of quantised layers of which an unpacked copy is kept; -1 keeps all.
    """

    model: Any
    products: torch.dtype | None = None
    adapters: Sequence[str] = (DEFAULT,)
    resident: int = 0
    groups: list[Group] = field(default_factory=list)
    norms: int = 0
    gates: int = 0
    rotary: bool = False
    attention: bool = False

    @contextmanager
    def on(self, *, rows: bool = True) -> Iterator[FastPath]:
        """While inside, the model uses the fast parts.

        Args:
            rows: Use attention inside rows; batches must then be announced with `documents.batch`.
        """
        with ExitStack() as stack:
            layers = self._layers()
            for group in self._grouped(layers):
                self.groups.append(group)
                for layer, forward in zip(group.layers, shared_forwards(group), strict=True):
                    stack.enter_context(_replaced(layer.module, forward))
            self.refresh()
            if self.model.device.type == "cpu":
                by_module = {id(group.layers[0].module): group for group in self.groups if len(group.layers) == 1}
                for module in self.model.modules():
                    norm, gate = _norm(module), _gate(module, by_module)
                    self.norms += norm is not None
                    self.gates += gate is not None
                    for fast in (norm, gate):
                        if fast is not None:
                            stack.enter_context(_replaced(module, fast))
                self.rotary = stack.enter_context(_fast_rotary(self.model))
            if len(self.adapters) > 1:
                for module in self.model.modules():
                    if (head := _heads(module, self.adapters)) is not None:
                        stack.enter_context(_replaced(module, head))
            if rows:
                self.attention = stack.enter_context(_row_attention(self.model))
            try:
                yield self
            finally:
                self.groups.clear()
                self.norms = self.gates = 0
                self.rotary = self.attention = False

    def refresh(self) -> None:
        """To be called whenever the trained parameters have changed."""
        for group in self.groups:
            group.refresh()

    def summary(self, *, packed: bool) -> str:
        """What is fast, in words."""
        on_cpu = self.model.device.type == "cpu"
        narrow = any(group.dtype == torch.bfloat16 for group in self.groups)
        parts = {
            f"{self.low_rank_layers} low-rank layers": self.low_rank_layers,
            "attention inside rows": self.attention,
            "rows in one line": packed,
            f"{self.norms} norms": self.norms,
            f"{self.gates} gated activations": self.gates,
            "rotary positions": self.rotary,
            "compiled kernels": on_cpu and compiled.passes() is not None,
            "AMX tiles": on_cpu and narrow and compiled.tiles() is not None,
        }
        return ", ".join(name for name, on in parts.items() if on)

    @property
    def low_rank_layers(self) -> int:
        """How many low-rank layers use the fast path."""
        return sum(len(group.layers) for group in self.groups)

    def _layers(self) -> list[Layer]:
        left = self.resident
        found = []
        for module in self.model.modules():
            layer = _layer(module, self.products, self.adapters, left != 0)
            if layer is not None:
                found.append(layer)
                left -= left != 0 and _is_quantised(module)
        if len(self.adapters) > 1:
            from peft.tuners.lora.layer import LoraLayer

            others = sum(isinstance(module, LoraLayer) for module in self.model.modules()) - len(found)
            if others:
                raise NotImplementedError(f"{others} low-rank layers go through one adapter only")
        return found

    def _grouped(self, layers: list[Layer]) -> list[Group]:
        known = {id(layer.module): layer for layer in layers}
        groups, taken = [], set()
        for parent in self.model.modules():
            children = dict(parent.named_children())
            for names in SHARED_INPUTS:
                together = [known[id(children[n])] for n in names if n in children and id(children[n]) in known]
                if len(together) == len(names) and _alike(together):
                    groups.append(Group(together, narrow=True))
                    taken |= {id(layer.module) for layer in together}
        paths = {id(module): path for path, module in self.model.named_modules()}
        left = [layer for layer in layers if id(layer.module) not in taken]
        return groups + [Group([layer], narrow=paths[id(layer.module)].endswith(NARROW)) for layer in left]


def _alike(layers: Sequence[Layer]) -> bool:
    first = layers[0]
    width = first.module.in_features
    return all(
        layer.module.in_features == width
        and layer.frozen.dtype == first.frozen.dtype
        and list(layer.adapters) == list(first.adapters)
        for layer in layers
    )


@contextmanager
def _replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


# --- low-rank layers -------------------------------------------------------------------------------------------------


def _layer(module: Any, dtype: torch.dtype | None, adapters: Sequence[str], resident: bool) -> Layer | None:
    """The layer's parts, or None when peft's forward does more than the fast one."""
    from peft.tuners.lora.layer import LoraLayer

    if not isinstance(module, LoraLayer) or not hasattr(module, "in_features"):
        return None
    names = [name for name in adapters if name in module.lora_A]
    plain = (
        names
        and not module.lora_variant
        and not module.merged
        and not getattr(module, "fan_in_fan_out", False)
        and not any(module.lora_bias[name] for name in names)
        and all(isinstance(module.lora_dropout[name], torch.nn.Identity) for name in names)
    )
    frozen = _frozen(module.get_base_layer(), dtype, resident) if plain else None
    if frozen is None:
        return None
    parts = {
        name: (module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name])) for name in names
    }
    return Layer(module, frozen, parts)


def _is_quantised(module: Any) -> bool:
    return type(module.get_base_layer()) is not torch.nn.Linear


def _frozen(base: Any, dtype: torch.dtype | None, resident: bool) -> Frozen | None:
    """A float32 weight is copied to the dtype of the products once; a quantised one is unpacked for each use."""
    if type(base) is torch.nn.Linear:
        kind = dtype or base.weight.dtype
        weight = base.weight.detach().to(kind)
        return Frozen(lambda: weight, _bias(base, kind), kind)
    unpack = _unpacked(base, dtype)
    if unpack is None:
        return None
    make, kind = unpack
    if resident:
        kept = make()
        return Frozen(lambda: kept, _bias(base, kind), kind)
    return Frozen(make, _bias(base, kind), kind)


def _unpacked(base: Any, dtype: torch.dtype | None) -> tuple[Callable[[], torch.Tensor], torch.dtype] | None:
    """How a bitsandbytes layer is unpacked, and to which dtype; None for layers that multiply in integers."""
    if hasattr(base, "unpacked"):
        return base.unpacked, base.compute_dtype
    if type(base).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit

        kind = dtype or base.compute_dtype
        return (lambda: dequantize_4bit(base.weight.data, base.weight.quant_state).to(kind)), kind
    if type(base).__name__ == "Linear8bitLt" and base.weight.device.type == "cpu":
        # As bitsandbytes does on CPUs when training; on CUDA its forward pass multiplies in integers.
        kind = dtype or COMPUTE_8BIT

        def make() -> torch.Tensor:
            scales = base.state.SCB if base.weight.SCB is None else base.weight.SCB
            return base.weight.data.to(kind).mul_((scales / 127.0).to(kind)[:, None])

        return make, kind
    return None


def _bias(base: Any, dtype: torch.dtype) -> torch.Tensor | None:
    return None if base.bias is None else base.bias.detach().to(dtype)


def product_dtype(storage: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 for a base in float32, where the device multiplies it several times faster; else None."""
    if storage != "float32":
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu":
        return torch.bfloat16 if {"amx_bf16", "avx512_bf16"} & set(hardware.cpu_features()) else None
    return None


def _heads(module: Any, adapters: Sequence[str]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The forward of a module that every adapter has trained a copy of: rows of a batch go to their own copy."""
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper) or not set(adapters) <= set(module.modules_to_save):
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        documents = CURRENT.documents
        if documents is None:
            return module.modules_to_save[adapters[0]](x)  # type: ignore[no-any-return]
        parts = [module.modules_to_save[s.adapter](x[s.first_row : s.end_row]) for s in documents.segments]
        return torch.cat(parts)

    return forward


# --- norms, gates, positions -----------------------------------------------------------------------------------------


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        y, inverse = kernels.rms_norm(flat, weight, eps, offset)
        ctx.save_for_backward(flat, weight, inverse)
        ctx.offset = offset
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        flat, weight, inverse = ctx.saved_tensors
        dy = gradients[0].reshape(flat.shape).contiguous()
        return kernels.rms_norm_backward(dy, flat, weight, inverse, ctx.offset).view(gradients[0].shape), *(None,) * 3


def _norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The fast forward of a root-mean-square norm with a frozen weight; classes are known by name and tried out."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, torch.nn.Parameter) or eps is None:
        return None
    if weight.requires_grad or weight.dim() != 1 or not kernels.available(weight):
        return None
    offset = 1.0 if "Gemma" in type(module).__name__ else 0.0
    own = type(module).forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != weight.dtype or x.shape[-1] != len(weight):
            return own(module, x)  # type: ignore[no-any-return]
        return _Norm.apply(x, weight, float(eps), offset)  # type: ignore[no-any-return, no-untyped-call]

    return forward if _same(forward, lambda x: own(module, x), module, len(weight)) else None


def _same(fast: Callable[..., torch.Tensor], own: Callable[..., torch.Tensor], module: Any, width: int) -> bool:
    """Whether two functions of (1, 2, D) agree; fake tensors are taken on trust."""
    weight = module.weight
    if compiled.is_fake(weight):
        return True
    dtype = weight.dtype if weight.is_floating_point() else getattr(module, "compute_dtype", None) or torch.bfloat16
    with torch.no_grad():
        x = torch.linspace(-2, 3, 2 * width).view(1, 2, width).to(dtype)
        wanted, found = own(x).float(), fast(x).float()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    return bool((wanted - found).abs().max() <= tolerance * wanted.abs().max().clamp(min=1e-6))


GATES = {"SiLU": False, "SiLUActivation": False, "GELUTanh": True, "PytorchGELUTanh": True}


def _gate(module: Any, groups: Mapping[int, Group]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The fast forward of down(act(gate(x)) · up(x)), where `down` is a fast low-rank layer."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")]
    gate, up, down, act = parts
    group = groups.get(id(down))
    kind = GATES.get(type(act).__name__)
    if gate is None or up is None or group is None or kind is None:
        return None
    gelu = kind

    def forward(x: torch.Tensor) -> torch.Tensor:
        return gated_product(gate(x), up(x), gelu, group)

    own = type(module).forward
    # The module's own forward is tried with the low-rank layers that are fast already, all through the first adapter.
    with batch(side_by_side([2], 2, [group.names[0]])):
        base = gate.get_base_layer() if hasattr(gate, "get_base_layer") else gate
        same = _same(forward, lambda x: own(module, x), base, gate.in_features)
    return forward if same else None


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, False)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, sin, True), None, None


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inverse: bool) -> torch.Tensor:
    """x (B, H, T, E), which lies in memory as (B, T, H, E); so does the result."""
    rows, heads, width, size = x.shape
    flat = x.transpose(1, 2).reshape(rows * width, heads, size)
    if flat.stride(-1) != 1:
        flat = flat.contiguous()
    return kernels.rotary(flat, cos, sin, inverse).view(rows, width, heads, size).transpose(1, 2)


@contextmanager
def _fast_rotary(model: Any) -> Iterator[bool]:
    """Replaces `apply_rotary_pos_emb` in the module of the model's attention; yields whether there is one."""
    homes = {sys.modules[type(module).__module__] for module in model.modules()}
    with _disable_current_modes():  # type: ignore[no-untyped-call]
        found = [home for home in homes if _usual_rotary(home)]
    kept = [(home, home.apply_rotary_pos_emb) for home in found]

    def replacement(own: Callable[..., Any]) -> Callable[..., Any]:
        def apply(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
            fits = cos.dtype == sin.dtype == q.dtype == k.dtype and cos.shape == sin.shape
            fits = fits and cos.shape[-2:] == q.shape[-2:] == (k.shape[-2], k.shape[-1])
            if not fits or unsqueeze_dim != 1 or cos.dim() != 3 or not kernels.available(q) or q.dim() != 4:
                return own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
            cos, sin = (x.expand(q.shape[0], -1, -1).reshape(-1, x.shape[-1]).contiguous() for x in (cos, sin))
            return _Rotary.apply(q, cos, sin), _Rotary.apply(k, cos, sin)  # type: ignore[no-untyped-call]

        return apply

    for home, own in kept:
        home.apply_rotary_pos_emb = replacement(own)  # type: ignore[attr-defined]
    try:
        yield bool(kept)
    finally:
        for home, own in kept:
            home.apply_rotary_pos_emb = own  # type: ignore[attr-defined]


@cache
def _usual_rotary(home: Any) -> bool:
    """Whether the module turns positions as Llama does: halves of the features are the pairs. Tried out."""
    own = getattr(home, "apply_rotary_pos_emb", None)
    if own is None or not home.__name__.startswith("transformers.models."):
        return False
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.rand(1, 2, 3, 8, generator=generator) for _ in range(2))
    cos, sin = (torch.rand(1, 3, 8, generator=generator) for _ in range(2))
    try:
        wanted = own(q, k, cos, sin)
    except Exception:
        # A function of the same name with other arguments.
        return False
    flat_cos, flat_sin = (x.reshape(-1, 8) for x in (cos, sin))
    found = [_turned(x.transpose(1, 2).contiguous().transpose(1, 2), flat_cos, flat_sin, False) for x in (q, k)]
    return len(wanted) == 2 and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, found, strict=True))


@contextmanager
def _row_attention(model: Any) -> Iterator[bool]:
    """Switches the model to attention inside rows; yields whether it can."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    configs = {id(m.config): m.config for m in base.modules() if hasattr(m, "config")}
    if not getattr(base, "_supports_attention_backend", False) and not getattr(base, "_supports_sdpa", False):
        yield False
        return
    attention.register()
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = attention.NAME
        yield True
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


# --- the loss of a language model ------------------------------------------------------------------------------------


class _LabelledLoss(torch.autograd.Function):
    """The weighted cross-entropy of L positions from their hidden states (L, D) and the frozen output layer (V, D).

    The gradient is made in the forward pass, in pieces, so that logits never exist as a whole and are made once.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: Any, targets: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needed = ctx.needs_input_grad[0]
        rows = max(1, LOSS_LOGITS // head.weight.shape[0])
        gradient = torch.empty_like(hidden) if needed else None
        losses = []
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ head.weight.t()
            if head.bias is not None:
                logits += head.bias
            losses.append(kernels.cross_entropy(logits, targets[part], needed))
            if gradient is not None:
                torch.mm(logits, head.weight, out=gradient[part])
        if gradient is not None:
            ctx.save_for_backward(gradient.mul_(weights[:, None].to(gradient.dtype)))
        each = torch.cat(losses) if losses else weights.new_zeros(0)
        ctx.mark_non_differentiable(each)
        return (each * weights).sum(), each

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        assert gradients[0] is not None
        return gradient * gradients[0].to(gradient.dtype), None, None, None


def labelled_loss(
    model: Any, inputs: Mapping[str, torch.Tensor], weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted loss of a language model over its labelled positions.

    Args:
        inputs: input_ids and labels (B, T) and, for rows in one line, position_ids and rows.
        weights: Of each row's losses.

    Returns:
        The weighted sum, the L losses and the row of each, in float32.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    keep, targets, rows = labelled_positions(inputs)
    given = {name: inputs[name] for name in ("input_ids", "position_ids", "attention_mask") if name in inputs}
    head = base.get_output_embeddings()
    hidden = getattr(base, base.base_model_prefix)(**given, use_cache=False).last_hidden_state
    chosen = hidden[keep].to(head.weight.dtype)
    total, losses = _LabelledLoss.apply(chosen, head, targets, weights[rows])  # type: ignore[no-untyped-call]
    return total, losses, rows


def plain_head(model: Any) -> bool:
    """Whether the output layer is a frozen linear layer, so that `labelled_loss` can stand for it."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    linear = type(head) is torch.nn.Linear and not head.weight.requires_grad
    return linear and hasattr(base, base.base_model_prefix) and base.base_model_prefix != ""
