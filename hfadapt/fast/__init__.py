"""The fast path of training: the plain path's results, several times faster.

documents (which tokens belong together), kernels (element-wise passes) and elementwise (the modules they stand for),
attention, lowrank and dropout, loss, path (puts them on).
"""

from hfadapt.fast.documents import Documents, batch, packed_rows, padded_rows
from hfadapt.fast.dropout import row_seed
from hfadapt.fast.loss import labelled_loss, plain_head
from hfadapt.fast.path import FastPath, product_dtype, replaced

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
]
