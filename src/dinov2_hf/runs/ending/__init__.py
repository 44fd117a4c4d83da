"""What a run leaves: weights, card, upload, its last words."""
