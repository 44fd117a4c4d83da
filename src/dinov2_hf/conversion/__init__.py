"""Converts weights from other layouts to ours and back: the original, transformers' own classes, graphs."""
