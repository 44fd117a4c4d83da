"""Checkpoints: written whole, checked, read back."""
