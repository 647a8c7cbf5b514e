"""The fast path of training: puts the fast parts on a model, and takes them off again.

Every part stands for a module's or function's own forward and gives the same result; what it does not know keeps its
own. Parts: low-rank layers (lowrank.py), attention inside rows (attention.py), norms, gated activations and rotary
positions (elementwise.py), each of which can be left out. The loss on labelled positions is apart (loss.py): the
training loop calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from hfadapt import quants
from hfadapt.adapters import DEFAULT
from hfadapt.fast import attention, compiled, elementwise, fusion
from hfadapt.fast.documents import CURRENT
from hfadapt.fast.lowrank import AdapterWeights, Frozen, Group, Layer, refresh, shared_forwards
from hfadapt.hardware import processor
from hfadapt.hardware.shards import gathered_modules, is_divided

SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Layers of one module that are given the same input; where they are not, each is worked out alone."""
NARROW = ("intermediate.dense", "lin1", "fc1", "wi", "Wi", "Wqkv")
"""With `SHARED_INPUTS`, layers whose results go into attention or an activation and not into the sum of a residual
stream: they stay in the dtype of the products, as under autocast, where the layer that follows is a fast one too."""


@dataclass
class FastPath:
    """The fast parts of one model.

    Args:
        model: The adapted model.
        products: dtype in which frozen float32 weights are multiplied; None keeps theirs.
        adapters: Names of the adapters that are trained.
        resident: Number of quantised layers of which an unpacked copy is kept; -1 keeps all.
        without: Parts that are left to the libraries: low_rank, attention, norms, gates, rotary, first_token. Gated
            activations are part of a low-rank layer.
        compile: Let torch.compile fuse element-wise passes where they have no compiled kernels.
    """

    model: Any
    products: torch.dtype | None = None
    adapters: Sequence[str] = (DEFAULT,)
    resident: int = 0
    without: Collection[str] = ()
    compile: bool = False
    groups: list[Group] = field(default_factory=list)
    norms: int = 0
    gates: int = 0
    rotary: bool = False
    attention: bool = False
    first_token: bool = False

    @contextmanager
    def on(self, *, rows: bool = True, compile: bool = True, first_token: bool = False) -> Iterator[FastPath]:
        """While inside, the model uses the fast parts.

        Args:
            rows: Use attention inside rows; batches must then be announced with `documents.batch`.
            compile: False leaves torch.compile out, whatever `self.compile` says.
            first_token: The head reads the first token of padded rows only, so that the last layer of an encoder works
                out no other; what the model gives then has one token a row.
        """
        with ExitStack() as stack:
            layers = self._layers()
            for group in self._grouped(layers):
                self.groups.append(group)
                for layer, forward in zip(group.layers, shared_forwards(group), strict=True):
                    stack.enter_context(replaced(layer.module, forward))
            self.refresh()
            self._replace_passes(stack)
            if compile and self.compile:
                stack.enter_context(fusion.fusing())
            if len(self.adapters) > 1:
                for module in self.model.modules():
                    if (head := _heads(module, self.adapters)) is not None:
                        stack.enter_context(replaced(module, head))
            if rows and "attention" not in self.without:
                self.attention = stack.enter_context(_row_attention(self.model))
            if first_token and (last := self.last_sum()) is not None:
                stack.enter_context(replaced(last, _of_first_token(last)))
                self.first_token = True
            try:
                yield self
            finally:
                self.groups.clear()
                self.norms = self.gates = 0
                self.rotary = self.attention = self.first_token = False

    def last_sum(self) -> Any:
        """The module behind the attention of an encoder's last layer, after which tokens no longer meet; None where the
        layer is of another kind than BERT's, is not trained, or when this part is left out."""
        if "first_token" in self.without:
            return None
        layers = [module for module in self.model.modules() if _adds_after_attention(module)]
        if not layers or not any(parameter.requires_grad for parameter in layers[-1].parameters()):
            return None
        return layers[-1].attention.output

    def _replace_passes(self, stack: ExitStack) -> None:
        """Norms, gated activations and positions."""
        alone = {id(group.layers[0].module): group for group in self.groups if len(group.layers) == 1}
        # Whether a module's own forward gives the same is tried, so that its weights have to be there.
        for module in gathered_modules(self.model):
            norm = None if "norms" in self.without else elementwise.norm(module)
            gate = None if "gates" in self.without else elementwise.gate(module, alone)
            self.norms += norm is not None
            self.gates += gate is not None
            for fast in (norm, gate):
                if fast is not None:
                    stack.enter_context(replaced(module, fast))
        if "rotary" not in self.without:
            self.rotary = stack.enter_context(elementwise.fast_rotary(self.model))

    def refresh(self) -> None:
        """To be called whenever the trained parameters have changed."""
        refresh(self.groups)

    def summary(self, *, packed: bool, in_pieces: bool) -> str:
        """What is fast, in words."""
        on_cpu = self.model.device.type == "cpu"
        kernels = on_cpu and compiled.passes() is not None
        narrow = any(group.dtype == torch.bfloat16 for group in self.groups)
        parts = {
            f"{self.low_rank_layers} LoRA layers": self.low_rank_layers,
            "attention inside rows": self.attention,
            "packed sequences": packed,
            "loss on labelled positions": in_pieces,
            f"{self.norms} norms": self.norms,
            f"{self.gates} gated activations": self.gates,
            "rotary positions": self.rotary,
            "last layer for the first token": self.first_token,
            "elementwise kernels by torch.compile": any(function.is_compiled for function in fusion.FUSED),
            "compiled kernels": kernels,
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
        for module in self.model.modules() if "low_rank" not in self.without else ():
            layer = _layer(module, self.products, self.adapters, left != 0)
            if layer is not None:
                found.append(layer)
                left -= left != 0 and _is_quantised(module)
        if len(self.adapters) > 1:
            from peft.tuners.lora.layer import LoraLayer

            others = sum(isinstance(module, LoraLayer) for module in self.model.modules()) - len(found)
            if others:
                raise NotImplementedError(f"{others} LoRA layers go through one adapter only")
        return found

    def _grouped(self, layers: list[Layer]) -> list[Group]:
        known = {id(layer.module): layer for layer in layers}
        paths = {id(module): path for path, module in self.model.named_modules()}
        wide = self._wide_blocks(layers)
        groups, taken = [], set()
        for parent in self.model.modules():
            children = dict(parent.named_children())
            for names in SHARED_INPUTS:
                together = [known[id(children[n])] for n in names if n in children and id(children[n]) in known]
                if len(together) == len(names) and _alike(together):
                    path = paths[id(together[0].module)]
                    groups.append(Group(together, _block(path) not in wide, path))
                    taken |= {id(layer.module) for layer in together}
        for layer in layers:
            path = paths[id(layer.module)]
            if id(layer.module) not in taken:
                groups.append(Group([layer], path.endswith(NARROW) and _block(path) not in wide, path))
        return groups

    def _wide_blocks(self, layers: Sequence[Layer]) -> set[str]:
        """Blocks with a linear layer that is none of these: it takes its input in the dtype of its weight."""
        fast = {id(part) for layer in layers for part in layer.module.modules()}
        named = self.model.named_modules()
        return {_block(path) for path, m in named if isinstance(m, torch.nn.Linear) and id(m) not in fast}


def _block(path: str) -> str:
    """The layer of the model that a module is in: its path up to the last number."""
    parts = path.split(".")
    last = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[: last + 1])


