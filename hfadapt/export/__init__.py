"""Export: an adapter leaves its run in a format, is opened again and judged there, and described."""
