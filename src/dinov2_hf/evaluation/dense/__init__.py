"""The common parts of segmentation and depth."""
