"""`dinov2-hf pretrain`."""


def pretrain(*words: str) -> None:
    """Pretrain on images, in one process; for several, use `accelerate launch -m dinov2_hf.examples.pretrain`."""
    from ..examples.pretrain import main

    main(list(words))
