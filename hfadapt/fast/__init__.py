"""The fast path of training: the plain path's results, several times faster.

documents (which tokens belong together), kernels (element-wise passes) and elementwise (the modules they stand for),
attention, lowrank and dropout, loss, path (puts them on).
"""

from hfadapt.fast.documents import Documents, batch, one_line, side_by_side
from hfadapt.fast.dropout import row_seed
from hfadapt.fast.loss import labelled_loss, plain_head
from hfadapt.fast.path import FastPath, product_dtype, replaced

__all__ = [
    "Documents",
    "FastPath",
    "batch",
    "labelled_loss",
    "one_line",
    "plain_head",
    "product_dtype",
    "replaced",
    "row_seed",
    "side_by_side",
]
