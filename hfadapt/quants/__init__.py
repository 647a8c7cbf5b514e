"""The Quant contract: how the frozen base is stored. One file per name; hfadapt's own go through bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from hfadapt.core import registry

if TYPE_CHECKING:
    import torch

    from hfadapt.hardware.catalogue import Target

PLAIN = "none"
"""The name of no quantisation, for those that ask for it; whether a base is quantised `Quant.quantised` says."""


class Access(Enum):
    """What an adapter method may need of a base's weights W beside W x and its gradient, and a quant may give."""

    TRAIN = "gradients of W"
    CHANGE = "any W is held exactly, so that part of it can be moved elsewhere"
    READ = "peft can read W itself in every step, such as its norm"
    REPAIR = "W differs from the original in blocks of 4 bits of bitsandbytes, and peft's layers know by how much"


Unpack = Callable[["torch.nn.Module", "torch.dtype | None"], "tuple[Callable[[], torch.Tensor], torch.dtype] | None"]


@dataclass(frozen=True)
class Quant:
    """How linear weights are stored.

    Args:
        name: Name in recipes.
        bits: Bits of one stored weight, without its scales; 0 means the base keeps its dtype.
        module_class: Class name of a linear layer after quantisation, checked after loading.
        options: Keyword arguments of `transformers.BitsAndBytesConfig`.
        gives: What adapter methods may do with the weights.
        block: Weights that share a float32 scale; None: those of one output.
        integer_products: Products are made in integers, on a CPU outside training only; else of unpacked weights.
        automatic: Whether plans, and the measurement of merge drift, try it unasked.
        divides: Whether its layers can be divided over processes: weights and scales apart.
        unpack: For training on unpacked weights: of a layer the function that unpacks its weight, (out, in), and to
            which dtype (the one given, else its own); None where the layer multiplies in another way.
    """

    name: str
    bits: int
    module_class: str
    options: dict[str, Any] = field(default_factory=dict)
    gives: frozenset[Access] = frozenset()
    block: int | None = None
    integer_products: bool = False
    automatic: bool = False
    divides: bool = True
    unpack: Unpack | None = None

    config_class = "BitsAndBytesConfig"
    """Class of transformers that `arguments` are for."""

    @property
    def quantised(self) -> bool:
        """Whether weights are held in fewer bits than their dtype has."""
        return self.bits > 0

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts the most exact first: unquantised, then by bits; of as many bits those that plans try."""
        return self.quantised, -self.bits, not self.automatic, self.name

    def storage(self, dtype: str) -> str:
        """What a base is stored in, in a word: this, or its dtype."""
        return self.name if self.quantised else dtype

    def weight_bytes(self, weights: int, outputs: int, element: int) -> int:
        """Bytes of linear layers with their float32 scales.

        Args:
            weights: Number of all weights.
            outputs: Number of all outputs.
            element: Bytes of a weight that is not quantised.
        """
        if not self.quantised:
            return weights * element
        return weights * self.bits // 8 + 4 * (weights // self.block if self.block else outputs)

    def unpacks(self, on_cpu: bool) -> bool:
        """Whether training multiplies with weights that are unpacked for each use."""
        return self.quantised and (on_cpu or not self.integer_products)

    def held_by(self, machine: Target) -> bool:
        """Whether a machine can hold and multiply such weights.

        bitsandbytes 0.50 needs AVX2 on x86, or compute capability 6.0 and more on CUDA; on Metal its kernels would be
        fetched at run time: https://github.com/bitsandbytes-foundation/bitsandbytes#system-requirements
        """
        if not self.quantised:
            return True
        if machine.kind == "cpu":
            x86 = machine.architecture.lower() in ("x86_64", "amd64")
            return not x86 or "avx2" in machine.features
        if machine.kind == "cuda":
            return machine.compute_capability is None or machine.compute_capability >= 6.0
        return machine.kind in ("rocm", "xpu")

    def arguments(self, compute_dtype: torch.dtype, skip: Sequence[str] | None) -> dict[str, Any]:
        """Arguments of `config_class`.

        Args:
            compute_dtype: Of the dequantised product.
            skip: Modules that stay unquantised: heads, and what is trained in full; None leaves that to transformers.
        """
        options = dict(self.options)
        if self.bits == 4:
            # The library's default is float32, which no CPU or GPU multiplies fast (perf: AMX and tensor cores idle).
            options["bnb_4bit_compute_dtype"] = compute_dtype
        if skip is not None:
            options["llm_int8_skip_modules"] = list(skip)
        return options

    def config(self, compute_dtype: torch.dtype, skip: Sequence[str]) -> Any:
        """The `quantization_config` for `from_pretrained`, or None; arguments as of `arguments`."""
        if not self.quantised:
            return None
        import transformers

        return getattr(transformers, self.config_class)(**self.arguments(compute_dtype, skip))


def known() -> list[Quant]:
    """Every quant, the most exact first."""
    return sorted((registry.quant(name) for name in registry.names("quants")), key=lambda quant: quant.order)


def automatic() -> list[Quant]:
    """Quantised storages that plans try unasked, the most exact first."""
    return [quant for quant in known() if quant.quantised and quant.automatic]


def is_quantised(storage: str) -> bool:
    """Whether a base's storage, a dtype or the name of a quant, is a quantised one."""
    return storage in registry.names("quants") and registry.quant(storage).quantised


def of_layer(layer: Any) -> Quant | None:
    """A quant that makes layers of this class and can unpack them, or None."""
    name = type(layer).__name__
    return next((quant for quant in known() if quant.unpack and quant.module_class == name), None)
