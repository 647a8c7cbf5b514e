"""Training: one cell from prepared rows to a verified adapter on disk."""

from hfadapt.train.stage import train_cell

__all__ = ["train_cell"]
