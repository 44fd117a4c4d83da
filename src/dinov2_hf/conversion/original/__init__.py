"""Converts from and to files of the original implementation."""
