"""
Groups of ranks for several students: each rank computes one student, on its part of the whole global batch.

Every rank runs the teacher on the images that it loaded. Then crops and the teacher's tokens are exchanged, so that
the ranks of each group together hold the images of all ranks: an image goes to one rank of every group.

Shapes: `B` images of this rank before the exchange, `n = W * B / w` after it, for `W` ranks, `w` of them in the group.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .teachers import TeacherTokens
from .views import Crops


class RankGroups:
    """
    Contiguous ranks for each student, in the given order.

    Every process of the run must construct it, because it creates process groups.

    Args:
        sizes: ranks of each student by name; their sum is the number of all ranks.

    Attributes:
        name: the student of this rank.
        group: the process group of its ranks.
        size: the number of these ranks, `w`.

    Raises:
        `ValueError`: the sum differs from the number of ranks.
    """

    def __init__(self, sizes: Mapping[str, int]):
        self.world_size, self.rank = dist.get_world_size(), dist.get_rank()
        if sum(sizes.values()) != self.world_size:
            raise ValueError(
                f"`num_processes` of the students are {', '.join(map(str, sizes.values()))}, together"
                f" {sum(sizes.values())}, but the run has {self.world_size} processes; the two must be equal."
            )
        self.sizes = dict(sizes)
        self.spans: list[tuple[int, int]] = []  # shares of the global batch: (position in the group, w)
        start = 0
        for name, size in sizes.items():
            ranks = list(range(start, start + size))
            group: Any = dist.new_group(ranks)
            if self.rank in ranks:
                self.name, self.group, self.size = name, group, size
            self.spans += [(position, size) for position in range(size)]
            start += size

    def check_batch_size(self, per_device_batch_size: int) -> None:
        """`ValueError` unless the images of all ranks divide evenly among the ranks of every group."""
        total = per_device_batch_size * self.world_size
        for name, size in self.sizes.items():
            if total % size:
                raise ValueError(
                    f"`per_device_train_batch_size` is {per_device_batch_size}, which makes {total} images over"
                    f" {self.world_size} processes; the {size} processes of the student {name} cannot share them"
                    " evenly."
                )

    def exchange_step(self, crops: Crops, tokens: TeacherTokens) -> tuple[Crops, TeacherTokens]:
        """
        Exchange crops and the teacher's tokens, so that this rank has those of the images that its group assigns to
        it.

        Args:
            crops: crops with the same number of masked patches on every rank, padded. Otherwise the host would wait
                for their number.
        """
        masks = crops.bool_masked_pos.unflatten(0, (len(crops.global_crops), -1))
        global_crops, local_crops, masks, cls, patches = (
            self.exchange(tensor, dim=1)
            for tensor in (crops.global_crops, crops.local_crops, masks, tokens.cls, tokens.patches)
        )
        masks = masks.flatten(0, 1)
        most = len(crops.masked_indices) * self._num_sources(crops.global_crops.shape[1])
        indices, num_masked = positions_of_true(masks.flatten(), most)
        weights = 1 / masks.sum(dim=1)[indices // masks.shape[1]]
        weights = torch.where(torch.arange(most, device=weights.device) < num_masked, weights, 0.0)
        crops = Crops(global_crops, local_crops, masks, indices, weights, num_masked)
        return crops, TeacherTokens(cls, patches)

    def output_of_all_ranks(
        self, own: Mapping[str, torch.Tensor], students: Mapping[str, nn.Module]
    ) -> dict[str, torch.Tensor]:
        """
        The output of this rank's student, scaled so that means over all ranks equal means over the ranks of each
        student, also for gradients. For the other students it contains zeros, and features that do not count.
        """
        factor = len(self) / self.size
        output = {}
        for name, student in students.items():
            for key, value in own.items():
                key = key.removeprefix(f"{self.name}/")
                if key.endswith("_features"):  # the same number on every rank
                    num_images, width = len(value) * self.size // len(self), student.backbone.config.hidden_size
                    missing = value.new_full((num_images, width), torch.nan)
                    output[f"{name}/{key}"] = value[:num_images] if name == self.name else missing
                else:
                    output[f"{name}/{key}"] = value * factor if name == self.name else torch.zeros_like(value).detach()
        # DDP waits for the gradient of every parameter.
        others = (student for name, student in students.items() if name != self.name)
        idle = (parameter for student in others for parameter in student.parameters() if parameter.requires_grad)
        output["loss"] = output[f"{self.name}/loss"] + sum(0 * parameter.sum() for parameter in idle)
        return output

    def exchange(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """
        Exchange the images of this rank for those that its group assigns to it.

        Args:
            tensor: a tensor with the same shape on every rank, and with `B` images in dimension `dim`.

        Returns:
            The same with `n` images, in the order of the global batch (rank after rank).
        """
        images = tensor.movedim(dim, 0).contiguous()
        per_rank = len(images)
        first = self.rank * per_rank
        outgoing = [self._overlap(first, first + per_rank, *self._span(other, per_rank)) for other in range(len(self))]
        own = self._span(self.rank, per_rank)
        incoming = [self._overlap(*own, other * per_rank, (other + 1) * per_rank) for other in range(len(self))]
        send = torch.cat([images[start - first : stop - first] for start, stop in outgoing])
        received = images.new_empty(own[1] - own[0], *images.shape[1:])
        dist.all_to_all_single(
            received, send, [stop - start for start, stop in incoming], [stop - start for start, stop in outgoing]
        )
        return received.movedim(0, dim)

    def __len__(self) -> int:
        return self.world_size

    def _num_sources(self, per_rank: int) -> int:
        """The number of ranks that this rank gets images from."""
        start, stop = self._span(self.rank, per_rank)
        return (stop - 1) // per_rank - start // per_rank + 1

    def _span(self, rank: int, per_rank: int) -> tuple[int, int]:
        """The first image of the global batch that `rank` computes, and the one after its last."""
        position, size = self.spans[rank]
        share = self.world_size * per_rank // size
        return position * share, (position + 1) * share

    @staticmethod
    def _overlap(start: int, stop: int, other_start: int, other_stop: int) -> tuple[int, int]:
        first = max(start, other_start)
        return first, max(first, min(stop, other_stop))


def positions_of_true(flags: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    `flags.nonzero()` without making the host wait.

    Args:
        flags: `(n,)` booleans, of which at most `most` are true.

    Returns:
        `(most,)` positions, ascending, then zeros; and how many there are, a scalar.
    """
    order = flags.cumsum(dim=0)
    # False entries go to one extra position, which is cut off.
    place = torch.where(flags, order - 1, most)
    positions = torch.arange(len(flags), device=flags.device)
    found = positions.new_zeros(most + 1).scatter_(0, place, positions)
    return found[:most], order[-1]
