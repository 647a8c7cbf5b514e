"""One label per word."""
