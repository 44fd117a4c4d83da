"""Which rank computes which student, and which images: without processes, by what each would send and get."""

import pytest
import torch
import torch.distributed as dist

from dinov2_hf.pretraining.rank_groups import RankGroups


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


def test_ranks_are_contiguous(ranks):
    groups = [ranks(rank, 4, {"a": 1, "b": 3}) for rank in range(4)]
    assert [(own.name, own.size, own.group) for own in groups] == [("a", 1, (0,))] + [("b", 3, (1, 2, 3))] * 3


def test_sizes_that_do_not_fit_are_one_sentence(ranks):
    with pytest.raises(ValueError, match="are 2, 1, together 3, but the run has 2 processes"):
        ranks(0, 2, {"a": 2, "b": 1})
    with pytest.raises(ValueError, match="makes 8 images over 4 processes; the 3 processes of the student b"):
        ranks(0, 4, {"a": 1, "b": 3}).check_batch_size(2)
