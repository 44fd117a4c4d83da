"""Figures, grids of pictures, and pictures of a network's features."""
