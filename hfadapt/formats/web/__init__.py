"""A page that asks the model in the reader's own browser."""
