"""`dinov2-hf distill`."""


def distill(*words: str) -> None:
    """Distil a large model into a small one; for several: `accelerate launch -m dinov2_hf.examples.distill`."""
    from ..examples.distill import main

    main(list(words))
