"""Several processes: backends, sharded weights, files that they share."""
