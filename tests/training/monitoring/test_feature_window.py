"""The numbers of a log line: over several steps, over several processes, and never in the sums of the losses."""

import math

import pytest
import torch
import torch.multiprocessing as mp
from accelerate import Accelerator

from dinov2_hf.training.monitoring.feature_statistics import effective_rank, mean_pair_cosine
from dinov2_hf.training.monitoring.feature_window import FeatureWindow
from dinov2_hf.training.monitoring.step_window import StepWindow


def passes(num_passes: int, num_images: int = 8, num_prototypes: int = 12) -> list[dict[str, torch.Tensor]]:
    """What as many forward passes of a model hand over."""
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for _ in range(num_passes):
        targets = torch.softmax(3 * torch.randn(num_images, num_prototypes, generator=generator), dim=-1)
        outputs.append(
            {
                "loss": torch.tensor(2.0),
                "targets": targets,
                "mean_target": targets.mean(dim=0),
                "target_entropy": torch.special.entr(targets).sum(-1).mean(),
                "cls_features": torch.randn(num_images, 5, generator=generator) + 1,
                "patch_features": torch.randn(num_images, 5, generator=generator),
            }
        )
    return outputs


def expected(outputs: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    cls, patches, targets = (
        torch.cat([output[name] for output in outputs]) for name in ("cls_features", "patch_features", "targets")
    )
    # The mutual information of image and prototype, by its definition: sum p(i, k) ln(p(i, k) / (p(i) p(k))).
    joint = targets.double() / len(targets)
    independent = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    mean = targets.mean(0)
    return {
        "cls_effective_rank": effective_rank(cls).item(),
        "cls_pair_cosine": mean_pair_cosine(cls).item(),
        "patch_effective_rank": effective_rank(patches).item(),
        "patch_pair_cosine": mean_pair_cosine(patches).item(),
        "prototypes_in_use": math.exp(-(mean * mean.log()).sum()),
        "target_information": (joint * (joint / independent).log()).sum().item(),
    }


def test_statistics_of_several_passes():
    window, outputs = FeatureWindow(), passes(3)
    for output in outputs:
        window.add(output)
    statistics = {name: value.item() for name, value in window.statistics(Accelerator(cpu=True)).items()}
    assert statistics == pytest.approx(expected(outputs), rel=1e-4)


def test_the_latest_features_and_no_more_than_needed():
    window, outputs = FeatureWindow(num_features=20), passes(9)
    for output in outputs:
        window.add(output)
        assert sum(map(len, window.features["cls"])) <= 24
    latest = torch.cat([output["cls_features"] for output in outputs])[-20:]
    statistics = window.statistics(Accelerator(cpu=True))
    assert statistics["cls_effective_rank"].item() == pytest.approx(effective_rank(latest).item(), rel=1e-4)
    # Targets are summed, not kept: they are of every pass.
    assert statistics["prototypes_in_use"].item() == pytest.approx(expected(outputs)["prototypes_in_use"], rel=1e-4)


def test_targets_that_tell_nothing_have_no_information():
    for target in (torch.full((16,), 1 / 16), torch.eye(16)[3], torch.arange(16) / 120):
        window = FeatureWindow()
        window.add({"mean_target": target, "target_entropy": torch.special.entr(target).sum()})
        statistics = window.statistics(Accelerator(cpu=True))
        assert set(statistics) == {"prototypes_in_use", "target_information"}
        assert statistics["target_information"].item() == pytest.approx(0, abs=1e-6)


def test_a_broken_row_does_not_hide_the_others():
    window, (output,) = FeatureWindow(), passes(1)
    poisoned = torch.cat([output["cls_features"], torch.full((2, 5), torch.nan)])
    window.add({"cls_features": poisoned})
    rank = window.statistics(Accelerator(cpu=True))["cls_effective_rank"]
    assert rank.item() == pytest.approx(effective_rank(output["cls_features"]).item(), rel=1e-4)


def test_losses_are_summed_and_vectors_are_not():
    window = StepWindow()
    for output in passes(2):
        window.add(output, num_images=8)
    window.end_step()
    window.decide(left_out=False)
    assert set(window.means()) == {"loss", "target_entropy"}
    assert "cls_effective_rank" in window.feature_statistics(Accelerator(cpu=True))
    window.restart()
    assert window.feature_statistics(Accelerator(cpu=True)) == {}


def statistics_of_one_process(rank: int, port: int, folder: str) -> None:
    import os

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    accelerator, window = Accelerator(cpu=True), FeatureWindow()
    assert accelerator.num_processes == 2
    for output in passes(4)[rank::2]:
        window.add(output)
    torch.save(window.statistics(accelerator), f"{folder}/{rank}.pt")
    accelerator.end_training()


@pytest.mark.slow
def test_two_processes_see_the_features_of_both(tmp_path, free_port):
    mp.spawn(statistics_of_one_process, (free_port, str(tmp_path)), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one == other
    assert {name: value.item() for name, value in one.items()} == pytest.approx(expected(passes(4)), rel=1e-4)
