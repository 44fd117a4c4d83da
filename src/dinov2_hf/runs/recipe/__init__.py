"""The recipe of a run: read, checked, compared with the one it is resumed with."""
