"""Any number of classes for each sound."""
