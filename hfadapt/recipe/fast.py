"""Which parts of a training step are hfadapt's own: the recipe's `train.fast`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from hfadapt.core.spec import Section
from hfadapt.recipe.names import AUTO, Auto, Switch


class Fast(Section):
    """hfadapt's own path for the passes of a step; what is left out is the libraries' own, `false` leaves out all."""

    low_rank: bool = True
    """Low-rank layers that share an input run as one function (all low-rank adapters but dora; dropout too)."""
    attention: bool = True
    """Attention inside rows; without it none are packed."""
    norms: bool = True
    """Compiled normalisation layers."""
    gates: bool = True
    """Gated activations, as part of a LoRA layer."""
    rotary: bool = True
    """Compiled rotary positions."""
    first_token: bool = True
    """The last layer of an encoder of BERT's kind works out the first token alone, where the head reads no other."""
    loss: bool = True
    """Logits of labelled positions only, in pieces.

    Cost: without it the logits of all positions lie in memory.
    """
    bfloat16: bool = True
    """Products of a float32 base in bfloat16, where the device multiplies it several times faster."""
    compile: bool | Auto = AUTO
    """torch.compile for passes without kernels.

    Auto: the plan: on GPUs, where it saves more time in all steps than compiling takes.
    Cost: compiling takes time before the first step.
    """
    frozen_cache: bool | Auto = AUTO
    """Layers below the first trained one run once for each row; their outputs are kept on disk meanwhile.

    Auto: the plan, where rows are met in several epochs and nothing changes them.
    Cost: disk, for as long as training lasts.
    """

    @property
    def without(self) -> tuple[str, ...]:
        """The parts that are left to the libraries."""
        return tuple(name for name in FAST_PARTS if not getattr(self, name))

    @property
    def used(self) -> bool:
        """Whether anything is hfadapt's own."""
        return self.compile is True or len(self.without) < len(FAST_PARTS)


FAST_PARTS = ("low_rank", "attention", "norms", "gates", "rotary", "first_token", "loss")


def fast_parts(value: Any) -> Any:
    """The settings that `true` and `false` stand for; anything else as it is."""
    if not isinstance(value, bool):
        return value
    return {} if value else dict.fromkeys((*FAST_PARTS, "bfloat16", "compile", "frozen_cache"), False)


AnyFast = Annotated[Fast, BeforeValidator(fast_parts, json_schema_input_type=Fast | Switch)]
