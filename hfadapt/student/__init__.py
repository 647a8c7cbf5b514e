"""A smaller model of the adapted one: its shape is cut, and it learns again from the adapted model's answers."""
