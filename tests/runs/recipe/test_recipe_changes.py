"""What may have changed between a checkpoint and the run that continues it."""

import pytest

from dinov2_hf.runs.recipe.recipe_changes import DATA_SIZES, FREE, MOVABLE, OF_EVALUATION, check_recipe


RECIPE = {
    "hidden_size": 32, "learning_rate": 1e-3, "seed": 0, "koleo_loss_weight": 0.1, "global_crop_scale": [0.32, 1.0],
    "train_data": "images", "eval_data": None, "eval_split": "test", "save_steps": 10, "students": None,
}  # fmt: skip
SIZES = dict.fromkeys(DATA_SIZES, 24)


def check(state, recipe=None, sizes=None, *, allow_changes=False, fixed=("hidden_size",)):
    check_recipe(
        state, {**RECIPE, **(recipe or {})}, {**SIZES, **(sizes or {})}, fixed=fixed, allow_changes=allow_changes
    )


@pytest.fixture
def state():
    state = {"step": 3, "knn_before": {"knn_top1_k20": 0.5}, "knn_after": {"knn_top1_k20": 0.6}}
    state["collapse"] = {"start": {"knn_top1_k20": 0.5, "cls_pair_cosine": 0.9}, "best": {"knn_top1_k20": 0.6}}
    check(state)
    return state


def test_the_same_recipe_goes_on(state):
    check(state)
    assert state["recipe"]["hidden_size"] == 32
    assert state["knn_before"] == {"knn_top1_k20": 0.5}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("learning_rate", 0.01, "`learning_rate` was 0.001 and is 0.01"),
        ("seed", 1, "`seed` was 0 and is 1"),
        ("koleo_loss_weight", 0.0, "`koleo_loss_weight` was 0.1 and is 0.0"),
        ("global_crop_scale", [0.5, 1.0], r"`global_crop_scale` was \[0.32, 1.0\] and is \[0.5, 1.0\]"),
        ("a_new_name", 1, "`a_new_name` was None and is 1"),
        ("eval_data", "labelled", "`eval_data` was None and is labelled"),
    ],
)
def test_a_change_is_named_and_needs_the_flag(state, caplog, name, value, said):
    with pytest.raises(ValueError, match=f"^{said}, so the run would go on as another one;.*--allow_recipe_change.$"):
        check(dict(state), {name: value})
    check(state, {name: value}, allow_changes=True)
    assert said.replace("\\", "") + " from here on" in caplog.text
    assert state["recipe"][name] == value


def test_all_changes_are_named_at_once(state):
    with pytest.raises(ValueError, match="`learning_rate` was 0.001 and is 0.1, `seed` was 0 and is 7, so"):
        check(state, {"learning_rate": 0.1, "seed": 7})


def test_the_network_never_changes(state):
    with pytest.raises(ValueError, match="^`hidden_size` was 32 and is 64, which cannot change within .*--init"):
        check(state, {"hidden_size": 64}, allow_changes=True)


def test_how_a_run_is_carried_out_may_change(state):
    check(state, {"save_steps": 20})


def test_moved_data_is_said_and_other_data_is_refused(state, caplog):
    check(dict(state), {"train_data": "/mnt/images"})
    assert "`train_data` was images and is /mnt/images: taken for the same images in another place" in caplog.text
    with pytest.raises(ValueError, match="`train_data images` was 24 and is 25"):
        check(state, {"train_data": "/mnt/images"}, {"train_data images": 25})


def test_accuracies_of_another_evaluation_are_not_compared_with(state):
    check(state, {"eval_split": "validation"}, allow_changes=True)
    assert not {"knn_before", "knn_after"} & state.keys()
    assert state["collapse"] == {"start": {"cls_pair_cosine": 0.9}, "best": {}}


