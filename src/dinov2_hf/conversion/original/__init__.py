"""The files of the original implementation: from them, and to them."""
