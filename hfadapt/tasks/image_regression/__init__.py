"""A number for each image."""
