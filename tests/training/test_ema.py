"""The teacher's average."""

import pytest
import torch

from dinov2_hf.training.ema import update_ema


def test_equals_the_formula():
    teacher, student = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    expected = [0.9 * t + 0.1 * s for t, s in zip(teacher.parameters(), student.parameters(), strict=True)]
    update_ema(teacher, student, 0.9)
    for parameter, value in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.data, value.data)


def test_momentum_one_stands_still_and_zero_copies():
    teacher, student = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    before = teacher.weight.clone()
    update_ema(teacher, student, 1.0)
    assert torch.equal(teacher.weight, before)
    update_ema(teacher, student, 0.0)
    torch.testing.assert_close(teacher.weight, student.weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("left_out", [0.0, 1.0])
def test_a_step_that_is_left_out_moves_nothing_and_another_as_lerp_does(left_out):
    """Bit for bit, under a vote that the device has."""
    teacher, student = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    before = teacher.weight.detach().clone()
    update_ema(teacher, student, 0.9, torch.tensor(left_out))
    assert torch.equal(teacher.weight, before if left_out else torch.lerp(before, student.weight, 1 - 0.9))


def test_a_thousand_small_steps_still_move_float32():
    """0.9999 ** 1000 of the way is left; the same average in bfloat16 does not move at all."""
    teacher, student = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(teacher.weight, 1.0)
    torch.nn.init.constant_(student.weight, 2.0)
    rounded = teacher.weight.detach().bfloat16()
    for _ in range(1000):
        update_ema(teacher, student, 0.9999)
        rounded = rounded * 0.9999 + student.weight.detach().bfloat16() * 1e-4
    torch.testing.assert_close(teacher.weight.item(), 2 - 0.9999**1000, rtol=1e-4, atol=0)
    assert rounded.item() == 1.0
