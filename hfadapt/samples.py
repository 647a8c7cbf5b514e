"""Sample models and data that PyPI packages carry, so that the first run needs no Hub."""
