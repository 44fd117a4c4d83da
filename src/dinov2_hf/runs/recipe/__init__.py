"""Reads and checks the recipe of a run, and compares it with that of its checkpoint."""
