"""A number for each sound."""