def _alike(layers: Sequence[Layer]) -> bool:
    first = layers[0]
    width = first.module.in_features
    return all(
        layer.module.in_features == width
        and layer.frozen.dtype == first.frozen.dtype
        and [(name, each.dropout) for name, each in layer.adapters.items()]
        == [(name, each.dropout) for name, each in first.adapters.items()]
        for layer in layers
    )


@contextmanager
def replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """While inside, a module's forward is this one."""
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
        and all(type(module.lora_dropout[name]) in (torch.nn.Identity, torch.nn.Dropout) for name in names)
    )
    frozen = _frozen(module.get_base_layer(), dtype, resident) if plain else None
    if frozen is None:
        return None
    parts = {
        name: AdapterWeights(
            module.lora_A[name].weight,
            module.lora_B[name].weight,
            float(module.scaling[name]),
            float(getattr(module.lora_dropout[name], "p", 0.0)),
        )
        for name in names
    }
    return Layer(module, frozen, parts)


def _is_quantised(module: Any) -> bool:
    return type(module.get_base_layer()) is not torch.nn.Linear


def _frozen(base: Any, dtype: torch.dtype | None, resident: bool) -> Frozen | None:
    """A float32 weight is copied to the dtype of the products once; a quantised one is unpacked for each use, and one
    that is divided over the processes is there only while its layer runs."""
    if type(base) is torch.nn.Linear:
        kind = dtype or base.weight.dtype
        if is_divided(base.weight):
            return Frozen(lambda: base.weight.detach().to(kind), _bias(base, kind), kind)
        weight = base.weight.detach().to(kind)
        return Frozen(lambda: weight, _bias(base, kind), kind)
    unpack = _unpacked(base, dtype)
    if unpack is None:
        return None
    make, kind = unpack
    if resident and not is_divided(base.weight):
        kept = make()
        return Frozen(lambda: kept, _bias(base, kind), kind)
    return Frozen(make, _bias(base, kind), kind)


def _unpacked(base: Any, dtype: torch.dtype | None) -> tuple[Callable[[], torch.Tensor], torch.dtype] | None:
    """How a quantised layer is unpacked, and to which dtype; None for layers that multiply in another way."""
    if hasattr(base, "unpacked"):  # what stands for it in a trace
        return base.unpacked, base.compute_dtype
    quant = quants.of_layer(base)
    return quant.unpack(base, dtype) if quant and quant.unpack else None


def _bias(base: Any, dtype: torch.dtype) -> torch.Tensor | None:
    return None if base.bias is None else base.bias.detach().to(dtype)


def product_dtype(storage: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 for a base in float32, where the device multiplies it several times faster; else None."""
    if storage != "float32":
        return None
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type == "cpu":
        return torch.bfloat16 if {"amx_bf16", "avx512_bf16"} & set(processor.cpu_features()) else None
    return None


def _heads(module: Any, adapters: Sequence[str]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The forward of a module that every adapter has trained a copy of: rows of a batch go to their own copy."""
    from peft.utils.other import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper) or not set(adapters) <= set(module.modules_to_save):
        return None

    def forward(x: torch.Tensor) -> torch.Tensor:
        documents = CURRENT.documents
        if documents is None:
            return module.modules_to_save[adapters[0]](x)
        parts = [module.modules_to_save[s.adapter](x[s.first_row : s.end_row]) for s in documents.segments]
        return torch.cat(parts)

    return forward


def _adds_after_attention(module: Any) -> bool:
    """Whether a module is a layer as BERT has it: attention, whose last part adds the residual stream, then two parts
    that work on each token alone."""
    parts = dict(module.named_children())
    if set(parts) != {"attention", "intermediate", "output"}:
        return False
    behind = getattr(parts["attention"], "output", None)
    return hasattr(behind, "dense") and hasattr(behind, "LayerNorm")


def _of_first_token(module: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    own = module.forward
    return lambda hidden, residual: own(hidden[:, :1], residual[:, :1])


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
