"""The order of several data sets: each position is a row of one of them, as often as its weight says."""

from .reading.mixed_images import MixedImages
from .sample_order import SAMPLE_ORDERS, Passes
from .weighted_turns import WeightedTurns


class Mixture:
    """Rows of several data sets. Each has its own passes, in the order of the recipe; `WeightedTurns` gives the turns.

    Args:
        images: the data sets.
        order: one of `SAMPLE_ORDERS`, or "package.module:function"; not an order `per_process`.
        seed: the run's seed.
        batch_images: images of a forward pass, over all processes.
        images_per_turn: consecutive images from the same data set: 1, or those of a step.

    Raises:
        ValueError: the order does not work for several data sets, a weight is too small, or a batch would contain an
            image twice.
    """

    def __init__(self, images: MixedImages, order: str, *, seed: int, batch_images: int, images_per_turn: int = 1):
        named = SAMPLE_ORDERS.named(order)
        if named.facts.get("per_process"):
            raise ValueError(
                f"sample_order is {order!r}, which deals the rows of one data set out to processes, but train_data are"
                f" {len(images.parts)}; use another order."
            )
        self.turns = WeightedTurns(images.weights, seed, images_per_turn)
        self.passes, self.starts, start = [], [], 0
        for number, (part, weight) in enumerate(zip(images.parts, images.weights, strict=True)):
            share = 1 if images_per_turn > 1 else weight / sum(images.weights)
            if share * batch_images > len(part):
                raise ValueError(
                    f"number {number + 1} of train_data has {len(part)} images, but a batch of all processes would"
                    f" have {share * batch_images:g} of it, some of them twice; use a smaller batch, a smaller weight"
                    " or more images."
                )
            self.passes.append(Passes(named.object, part, name=order, rows_per_pass=len(part), seed=seed + number))
            self.starts.append(start)
            start += len(part)

    def at(self, position: int) -> int:
        """The row at a position, numbered over all data sets one after the other."""
        member, index = self.turns.at(position)
        return self.starts[member] + self.passes[member].at(index)
