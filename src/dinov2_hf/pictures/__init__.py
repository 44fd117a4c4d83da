"""What people look at: figures, grids, and what a network sees."""
