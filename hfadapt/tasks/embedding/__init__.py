"""Vectors for texts: what belongs together is close together."""
