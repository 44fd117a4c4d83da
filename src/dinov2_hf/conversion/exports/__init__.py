"""Forms of a model that need no dinov2_hf, each checked when it is written."""
