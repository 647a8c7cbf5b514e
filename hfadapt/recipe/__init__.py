"""What a user can ask for, and how a recipe is read: all problems at once."""
