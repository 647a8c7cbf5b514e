"""The fast path of training: the plain path's results, several times faster.

documents (which tokens belong together), kernels (element-wise passes), attention, lowrank, path (puts them on).
"""

from hfadapt.fast.documents import Documents, batch, one_line, side_by_side
from hfadapt.fast.path import FastPath, labelled_loss, plain_head, product_dtype

__all__ = [
    "Documents",
    "FastPath",
    "batch",
    "labelled_loss",
    "one_line",
    "plain_head",
    "product_dtype",
    "side_by_side",
]
