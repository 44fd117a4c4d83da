"""Several processes: backends, sharded weights, shared files."""
