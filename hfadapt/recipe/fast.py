"""Which parts of a training step are hfadapt's own: the recipe's `train.fast`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from hfadapt.core.spec import Spec
from hfadapt.recipe.names import AUTO, Auto


class Fast(Spec):
    """hfadapt's own path for the passes of a step; what is left out is the libraries' own.

    Parts: `low_rank` layers that share an input as one function (all low-rank adapters but dora; dropout too),
    `attention` inside rows (without it none are packed), `norms`, `gates` (gated activations, as part of a low-rank
    layer), `rotary` positions, `loss` on labelled positions in pieces. `bfloat16`: products of a float32 base in
    bfloat16 where the device multiplies it several times faster. `compile`: torch.compile for passes without kernels.
    `frozen_cache`: layers below the first trained one run once for each row; their outputs are kept on disk meanwhile.
    """

    low_rank: bool = True
    attention: bool = True
    norms: bool = True
    gates: bool = True
    rotary: bool = True
    loss: bool = True
    bfloat16: bool = True
    compile: bool | Auto = AUTO
    frozen_cache: bool | Auto = AUTO

    @property
    def without(self) -> tuple[str, ...]:
        """The parts that are left to the libraries."""
        return tuple(name for name in FAST_PARTS if not getattr(self, name))

    @property
    def used(self) -> bool:
        """Whether anything is hfadapt's own."""
        return self.compile is True or len(self.without) < len(FAST_PARTS)


FAST_PARTS = ("low_rank", "attention", "norms", "gates", "rotary", "loss")


def fast_parts(value: Any) -> Any:
    """The settings that `true` and `false` stand for; anything else as it is."""
    if not isinstance(value, bool):
        return value
    return {} if value else dict.fromkeys((*FAST_PARTS, "bfloat16", "compile", "frozen_cache"), False)


AnyFast = Annotated[Fast, BeforeValidator(fast_parts)]
