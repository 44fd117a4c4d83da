"""Weights from other layouts to ours and back: the original implementation, transformers' own classes, graphs."""
