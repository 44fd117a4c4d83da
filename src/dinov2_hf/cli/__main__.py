"""`python -m dinov2_hf.cli`."""

from . import main


main()
