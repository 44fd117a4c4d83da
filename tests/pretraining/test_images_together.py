"""Groups of images over ranks: two processes have the loss and, averaged over ranks, the gradient of one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dinov2_hf.pretraining.images_together import check_group_size, in_groups
from dinov2_hf.pretraining.losses import kde_loss, koleo_loss

from .test_losses import waves


GROUP_SIZES = (0, 2, 4, 6)  # of 12 images on 2 ranks: all, 3 on each, 3 of which one lies on both, 1 on each
LOSSES = (lambda groups: koleo_loss(groups, 1), lambda groups: kde_loss(groups, 5.0))


def losses_and_gradients(images: torch.Tensor, group_size: int) -> list[torch.Tensor]:
    """Of a linear network, whose weights are all ones."""
    found = []
    for loss_of in LOSSES:
        weights = torch.ones(5, 4).tril().requires_grad_()
        loss = loss_of(in_groups(torch.stack([images @ weights, images.sin() @ weights]), group_size))
        loss.backward()
        found += [loss.detach().reshape(1), weights.grad.flatten()]
    return found


def half_of_the_images(rank: int, port: int, results) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    images = waves(12, 5, 0.7, 1.3, 0.11).chunk(2)[rank]
    answer = []
    for group_size in GROUP_SIZES:
        means = losses_and_gradients(images, group_size)
        for mean in means:
            dist.all_reduce(mean)
        answer.append([(mean / 2).tolist() for mean in means])
    results.put(answer)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(free_port):
    context = mp.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=half_of_the_images, args=(rank, free_port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    for answer in answers:
        for group_size, found in zip(GROUP_SIZES, answer, strict=True):
            expected = losses_and_gradients(waves(12, 5, 0.7, 1.3, 0.11), group_size)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(torch.tensor(one), other, rtol=1e-4, atol=1e-5)


def test_a_process_alone():
    features = torch.randn(2, 6, 3)
    assert torch.equal(in_groups(features, None), features)
    assert torch.equal(in_groups(features, 0), features)
    assert torch.equal(in_groups(features, 2), features.view(6, 2, 3))


def test_groups_that_do_not_divide_the_images_are_refused():
    with pytest.raises(ValueError, match="`koleo_group_size` is 4, which does not divide the 6 images"):
        check_group_size(4, 6, "koleo_group_size")
    with pytest.raises(ValueError, match="which does not divide the 6 images"):
        in_groups(torch.randn(2, 6, 3), 4)
