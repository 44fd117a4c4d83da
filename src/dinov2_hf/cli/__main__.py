"""`python -m dinov2_hf.cli`."""

from .main import main


main()
