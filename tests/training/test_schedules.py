"""Schedules against the reference values of the specification (section 8.4) and the rule written as a list."""

import math

import pytest

from dinov2_hf.training.schedules import SCHEDULES, Schedule, build_schedules, scale_learning_rate


SHORT = {
    "min_learning_rate": 1e-6, "warmup_steps": 12_500, "freeze_last_layer_steps": 1250,
    "freeze_backbone_steps": 0, "weight_decay": 0.04,
    "final_weight_decay": 0.4, "teacher_momentum": 0.992, "final_teacher_momentum": 1.0,
    "warmup_teacher_temperature": 0.04, "teacher_temperature": 0.07, "teacher_temperature_warmup_steps": 37_500,
    "max_steps": 125_000, "learning_rate_schedule": "cosine", "weight_decay_schedule": "cosine",
    "teacher_momentum_schedule": "cosine",
}  # fmt: skip
LARGE = {
    **SHORT, "warmup_steps": 100_000, "final_weight_decay": 0.2, "teacher_momentum": 0.994, "max_steps": 625_000,
}  # fmt: skip

# step: learning rate, weight decay, teacher momentum, teacher temperature
SHORT_VALUES = {
    0: (0, 0.04, 0.992, 0.04),
    1: (4.52584546723e-7, 0.0400000000568, 0.992000000001, 0.0400008000213),
    1249: (5.65278098857e-4, 0.0400886770921, 0.992001970602, 0.040999226646),
    12499: (0.00565685424949, 0.048808429161, None, None),
    12500: (0.00565685424949, 0.0488098270669, None, None),
    37499: (0.0049952957447, 0.114194994714, 0.99364877766, 0.07),
    62500: (0.00331999151653, 0.22, 0.996, 0.07),
    124999: (1.00000110264e-6, 0.399999999943, 0.999999999999, 0.07),
}
LARGE_VALUES = {
    1: (3.4641362565e-9, 0.040000000001, 0.994, 0.0400008000213),
    12500: (4.33017032063e-5, 0.0401578617257, 0.994005919815, 0.0500002666738),
    99999: (3.46410161514e-4, 0.0498952718727, 0.994371072695, 0.07),
    100000: (3.46410161514e-4, 0.0498954655966, 0.99437107996, 0.07),
    312500: (2.24610796957e-4, 0.12, 0.997, 0.07),
    624999: (1.00000000309e-6, 0.2, 1.0, 0.07),
}


@pytest.mark.parametrize(
    ("recipe", "base", "batch", "table"), [(SHORT, 4e-3, 2048, SHORT_VALUES), (LARGE, 2e-4, 3072, LARGE_VALUES)]
)
def test_reference_values(recipe, base, batch, table):
    schedules = build_schedules(peak_learning_rate=scale_learning_rate(base, batch, "sqrt_wrt_1024"), **recipe)
    for step, expected in table.items():
        now = schedules.at(step)
        values = (now.learning_rate, now.weight_decay, now.teacher_momentum, now.teacher_temperature)
        for value, wanted in zip(values, expected, strict=True):
            assert wanted is None or value == pytest.approx(wanted, rel=1e-10, abs=1e-16)


def test_last_layer_is_frozen_at_first():
    schedules = build_schedules(peak_learning_rate=1e-3, **SHORT)
    assert schedules.at(1249).last_layer_learning_rate == 0
    assert schedules.at(1249).learning_rate > 0
    assert schedules.at(1250).last_layer_learning_rate == schedules.at(1250).learning_rate


def test_equals_the_rule_written_as_a_list():
    schedule = Schedule(base=2.0, final=0.5, total_steps=20, warmup_steps=5, start=1.0)
    warmup = [1 + i / 4 for i in range(5)]
    cosine = [0.5 + 0.5 * 1.5 * (1 + math.cos(math.pi * i / 15)) for i in range(15)]
    expected = warmup + cosine + [0.5] * 3
    assert [schedule.at(step) for step in range(23)] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("linear", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("constant", [0] * 11),
        ("warmup_stable_decay", [0] * 9 + [0.5, 1]),
        ("cosine", [(1 - math.cos(math.pi * i / 10)) / 2 for i in range(11)]),
    ],
)
def test_kinds_go_from_base_to_final_after_the_warmup(kind, shares):
    schedule = Schedule(base=3.0, final=1.0, total_steps=14, warmup_steps=4, kind=SCHEDULES.find(kind))
    assert [schedule.at(step) for step in range(4)] == pytest.approx([0, 1, 2, 3])
    assert [schedule.at(step) for step in range(4, 15)] == pytest.approx([3 - 2 * share for share in shares])
    assert schedule.at(100) == schedule.at(14)


