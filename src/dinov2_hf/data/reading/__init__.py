"""Loads data sets from their places, undecoded."""
