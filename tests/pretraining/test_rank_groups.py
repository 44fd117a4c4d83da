"""Which rank computes which student, and which images: without processes, by what each would send and get."""

import random

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from dinov2_hf.data.masking import draw_masks, most_masked
from dinov2_hf.pretraining.rank_groups import RankGroups, positions_of_true
from dinov2_hf.pretraining.teachers import TeacherTokens
from dinov2_hf.pretraining.views import Crops


@pytest.fixture
def ranks(monkeypatch):
    """`RankGroups` as the given rank of a world makes it; exchanges are put together by `deliver`."""

    def of_rank(rank: int, world_size: int, sizes: dict[str, int]) -> RankGroups:
        monkeypatch.setattr(dist, "get_world_size", lambda *_: world_size)
        monkeypatch.setattr(dist, "get_rank", lambda *_: rank)
        monkeypatch.setattr(dist, "new_group", tuple)
        return RankGroups(sizes)

    return of_rank


def deliver(monkeypatch, groups: list[RankGroups], tensors: list[torch.Tensor], dim: int) -> list[torch.Tensor]:
    """All ranks' exchanges, by an all-to-all of lists."""
    sent, results = {}, []
    for phase in ("send", "receive"):
        for own in groups:

            def all_to_all(received, send, incoming, outgoing, own=own, phase=phase):
                if phase == "send":
                    sent[own.rank] = send.split(outgoing)
                else:
                    parts = [sent[other][own.rank] for other in range(len(groups))]
                    assert [len(part) for part in parts] == incoming
                    received.copy_(torch.cat(parts))

            monkeypatch.setattr(dist, "all_to_all_single", all_to_all)
            result = own.exchange(tensors[own.rank], dim)
            if phase == "receive":
                results.append(result)
    return results


@pytest.mark.parametrize("sizes", [{"a": 1, "b": 3}, {"a": 2, "b": 2}, {"a": 4}, {"a": 1, "b": 1, "c": 2}])
def test_the_ranks_of_each_student_hold_the_global_batch_in_order(ranks, monkeypatch, sizes):
    groups = [ranks(rank, 4, sizes) for rank in range(4)]
    per_rank = 6
    crops = torch.arange(2 * 4 * per_rank * 3).view(2, 4 * per_rank, 3)  # (G, images, ...)
    results = deliver(monkeypatch, groups, list(crops.split(per_rank, dim=1)), dim=1)
    for name in sizes:
        ours = [result for own, result in zip(groups, results, strict=True) if own.name == name]
        assert len(ours) == sizes[name]
        assert torch.equal(torch.cat(ours, dim=1), crops)
        assert len({part.shape for part in ours}) == 1
    for own, result in zip(groups, results, strict=True):
        sources = {int(image) // 3 // per_rank for image in result[0, :, 0]}
        assert own._num_sources(per_rank) == len(sources)


def test_ranks_are_contiguous(ranks):
    groups = [ranks(rank, 4, {"a": 1, "b": 3}) for rank in range(4)]
    assert [(own.name, own.size, own.group) for own in groups] == [("a", 1, (0,))] + [("b", 3, (1, 2, 3))] * 3


def test_sizes_that_do_not_fit_are_one_sentence(ranks):
    with pytest.raises(ValueError, match="are 2, 1, together 3, but the run has 2 processes"):
        ranks(0, 2, {"a": 2, "b": 1})
    with pytest.raises(ValueError, match="makes 8 images over 4 processes; the 3 processes of the student b"):
        ranks(0, 4, {"a": 1, "b": 3}).check_batch_size(2)


def test_masked_patches_of_exchanged_images_are_told_as_the_collator_tells_them(ranks, monkeypatch):
    """A rank that is alone gets what it had: patches in their order, their weights, and the padding."""
    monkeypatch.setattr(dist, "all_to_all_single", lambda received, sent, *_: received.copy_(sent))
    masks = draw_masks(8, (4, 4), rng=random.Random(0))
    masked = masks.flatten().nonzero().squeeze(1)
    weights = (1 / masks.sum(dim=1, keepdim=True)).expand_as(masks)[masks]
    padding = (0, most_masked(8, 16) - len(masked))
    assert padding[1] > 0
    indices, weights = F.pad(masked, padding), F.pad(weights, padding)
    pixels = torch.zeros(2, 4, 3, 8, 8)
    crops = Crops(pixels, pixels, masks, indices, weights, torch.tensor(len(masked)))
    found, _ = ranks(0, 1, {"a": 1}).exchange_step(crops, TeacherTokens(pixels[..., 0, 0], pixels))
    assert torch.equal(found.bool_masked_pos, masks)
    assert torch.equal(found.masked_indices, indices)
    assert torch.equal(found.masked_weights, weights)
    assert found.is_counted.sum() == len(masked)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_positions_are_those_of_nonzero(share):
    flags = torch.rand(50, generator=torch.Generator().manual_seed(0)) < share
    positions, number = positions_of_true(flags, 50)
    wanted = flags.nonzero().squeeze(1)
    assert number == len(wanted)
    assert torch.equal(positions[:number], wanted)
    assert not positions[number:].any()
