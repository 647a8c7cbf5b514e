"""Metrics of rows, of texts, and of modules."""
