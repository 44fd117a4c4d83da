"""Checkpoints are written whole, checked and read back."""
