"""Any number of classes for each text."""
