"""From the bytes of a file to pixels, in the one way."""
