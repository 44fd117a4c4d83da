"""Numbers of the steps, and what they say of the health of a run."""
