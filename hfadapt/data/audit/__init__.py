"""What training will really see, checked before step 1."""
