"""One frozen, versioned type for each file that a stage writes."""
