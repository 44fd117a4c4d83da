"""Steps whose loss or gradient is not finite: found on all processes, left out, kept to be taken again."""
