"""Data sets from where people keep them, undecoded."""
