"""The task audio-classification."""
