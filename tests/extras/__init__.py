"""A package that adds to hfadapt one of each kind of thing: a task, a row schema, an adapter method, a quant, a format,
an objective and a stage. `installed/` holds what pip would have written."""
