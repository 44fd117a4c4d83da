"""When the rules speak, when they are silent, and what they remember."""

import json
import logging
import math

import pytest

from dinov2_hf.training.monitoring.collapse import CollapseMonitor, RunCollapsed


# As a run of the digits recipe had them, at its first log line and when trained.
UNTRAINED = {
    "target_entropy": 5.42,
    "target_information": 0.12,
    "cls_pair_cosine": 0.992,
    "cls_effective_rank": 2.6,
    "patch_pair_cosine": 0.05,
    "patch_effective_rank": 10.1,
}
TRAINED = UNTRAINED | {
    "target_entropy": 2.46,
    "target_information": 2.99,
    "cls_pair_cosine": 0.07,
    "cls_effective_rank": 49.6,
    "patch_effective_rank": 16.1,
}


def monitor(memory: dict | None = None, **options) -> CollapseMonitor:
    return CollapseMonitor({} if memory is None else memory, **{"num_prototypes": 256, "warmup_steps": 100} | options)


def observe(watch: CollapseMonitor, steps, metrics: dict) -> list:
    return [(step, warning) for step in steps for warning in watch.observe(step, metrics)]


def test_few_images_in_a_step_are_named():
    """From a trained start, as a run with 4 images in a step that ended at 0.820 after 50 steps."""
    watch = monitor(num_eval_images=500, num_images_per_step=4)
    assert watch.observe(0, {"knn_top1_k20": 0.942}) == []
    for accuracy, expected in ((0.93, 0), (0.89, 2), (0.82, 0)):
        found = watch.observe(10, {"knn_top1_k20": accuracy})
        assert len(found) == expected
        for warning in found:
            assert "more than the 4 images of a step now (at least 32, best in one pass by" in warning.sentence
            assert "--gradient_accumulation_steps" in warning.sentence
    watch = monitor(num_eval_images=500, num_images_per_step=64)
    watch.observe(0, {"knn_top1_k20": 0.942})
    (warning, _) = watch.observe(10, {"knn_top1_k20": 0.5})
    assert "images of a step" not in warning.sentence


def test_a_run_that_learns_is_left_alone():
    watch = monitor(num_eval_images=500)
    assert watch.observe(0, {"knn_top1_k20": 0.386}) == []
    assert observe(watch, range(10, 60, 10), UNTRAINED) == []
    for step in range(60, 1200, 10):
        progress = step / 1200
        metrics = {name: (1 - progress) * UNTRAINED[name] + progress * TRAINED[name] for name in TRAINED}
        assert watch.observe(step, {**metrics, "loss": 3.0, "grad_norm_backbone": 0.1}) == []
    assert watch.observe(1200, {"knn_top1_k20": 0.958}) == []


@pytest.mark.parametrize(
    ("collapsed", "words"),
    [
        (
            {"target_information": 1e-9, "target_entropy": 0.0},
            ["information is 1e-09 nats, below 0.02", "0.12"],
        ),
        ({"target_information": 1e-9, "target_entropy": 4.0}, ["every image has the same target", "54.6 of 256"]),
        ({"cls_pair_cosine": 0.999}, ["CLS features", "cls_pair_cosine is 0.9990, above 0.98", "0.992 at the start"]),
        ({"patch_pair_cosine": 0.99}, ["patch features", "0.9900, above 0.98", "0.05 at the start"]),
        ({"cls_effective_rank": 12.0}, ["cls_effective_rank is 12, below 0.25 of its best, 49.6", "2.6 at the start"]),
        ({"patch_effective_rank": 4.0}, ["patch_effective_rank is 4, below 0.25 of its best, 16.1", "10.1"]),
    ],
)
def test_each_collapse_is_told_once_with_its_numbers(collapsed, words):
    watch = monitor()
    assert observe(watch, [10], UNTRAINED) + observe(watch, [20, 30, 40], TRAINED) == []
    ((step, warning),) = observe(watch, range(50, 500, 10), TRAINED | collapsed)
    assert step == 100  # 50 steps after the first such line
    assert warning.collapse
    assert warning.healthy_step == 40
    for word in [*words, "for 6 log lines", "what usually helps: centering"]:
        assert word in warning.sentence
    assert "\n" not in warning.sentence


