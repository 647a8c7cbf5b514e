"""Training: cells from prepared rows to verified adapters on disk, one by one or several on one base."""

from hfadapt.train.cells import train_cell, train_cells
from hfadapt.train.search import search_cell
from hfadapt.train.sharing import can_share, learned_from, take_training

__all__ = ["can_share", "learned_from", "search_cell", "take_training", "train_cell", "train_cells"]
