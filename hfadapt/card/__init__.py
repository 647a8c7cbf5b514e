"""The model card: built from records, every number checked against them."""
