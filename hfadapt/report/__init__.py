"""The page, charts and tables of a run."""