def test_few_long_windows_need_three_lines():
    watch = monitor(warmup_steps=0)
    assert observe(watch, [500, 1000], TRAINED | {"cls_pair_cosine": 0.999}) == []
    assert len(observe(watch, [1500], TRAINED | {"cls_pair_cosine": 0.999})) == 1


def test_an_odd_line_in_between_starts_the_count_again():
    watch = monitor()
    observe(watch, [100], TRAINED)
    for step in range(110, 600, 10):
        odd = TRAINED | ({} if step % 50 == 0 else {"target_information": 0.0, "cls_effective_rank": 1.0})
        assert watch.observe(step, odd) == []


def test_equal_features_count_after_the_warm_up_or_once_they_differed():
    """An untrained network gives all images nearly one feature: only if it stays so is something wrong."""
    ((step, warning),) = observe(monitor(warmup_steps=400), range(10, 1000, 10), UNTRAINED)
    assert step == 400
    assert "cls_pair_cosine" in warning.sentence
    assert warning.healthy_step is None
    watch = monitor(warmup_steps=400)
    observe(watch, [10], TRAINED)
    ((step, warning),) = observe(watch, range(20, 1000, 10), TRAINED | {"cls_pair_cosine": 0.99})
    assert step == 70
    assert warning.healthy_step == 10


def test_uniform_targets_are_a_warning_and_no_collapse():
    uniform = TRAINED | {"target_entropy": math.log(256) - 1e-3, "target_information": 1e-3}
    ((step, warning),) = observe(monitor(warmup_steps=200), range(10, 1000, 10), uniform)
    assert step == 200
    assert not warning.collapse
    assert "uniform and teach nothing" in warning.sentence
    assert "lower teacher_temperature" in warning.sentence


@pytest.mark.parametrize("missing", ["image_level", "patch_level"])
def test_what_no_loss_trains_is_not_judged(missing):
    kind = {"image_level": "cls", "patch_level": "patch"}[missing]
    collapsed = {f"{kind}_pair_cosine": 1.0, f"{kind}_effective_rank": 1.0}
    if kind == "cls":
        collapsed |= {"target_information": 0.0}
    assert observe(monitor(**{missing: False}), range(10, 1000, 10), TRAINED | collapsed) == []
    assert observe(monitor(), range(10, 1000, 10), TRAINED | collapsed) != []


def test_numbers_that_are_missing_or_not_finite_are_passed_over():
    watch = monitor()
    assert observe(watch, range(10, 500, 10), {"loss": math.nan, "cls_pair_cosine": math.nan}) == []
    assert observe(watch, range(500, 900, 10), {"target_information": math.nan, "target_entropy": 0.0}) == []


def test_knn_below_its_start():
    watch = monitor(num_eval_images=500)
    assert watch.observe(0, {"knn_top1_k10": 0.79, "knn_top1_k20": 0.80}) == []
    # Two standard errors of a difference between 500 images each: 0.051.
    assert watch.observe(100, {"knn_top1_k20": 0.75}) == []
    below_start, below_best = watch.observe(200, {"knn_top1_k10": 0.79, "knn_top1_k20": 0.25})
    assert not below_start.collapse
    assert "k-NN accuracy (k=20) is 0.250, below the 0.800 that the run started from" in below_start.sentence
    assert "more than 5% below its best, 0.800" in below_best.sentence
    assert watch.observe(300, {"knn_top1_k20": 0.10}) == []


def test_knn_well_below_its_best():
    watch = monitor(num_eval_images=50_000)
    for step, accuracy in enumerate((0.1, 0.7, 0.75, 0.72)):
        assert watch.observe(step, {"knn_top1_k20": accuracy}) == []
    (warning,) = watch.observe(4, {"knn_top1_k20": 0.67})
    assert "0.670, more than 5% below its best, 0.750 (0.1 at the start)" in warning.sentence


def test_knn_of_few_images_is_noise():
    watch = monitor(num_eval_images=10)
    assert [watch.observe(step, {"knn_top1_k8": value}) for step, value in enumerate((0.5, 0.8, 0.5))] == [[]] * 3


def measured(miou: float, knn: float | None = None, stderr: float = 0.005) -> dict[str, float]:
    found = {"patch_knn_miou": miou, "patch_knn_miou_stderr": stderr, "patch_knn_pixel_accuracy": 0.9}
    return found if knn is None else found | {"knn_top1_k20": knn}