def test_a_change_of_the_masks_leaves_accuracies_of_labels_as_they_are(state):
    found = {"patch_knn_miou": 0.5, "patch_knn_miou_stderr": 0.1}
    state |= {"patch_knn_before": found, "patch_knn_after": found, "linear_after": {"linear_top1": 0.7}}
    state["collapse"]["best"] |= found
    state["collapse"]["knn_holds"] = True
    check(state, {"dense_eval_image_size": 448}, allow_changes=True)
    assert not {"patch_knn_before", "patch_knn_after"} & state.keys()
    assert {"knn_before", "knn_after", "linear_after"} <= state.keys()
    assert state["collapse"]["best"] == {"knn_top1_k20": 0.6}
    check(state, {"label_column": "kind"}, allow_changes=True)
    assert not {"knn_before", "knn_after", "linear_after"} & state.keys()
    assert state["collapse"] == {"start": {"cls_pair_cosine": 0.9}, "best": {}}


def test_of_students_each_value_is_compared():
    students = [{"name": "small", "hidden_size": 16}, {"name": "wide", "learning_rate": 0.1}]
    state = {}
    check(state, {"students": students})
    check(state, {"students": students})
    with pytest.raises(ValueError, match="`students/wide/learning_rate` was 0.1 and is 0.2, so"):
        check(state, {"students": [students[0], {"name": "wide", "learning_rate": 0.2}]})
    with pytest.raises(ValueError, match="`students/small/hidden_size` was 16 and is 8, which cannot change"):
        check(state, {"students": [{"name": "small", "hidden_size": 8}, students[1]]}, allow_changes=True)
    with pytest.raises(ValueError, match=r"`students` was \['small', 'wide'\] and is \['small'\], which cannot"):
        check(state, {"students": students[:1]}, allow_changes=True)


def test_the_tables_name_what_there_is():
    """Of recipes of pretraining and distillation."""
    from dinov2_hf import DINOv2Config, DINOv2DistillationConfig, DINOv2PreTrainingConfig
    from dinov2_hf.runs.distillation_arguments import DistillationArguments
    from dinov2_hf.runs.initial_weights import FIXED_FIELDS

    configs = (DINOv2Config, DINOv2PreTrainingConfig, DINOv2DistillationConfig)
    names = {name for config in configs for name in config.__annotations__}
    names |= set(DistillationArguments.__dataclass_fields__)
    of_evaluations = {name for options in OF_EVALUATION.values() for name in options}
    assert {*FREE, *MOVABLE, *FIXED_FIELDS, *of_evaluations} - {*DATA_SIZES} <= names
    assert not {*FREE} & {*MOVABLE, *FIXED_FIELDS, *of_evaluations}


def test_a_checkpoint_in_the_middle_of_a_new_cooldown_is_refused(state):
    """Where it begins at the checkpoint or later it is a change like another."""
    check(dict(state), {"max_steps": 5, "cooldown_steps": 2}, allow_changes=True)
    with pytest.raises(ValueError, match="begun to fall at step 2, but the checkpoint is of step 3, .* be 6 to begin"):
        check(dict(state), {"max_steps": 5, "cooldown_steps": 3}, allow_changes=True)


def test_a_checkpoint_of_an_earlier_version_goes_on(state, caplog):
    """Options that came later are at their defaults in it; one that is gone is told, and no change."""
    state["recipe"] |= {"gone": True}
    later = {"crop_packing": "auto"}
    with pytest.raises(ValueError, match="`crop_packing_2` was auto and is always, so the run would go on as another"):
        check_later(dict(state), {"crop_packing_2": "always"}, {"crop_packing_2": "auto"})
    check_later(state, later, later)
    assert "`gone` was True, and is not an option any more." in caplog.text
    assert "gone" not in state["recipe"]
    assert state["recipe"]["crop_packing"] == "auto"


def check_later(state, more, defaults):
    check_recipe(state, {**RECIPE, **more}, SIZES, fixed=(), allow_changes=False, defaults=defaults)
