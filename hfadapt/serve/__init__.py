"""Adapters, ready to use: one, or several on one base."""
