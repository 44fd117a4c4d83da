"""`dinov2-hf pretrain`."""


def pretrain(arguments: list[str]) -> None:
    """Pretrain on images, in one process; `accelerate launch -m dinov2_hf.examples.pretrain` is for several."""
    from ..examples.pretrain import main

    main(arguments)
