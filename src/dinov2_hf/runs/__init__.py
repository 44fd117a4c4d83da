"""A run from recipe to upload."""
