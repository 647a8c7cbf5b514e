"""Predicted peaks of memory by phase and part."""
