"""Runs, from the recipe to the upload."""
