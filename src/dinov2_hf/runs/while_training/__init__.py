"""Evaluations, pictures and the best model during a run."""
