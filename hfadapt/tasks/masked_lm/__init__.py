"""Hidden words of plain text."""
