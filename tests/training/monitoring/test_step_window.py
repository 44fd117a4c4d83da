"""Averages between two log lines."""

import pytest
import torch

from dinov2_hf.training.monitoring.step_window import StepWindow, format_progress


CPU = torch.device("cpu")


def test_means_and_rates():
    window = StepWindow()
    for loss in (1.0, 2.0, 6.0):
        window.add({"loss": torch.tensor(loss, requires_grad=True)}, num_images=4)
        window.end_step()
        window.decide(left_out=False)
    assert window.means()["loss"].item() == pytest.approx(3.0)
    assert not window.means()["loss"].requires_grad
    window.add_wait(0.5)
    window.started -= 2.0  # as if two seconds had gone by
    rates = window.rates(CPU)
    assert rates["images_per_second"] == pytest.approx(6.0, rel=0.1)
    assert rates["data_wait_share"] == pytest.approx(0.25, rel=0.1)
    window.restart()
    assert window.num_images == 0
    assert window.rates(CPU)["data_wait_share"] == 0


def test_a_step_that_is_left_out_does_not_count_in_the_means():
    window = StepWindow()
    for losses, left_out in (((1.0, torch.nan), True), ((1.0, 2.0), False), ((6.0, torch.inf), True), ((4.0,), False)):
        for loss in losses:
            window.add({"loss": torch.tensor(loss)}, num_images=4)
        window.end_step()
        window.decide(left_out=left_out)
    assert window.means()["loss"].item() == pytest.approx((1 + 2 + 4) / 3)
    assert window.num_images == 7 * 4
    window.restart()
    window.add({"loss": torch.tensor(torch.nan)}, num_images=4)
    window.end_step()
    assert window.means() == {}
    window.decide(left_out=True)
    assert window.means()["loss"].isnan()


def test_a_line_with_every_part():
    metrics = {"loss": 3.5, "ibot_loss": 1.25, "target_entropy": 4.0}
    rates = {"images_per_second": 123.4, "data_wait_share": 0.01}
    assert format_progress(metrics, rates) == " loss 3.500 (ibot 1.250) entropy 4.00, 123 images/s"
    rates |= {"data_wait_share": 0.25, "mfu": 0.414, "peak_memory_gib": 33.14}
    line = format_progress(metrics, rates)
    assert line.endswith(" 123 images/s, 41% of peak, 33.1 GiB, 25% waiting for data")


def test_the_share_of_the_peak_counts_numbers_and_what_the_device_holds():
    """2e9 operations in 2 seconds of a device that could do 4e9 in each; without a peak there is no share."""
    window = StepWindow(peak_flops=4e9)
    window.add_flops(1_500_000_000)
    window.add_flops(torch.tensor(500_000_000))
    window.started -= 2.0
    rates = window.rates(CPU)
    assert rates["mfu"] == pytest.approx(0.25, rel=0.1)
    assert "peak_memory_gib" not in rates
    window.restart()
    assert window.rates(CPU)["mfu"] == 0
    assert "mfu" not in StepWindow().rates(CPU)
