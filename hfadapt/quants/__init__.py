"""The Quant contract: how the frozen base is stored. One file per name; all go through bitsandbytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quant:
    """How linear weights are stored.

    Args:
        name: Name in recipes.
        bits: Bits of one stored weight, without its scales; 0 means the base keeps its dtype.
        module_class: Class name of a linear layer after quantisation, checked after loading.
        options: Keyword arguments of `transformers.BitsAndBytesConfig`.
    """

    name: str
    bits: int
    module_class: str
    options: dict[str, Any]

    def config(self, compute_dtype: Any, skip: Sequence[str]) -> Any:
        """The `quantization_config` for `from_pretrained`, or None.

        Args:
            compute_dtype: torch dtype of the dequantised product.
            skip: Modules that stay unquantised: heads, and what is trained in full.
        """
        if not self.bits:
            return None
        from transformers import BitsAndBytesConfig

        options = dict(self.options, llm_int8_skip_modules=list(skip))
        if self.bits == 4:
            # The library's default is float32, which no CPU or GPU multiplies fast (perf: AMX and tensor cores idle).
            options["bnb_4bit_compute_dtype"] = compute_dtype
        return BitsAndBytesConfig(**options)
