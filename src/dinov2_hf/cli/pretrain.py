"""`dinov2-hf pretrain`."""


def pretrain(*words: str) -> None:
    """Pretrain on images, in one process; `accelerate launch -m dinov2_hf.examples.pretrain` is for several."""
    from ..examples.pretrain import main

    main(list(words))
