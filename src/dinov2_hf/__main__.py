"""`python -m dinov2_hf`."""

from dinov2_hf_command import main


main()
