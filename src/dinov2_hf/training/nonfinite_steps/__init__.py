"""Steps whose loss or gradient is not finite: they are found on all processes, left out, and saved for a replay."""