def test_the_recipe_names_the_kinds():
    kinds = {"learning_rate_schedule": "constant", "weight_decay_schedule": "linear"}
    schedules = build_schedules(peak_learning_rate=1e-3, **SHORT | kinds)
    assert schedules.at(124_999).learning_rate == 1e-3
    assert schedules.at(62_500).weight_decay == pytest.approx(0.22)
    assert schedules.at(31_250).weight_decay == pytest.approx(0.13)
    with pytest.raises(ValueError, match="there is no schedule 'cosin'. Did you mean `cosine`?"):
        build_schedules(peak_learning_rate=1e-3, **SHORT | {"weight_decay_schedule": "cosin"})


def test_weights_of_loss_terms():
    terms = {
        "my_package.gram:gram_loss": {"start": 0, "end": 2.0, "steps": 1000, "delay_steps": 500},
        "other": 0.5,
        "third": {"kind": "constant", "start": 1, "end": 1},
    }
    schedules = build_schedules(peak_learning_rate=1e-3, **SHORT, loss_terms=terms)
    weights = [schedules.at(step).loss_weights for step in (0, 499, 500, 750, 1000, 10_000)]
    assert [values["my_package.gram:gram_loss"] for values in weights] == [0, 0, 0, 1, 2, 2]
    assert {values["other"] for values in weights} == {0.5}
    assert {values["third"] for values in weights} == {1}
    metrics = schedules.at(750).metrics
    assert metrics["gram_loss_weight"] == 1
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("much", "`loss_terms` gives gram the value much; it must be a number, at least 0."),
        (-1, "`loss_terms` gives gram the value -1; it must be a number, at least 0."),
        ({"start": 0}, r"`loss_terms` gives gram \(end\) the value None"),
        ({"start": 0, "end": 1, "step": 5}, "unknown key `step`. Did you mean `steps`?"),
        ({"kind": "square", "start": 0, "end": 1}, "there is no schedule 'square'"),
    ],
)
def test_weights_that_are_none_are_named(value, message):
    with pytest.raises(ValueError, match=message):
        build_schedules(peak_learning_rate=1e-3, **SHORT, loss_terms={"gram": value})


def test_scaling_rules():
    assert scale_learning_rate(4e-3, 2048, "sqrt_wrt_1024") == pytest.approx(0.00565685424949, rel=1e-10)
    assert scale_learning_rate(4e-3, 2048, "none") == 4e-3
    with pytest.raises(ValueError, match='`learning_rate_scaling` is "linear"; it must be'):
        scale_learning_rate(4e-3, 2048, "linear")


def test_a_warmup_beyond_the_run_is_refused():
    with pytest.raises(ValueError, match="`warmup_steps` is 12500, more than `max_steps` \\(100\\)"):
        build_schedules(peak_learning_rate=1e-3, **{**SHORT, "max_steps": 100})


def test_a_cooldown_begins_where_the_schedule_was():
    """A constant rate falls in a straight line over the last 20 of 100 steps; a cosine goes on from its own value."""
    rates = [Schedule(2.0, 1.0, 100, kind=SCHEDULES.find("constant"), cooldown_steps=20).at(s) for s in range(101)]
    assert rates[:81] == [2.0] * 81
    assert rates[80:] == pytest.approx([2 - place / 20 for place in range(21)])
    plain, cooled = Schedule(2.0, 1.0, 100), Schedule(2.0, 1.0, 100, cooldown_steps=50)
    assert [cooled.at(step) for step in range(51)] == [plain.at(step) for step in range(51)]
    assert cooled.at(75) == pytest.approx((plain.at(50) + 1) / 2)


def test_a_cooldown_is_the_same_from_any_checkpoint():
    """A run of another length has the same constant rate, up to the step where its cool-down begins."""
    constant = {**SHORT, "learning_rate_schedule": "constant"}
    whole, ended = (
        build_schedules(peak_learning_rate=1e-3, **constant | {"max_steps": steps}, cooldown_steps=cooldown)
        for steps, cooldown in ((125_000, 0), (50_000, 10_000))
    )
    for step in (0, 5_000, 20_000, 40_000):
        assert ended.at(step).learning_rate == whole.at(step).learning_rate
        assert ended.at(step).backbone_learning_rate == whole.at(step).backbone_learning_rate
    assert ended.at(45_000).learning_rate == pytest.approx((1e-3 + 1e-6) / 2)


def test_a_cooldown_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="`cooldown_steps` is 120000, which does not fit into `max_steps`"):
        build_schedules(peak_learning_rate=1e-3, **SHORT, cooldown_steps=120_000)
