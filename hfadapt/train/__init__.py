"""Training: cells from prepared rows to verified adapters on disk, one by one or several on one base."""

from hfadapt.train.cells import can_share, train_cell, train_cells

__all__ = ["can_share", "train_cell", "train_cells"]
