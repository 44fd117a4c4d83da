"""A schedule from outside."""

import math

import pytest

from dinov2_hf.training.monitoring.monitor import read_metrics
from dinov2_hf.training.schedules import SCHEDULES, Schedule


def test_a_kind_from_outside_is_followed():
    schedule = Schedule(base=2.0, final=1.0, total_steps=100, kind=SCHEDULES.find("cooldown:cooldown"))
    assert [schedule.at(step) for step in (0, 50, 80)] == [2.0, 2.0, 2.0]
    assert schedule.at(90) == pytest.approx(2 - math.sqrt(0.5))
    assert schedule.at(100) == 1.0


def test_a_line_of_the_recipe_changes_the_metrics(pretrain):
    run = pretrain("learning_rate_schedule: cooldown:cooldown", "--max_steps", "4", "--warmup_steps", "0")
    rates = [record["learning_rate"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    assert rates == [1e-3] * 4  # a cosine would have fallen
