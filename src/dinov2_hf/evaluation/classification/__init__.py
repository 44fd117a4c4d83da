"""The common parts of the classification protocols."""
