"""Decodes the bytes of files to pixels, in the same way for the whole package."""