def test_dense_features_that_decay_while_knn_holds():
    watch = monitor(num_eval_images=500)
    for step, numbers in enumerate([(0.2, 0.4), (0.5, 0.8), (0.48, 0.82), (0.487, 0.85)]):
        assert watch.observe(step, measured(*numbers)) == []
    (warning,) = watch.observe(4, measured(0.44, 0.86))
    assert not warning.collapse
    assert warning.healthy_step == 3
    for words in (
        "dense features decay: patch k-NN mIoU is 0.440, more than 5% below its best, 0.500 (0.2 at the start), while"
        " k-NN accuracy holds; what usually helps: Gram anchoring",
        "gram_teacher", "lower learning_rate", "keep_best patch_knn_miou",
    ):  # fmt: skip
        assert words in warning.sentence
    assert watch.observe(5, measured(0.30, 0.86)) == []


def test_dense_features_within_the_noise_of_few_images():
    """Two standard errors of a difference: of 0.03 each, 0.085."""
    watch = monitor()
    assert watch.observe(0, measured(0.5, stderr=0.03)) == []
    assert watch.observe(1, measured(0.42, stderr=0.03)) == []
    (warning,) = watch.observe(2, measured(0.41, stderr=0.03))
    assert "k-NN accuracy holds" not in warning.sentence  # which is not measured
    one_image = {"patch_knn_miou": 0.1, "patch_knn_miou_stderr": math.nan}
    assert observe(monitor(), range(3), measured(0.5, stderr=math.nan)) == []
    assert observe(monitor(), range(3), one_image) == []


def test_where_knn_falls_too_its_own_sentence_speaks():
    """k-NN may be measured at other steps than the dense features."""
    watch = monitor(num_eval_images=50_000)
    assert watch.observe(0, measured(0.5)) + watch.observe(1, {"knn_top1_k20": 0.8}) == []
    both = watch.observe(2, {"knn_top1_k20": 0.7})
    assert {"k-NN accuracy" in warning.sentence for warning in both} == {True}
    assert watch.observe(3, measured(0.4)) == []
    assert watch.observe(4, {"knn_top1_k20": 0.81}) == []
    (warning,) = watch.observe(5, measured(0.4))
    assert "dense features decay" in warning.sentence


def test_a_resumed_run_remembers():
    """Through JSON, as a checkpoint keeps it: the start, the count, and what has been said."""
    collapsed = TRAINED | {"cls_pair_cosine": 0.999}
    straight, memory = monitor(), {}
    observe(straight, [10], UNTRAINED)
    observe(monitor(memory), [10], UNTRAINED)
    warnings = []
    for step in range(20, 300, 10):
        memory = json.loads(json.dumps(memory))
        resumed = observe(monitor(memory), [step], collapsed)
        assert resumed == observe(straight, [step], collapsed)
        warnings += resumed
    assert len(warnings) == 1


def test_stopping_names_the_last_good_checkpoint(tmp_path, caplog):
    for step in (20, 40, 60, 80):
        (tmp_path / f"step_{step:07d}").mkdir()
        (tmp_path / f"step_{step:07d}" / "run_state.json").write_text("{}")

    def run(stop):
        watch = monitor()
        for step in range(10, 200, 10):
            watch.warn(step, TRAINED if step <= 50 else TRAINED | {"target_information": 0.0}, stop=stop)

    with pytest.raises(RunCollapsed, match="^step 110: the teacher's targets have collapsed") as stopped:
        run(stop=True)
    advice = stopped.value.advice(tmp_path)
    assert advice.endswith(f"--resume_from_checkpoint {tmp_path / 'step_0000040'} --allow_recipe_change.")
    assert RunCollapsed("", None).advice(tmp_path) == RunCollapsed("", 10).advice(tmp_path)
    assert "No checkpoint is from before" in RunCollapsed("", 10).advice(tmp_path)
    with caplog.at_level(logging.WARNING):
        run(stop=False)
    assert caplog.text.count("warning at step 110: the teacher's targets have collapsed") == 1


def test_a_warning_alone_does_not_stop():
    watch = monitor(num_eval_images=500)
    watch.warn(0, {"knn_top1_k20": 0.8}, stop=True)
    watch.warn(10, {"knn_top1_k20": 0.1}, stop=True)
