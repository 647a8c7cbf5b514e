"""What everything stands on: errors, the registry, tables, progress, samples."""
