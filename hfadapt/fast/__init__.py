"""The fast path of training: the plain path's results, several times faster.

documents (which tokens belong together), kernels (element-wise passes) and elementwise (the modules they stand for),
attention, lowrank and dropout, loss, path (puts them on). For scores alone: wide (bfloat16 where there are no units).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfadapt.fast.documents import Documents, batch, packed_rows, padded_rows
    from hfadapt.fast.dropout import row_seed
    from hfadapt.fast.loss import labelled_loss, plain_head
    from hfadapt.fast.path import FastPath, product_dtype, replaced
    from hfadapt.fast.wide import wide_products

__all__ = [
    "Documents",
    "FastPath",
    "batch",
    "labelled_loss",
    "packed_rows",
    "padded_rows",
    "plain_head",
    "product_dtype",
    "replaced",
    "row_seed",
    "wide_products",
]

PLACES = {
    "documents": ("Documents", "batch", "packed_rows", "padded_rows"),
    "dropout": ("row_seed",),
    "loss": ("labelled_loss", "plain_head"),
    "path": ("FastPath", "product_dtype", "replaced"),
    "wide": ("wide_products",),
}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: a plan reads `limits` and needs no torch."""
    for module, names in PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
