"""Targets, what this machine is, its memory and its processes."""
