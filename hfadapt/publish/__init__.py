"""An adapter for others: exported files, one verified commit."""
