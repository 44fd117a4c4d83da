"""Numbers of the steps, and checks of the health of a run."""
