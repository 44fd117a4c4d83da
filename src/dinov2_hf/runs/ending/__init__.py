"""The end of a run: weights, card, upload, last messages."""
