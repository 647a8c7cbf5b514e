"""Evaluation: the adapter, read back from disk, against its baseline on rows neither has seen."""
