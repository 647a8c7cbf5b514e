"""The stages of a recipe, for every domain on every target."""
