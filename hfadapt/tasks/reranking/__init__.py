"""How well a text answers a query, both read at once."""
