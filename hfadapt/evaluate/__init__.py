"""Evaluation: the adapter, read back from disk, against its baseline on rows neither has seen."""

from hfadapt.evaluate.cell import evaluate_cell

__all__ = ["evaluate_cell"]
