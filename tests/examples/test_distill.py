"""The script that users run to distil: what it leaves, that it resumes exactly, and what it says to bad input."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from dinov2_hf import DINOv2ForPreTraining
from dinov2_hf.conversion.exports.stock_transformers import export_transformers
from dinov2_hf.conversion.saved_models import load_backbone
from dinov2_hf.runs.distillation_plan import DistillationPlan
from dinov2_hf.runs.initial_weights import load_initial_model
from dinov2_hf.runs.run import start_run
from dinov2_hf.training.monitoring.monitor import read_metrics
from tests import forked_python

from .conftest import TINY, drawn, forget_accelerate, load_example, run_until_saved
from .test_pretrain import assert_same_run, weights


# Half as wide as the teacher, whose patches and prototypes it takes over.
LEFT_TO_THE_TEACHER = ("image_size", "patch_size", "num_prototypes", "drop_path_rate")
SMALL = {"hidden_size": 16, "num_attention_heads": 1, "head_hidden_size": 24, "bottleneck_size": 8}
TWO = [{"name": "half", **SMALL}, {"name": "wide", "learning_rate": 5e-4, "layerwise_decay": 0.8}]


@pytest.fixture(scope="module")
def distill():
    return load_example("distill")


@pytest.fixture(scope="module")
def teacher(pretrain, recipe, images, tmp_path_factory) -> Path:
    forget_accelerate()
    folder = tmp_path_factory.mktemp("teacher") / "run"
    flags = ["--train_data", str(images), "--output_dir", str(folder), "--centering", "sinkhorn_knopp"]
    pretrain.main(["--config", recipe, *flags, "--max_steps", "2"])
    return folder


@pytest.fixture(scope="module")
def small_recipe(tmp_path_factory) -> str:
    values = {name: value for name, value in yaml.safe_load(TINY).items() if name not in LEFT_TO_THE_TEACHER}
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(values | SMALL))
    return str(path)


@pytest.fixture(scope="module")
def two_recipe(small_recipe) -> str:
    values = yaml.safe_load(Path(small_recipe).read_text())
    values |= {"hidden_size": 32, "num_attention_heads": 2, "students": TWO}
    path = Path(small_recipe).with_name("two.yaml")
    path.write_text(yaml.safe_dump(values))
    return str(path)


def run(distill, recipe, teacher, images, output_dir, *flags: str) -> None:
    forget_accelerate()
    given = ["--config", recipe, "--teacher", str(teacher), "--train_data", str(images)]
    distill.main([*given, "--output_dir", str(output_dir), *flags])


@pytest.fixture(scope="module")
def finished_run(distill, small_recipe, teacher, images, tmp_path_factory, no_pictures):
    output_dir = tmp_path_factory.mktemp("run") / "out"
    with drawn(no_pictures):
        run(distill, small_recipe, teacher, images, output_dir, "--eval_data", str(images), "--eval_split", "train")
    return output_dir


@pytest.fixture(scope="module")
def two_students(distill, two_recipe, teacher, images, tmp_path_factory, no_pictures):
    output_dir = tmp_path_factory.mktemp("two") / "out"
    with drawn(no_pictures):
        run(distill, two_recipe, teacher, images, output_dir, "--eval_data", str(images), "--eval_split", "train")
    return output_dir


def test_what_a_run_leaves(finished_run):
    assert sorted(path.name for path in finished_run.iterdir()) == [
        ".dinov2_hf.json", "checkpoints", "metrics.json", "metrics.jsonl", "model", "patch_pca.png",
        "pretraining_model", "recipe.yaml",
        "training_curves.png",
    ]  # fmt: skip
    records = read_metrics(finished_run / "metrics.jsonl")
    assert [record["step"] for record in records if "ibot_loss" in record] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records if "knn_top1_k20" in record] == [0, 3, 6]
    assert {"dino_local_loss", "koleo_loss", "target_entropy", "cls_effective_rank", "grad_norm_dino_head"} <= {
        name for record in records for name in record
    }
    card = (finished_run / "model" / "README.md").read_text()
    assert "distilled from `run`" in card
    assert str(finished_run.parent) not in card


def test_the_export_is_the_average_and_loads_with_stock_transformers(finished_run, tmp_path):
    whole = AutoModelForPreTraining.from_pretrained(finished_run / "pretraining_model")
    assert type(whole) is DINOv2ForPreTraining
    backbone = AutoModel.from_pretrained(finished_run / "model")
    assert backbone.config.hidden_size == 16
    assert all(torch.equal(v, whole.teacher.backbone.state_dict()[n]) for n, v in backbone.state_dict().items())
    assert not torch.equal(whole.student.backbone.layernorm.weight, whole.teacher.backbone.layernorm.weight)
    export_transformers(finished_run / "model", tmp_path / "stock")
    stock = Dinov2Model.from_pretrained(tmp_path / "stock").eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = backbone.eval()(pixels).last_hidden_state
        torch.testing.assert_close(stock(pixels).last_hidden_state, expected, rtol=0, atol=1e-5)
    assert AutoImageProcessor.from_pretrained(finished_run / "model").crop_size["height"] == 16


def test_no_checkpoint_holds_the_teacher(finished_run):
    saved = load_file(finished_run / "checkpoints" / "step_0000006" / "model.safetensors")
    assert {name.split(".")[0] for name in saved} == {"student", "average"}
    widths = {value.shape[-1] for name, value in saved.items() if name.endswith("layernorm.weight")}
    assert widths == {16}


def test_a_checkpoint_is_a_model(finished_run, two_students):
    half = two_students / "checkpoints" / "latest" / "half"
    for checkpoint, left in (
        (finished_run / "checkpoints" / "latest", finished_run),
        (half, two_students / "students" / "half"),
    ):
        for network, folder in (
            (load_backbone(checkpoint), "model"),
            (load_initial_model(checkpoint), "pretraining_model"),
        ):
            expected = load_file(left / folder / "model.safetensors")
            assert network.state_dict().keys() == expected.keys()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(ValueError, match=f"is of several students; name one of {half.parent.parent}/step_.*/half, "):
        load_backbone(half.parent)
    with pytest.raises(ValueError, match="is of several students; name one of"):
        load_backbone(half.with_name("other"))


def test_a_pretraining_goes_on_with_the_student(finished_run, pretrain, recipe, images, tmp_path):
    """As the paper's phase of higher resolution does."""
    forget_accelerate()
    values = {name: value for name, value in yaml.safe_load(TINY).items() if name not in SMALL}
    path = tmp_path / "go_on.yaml"
    path.write_text(yaml.safe_dump(values | {"max_steps": 1, "warmup_steps": 1, "eval_resize_size": 32}))
    flags = ["--train_data", str(images), "--output_dir", str(tmp_path / "out"), "--image_size", "32"]
    pretrain.main(["--config", str(path), "--init_from", str(finished_run), *flags])
    assert AutoModel.from_pretrained(tmp_path / "out" / "model").config.image_size == 32


def test_an_output_in_the_folder_of_the_teacher_is_refused(distill, small_recipe, teacher, images):
    before = sorted(path.name for path in teacher.rglob("*"))
    with pytest.raises(SystemExit, match="^error: the output .* is inside the source .*run, so one would be mistaken"):
        run(distill, small_recipe, teacher, images, teacher / "students" / "small")
    assert sorted(path.name for path in teacher.rglob("*")) == before


@pytest.mark.parametrize("recipe_name", ["small_recipe", "two_recipe"])
def test_resume_equals_the_uninterrupted_run(
    distill,
    recipe_name,
    teacher,
    images,
    finished_run,
    two_students,
    tmp_path,
    request,
):
    recipe = request.getfixturevalue(recipe_name)
    straight = finished_run if recipe_name == "small_recipe" else two_students
    flags = ("--eval_data", str(images), "--eval_split", "train")
    run_until_saved(4, lambda: run(distill, recipe, teacher, images, tmp_path / "out", *flags))
    run(distill, recipe, teacher, images, tmp_path / "out", *flags, "--resume_from_checkpoint", "latest")
    for folder in ("",) if straight is finished_run else ("students/half", "students/wide"):
        assert_same_run(straight / folder, tmp_path / "out" / folder)


def test_the_resolved_recipe_gives_the_same_run(distill, two_students, teacher, tmp_path):
    forget_accelerate()
    distill.main(["--config", str(two_students / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    for name in ("half", "wide"):
        assert_same_run(two_students / "students" / name, tmp_path / "again" / "students" / name)


def test_each_of_two_students_is_what_it_would_be_alone(distill, small_recipe, finished_run, two_students):
    """Bit for bit, and with the folder that a run of its own leaves."""
    half, wide = (two_students / "students" / name for name in ("half", "wide"))
    alone, together = weights(finished_run), weights(half)
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    of_the_run = {".dinov2_hf.json", "checkpoints", "recipe.yaml"}
    left = {path.name for path in finished_run.iterdir()} - of_the_run
    assert {path.name for path in half.iterdir()} == {path.name for path in wide.iterdir()} == left
    assert {path.name for path in two_students.iterdir()} == {*of_the_run, "students"}
    records, own = (read_metrics(folder / "metrics.jsonl") for folder in (finished_run, half))
    for one, other in zip(records, own, strict=True):
        for name in ("loss", "ibot_loss", "grad_norm_backbone", "cls_effective_rank", "knn_top1_k20"):
            assert one.get(name) == other.get(name)
    assert AutoModel.from_pretrained(wide / "model").config.hidden_size == 32
    summaries = [json.loads((folder / "metrics.json").read_text()) for folder in (half, wide)]
    assert summaries[0]["last_training_record"]["loss"] != summaries[1]["last_training_record"]["loss"]
    assert "hidden_size: 16" in (half / "model" / "README.md").read_text()


def test_students_have_rates_of_their_own(distill, two_recipe, teacher, images, tmp_path):
    forget_accelerate()
    words = ["--config", two_recipe, "--teacher", str(teacher), "--train_data", str(images)]
    with start_run(DistillationPlan, [*words, "--output_dir", str(tmp_path / "out")]) as started:
        model = started.plan.build(started)
        groups = started.plan.parameter_groups(model)
    multipliers = {
        name: {
            group["lr_multiplier"]
            for group in groups
            if any(p is q for q in network.parameters() for p in group["params"])
        }
        for name, network in model.students.items()
    }
    assert max(multipliers["half"]) == 1
    assert max(multipliers["wide"]) == 0.5  # 5e-4 of 1e-3
    assert min(multipliers["wide"]) == pytest.approx(0.5 * 0.8**3 * 0.2)
    trained = [parameter for group in groups for parameter in group["params"]]
    assert len(trained) == len({id(parameter) for parameter in trained})


def networks() -> dict:
    """Tiny networks of other kinds: patches of another size, without CLS token, of another mean, of one fixed size."""
    stock = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    shape = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return {
        "dinov2": Dinov2Model(Dinov2Config(**stock)),
        "vit": ViTModel(ViTConfig(**shape, image_size=16, patch_size=8), add_pooling_layer=False),
        "clip": CLIPVisionModel(CLIPVisionConfig(**shape, image_size=32, patch_size=8)),
        "convnext": ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 24], depths=[1, 1, 1, 1])),
    }


FEATURES = (
    "--distillation_objective",
    "features",
    "--num_local_crops",
    "0",
    "--patch_size",
    "4",
    "--image_size",
    "16",
)
KINDS = {
    "dinov2": ("--teacher_image_size", "42"),
    "vit": ("--feature_loss", "smooth_l1"),
    "clip": ("--teacher_image_size", "32", "--projector_hidden_size", "8"),
    "convnext": ("--teacher_image_size", "64", "--cls_feature_loss_weight", "0", "--koleo_loss_weight", "0"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_any_network(distill, small_recipe, images, tmp_path, kind):
    torch.manual_seed(0)
    networks()[kind].save_pretrained(tmp_path / kind)
    ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path / kind)
    flags = (*FEATURES, *KINDS[kind], "--max_steps", "2", "--warmup_steps", "1")
    run(distill, small_recipe, tmp_path / kind, images, tmp_path / "out", *flags)
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert all(record["patch_feature_loss"] > 0 for record in records)
    assert all(("cls_feature_loss" in record) == (kind != "convnext") for record in records)
    assert not (tmp_path / "out" / "pretraining_model").exists()  # it has no heads to go on with
    assert AutoModel.from_pretrained(tmp_path / "out" / "model").config.patch_size == 4


def test_features_of_a_run_and_two_patch_sizes(distill, small_recipe, teacher, images, tmp_path):
    students = ["{name: fine, patch_size: 4}", "{name: coarse, patch_size: 8}"]
    flags = (*FEATURES, "--max_steps", "2", "--warmup_steps", "1", "--students", *students)
    run(distill, small_recipe, teacher, images, tmp_path / "out", *flags)
    sizes = [
        AutoModel.from_pretrained(tmp_path / "out" / "students" / name / "model").config.patch_size
        for name in ("fine", "coarse")
    ]
    assert sizes == [4, 8]
    coarse = load_backbone(tmp_path / "out" / "checkpoints" / "latest" / "coarse").state_dict()
    left = load_file(tmp_path / "out" / "students" / "coarse" / "model" / "model.safetensors")
    assert coarse.keys() == left.keys()
    assert all(torch.equal(tensor, left[name]) for name, tensor in coarse.items())


def test_a_student_starts_from_weights(distill, small_recipe, finished_run, teacher, images, tmp_path):
    flags = ("--init_from", str(finished_run), "--max_steps", "1", "--warmup_steps", "1", "--teacher_momentum", "1")
    run(distill, small_recipe, teacher, images, tmp_path / "out", *flags)
    before, after = weights(finished_run), weights(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)  # the rate of step 0 is 0
    features = (*FEATURES, *flags)
    run(distill, small_recipe, teacher, images, tmp_path / "features", *features)
    model = load_file(tmp_path / "features" / "model" / "model.safetensors")
    assert all(torch.equal(model[name], before[f"teacher.backbone.{name}"]) for name in model)


def test_compiled_students_and_teacher_say_the_same(two_recipe, teacher, images, tmp_path):
    """By the compiler that only traces, which needs no C++; two students of two widths, whose blocks drop crops."""
    # In a process of its own: what other tests of the process have compiled changes what is compiled here.
    given = tuple(map(str, (two_recipe, teacher, images, tmp_path)))
    finished = forked_python.run(
        ["-c", f"from {__name__} import compare; compare{given}"], cwd=Path(__file__).parents[2]
    )
    assert finished.returncode == 0, finished.stderr


def compare(two_recipe: str, teacher: str, images: str, output_dir: str) -> None:
    losses, flags = [], ("--max_steps", "2", "--warmup_steps", "1", "--drop_path_rate", "0.3", "--eval_steps", "9")
    for how in ("no", "blocks"):
        with torch.compiler.set_stance(force_backend="eager"):
            run(load_example("distill"), two_recipe, teacher, images, f"{output_dir}/{how}", *flags, "--compile", how)
        students = [Path(output_dir, how, "students", name) for name in ("half", "wide")]
        losses.append([record["loss"] for folder in students for record in read_metrics(folder / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # Of the teacher and each student, and the two sizes of crops that students see; other blocks share them.
    assert counters["frames"]["total"] == 5


def test_a_teacher_in_bf16_is_close(distill, small_recipe, teacher, images, finished_run, tmp_path):
    flags = ("--teacher_mixed_precision", "bf16", "--max_steps", "6")
    run(distill, small_recipe, teacher, images, tmp_path / "out", *flags)
    losses = [
        [record["loss"] for record in read_metrics(folder / "metrics.jsonl") if "loss" in record]
        for folder in (finished_run, tmp_path / "out")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


MISTAKES = {
    "prototypes": (("--num_prototypes", "64"), "`num_prototypes` is 64, but the teacher has 32"),
    "patch size": (
        ("--patch_size", "8"),
        "`patch_size` is 8, which makes 2 x 2 patches .* teacher has 4 x 4.* `teacher_image_size` to 8",
    ),
    "no model": (("--teacher", "{images}"), "has no config.json, so it is not a model folder"),
    "nothing there": (("--teacher", "{images}/nowhere"), "does not exist"),
    "no teacher": (("--teacher", ""), "`teacher` is missing"),
    "no heads": (("--teacher", "{teacher}/model"), 'without heads, .* set `distillation_objective` to "features"'),
    "crops for nothing": ((*FEATURES, "--num_local_crops", "2"), "`num_local_crops` is 2, .* set it to 0"),
    "no multiple": (
        (*FEATURES, "--teacher_image_size", "18"),
        "`teacher_image_size` is 18, .* patch size, 4; .* `teacher_image_size` that fits is 16",
    ),
    "channels": (("--num_channels", "1"), "`num_channels` is 1, but the teacher has 3"),
    "objective": (
        ("--distillation_objective", "logits"),
        '`distillation_objective` is "logits"; it must be "paper" or',
    ),
    "nothing to continue": (
        (*FEATURES, "--push_to_hub", "true", "--hub_pretraining_model", "true"),
        "`hub_pretraining_model` is true, but distillation of features leaves no",
    ),
    "tokens": (("--ibot_tokens", "some"), '`ibot_tokens` is "some"'),
    "student twice": (("--students", "{{name: a}}", "{{name: a}}"), "the name a twice"),
    "student without name": (("--students", "{{hidden_size: 8}}"), "has the name None"),
    "no mapping": (("--students", "small"), "an entry 'small', .* each must be a mapping"),
    "of the run": (("--students", "{{name: a, max_steps: 3}}"), "the student a has `max_steps`, which is not"),
    "a student's size": (
        ("--students", "{{name: a, hidden_size: 15, num_attention_heads: 2}}"),
        "`hidden_size` is 15, which is not divisible",
    ),
    "processes": (
        ("--students", "{{name: a, num_processes: 1}}", "{{name: b}}"),
        "`num_processes` of the students is",
    ),
    "no ranks": (
        ("--students", "{{name: a, num_processes: 1}}", "{{name: b, num_processes: 1}}"),
        "needs the ddp backend .* launched as single",
    ),
    "precision": (("--teacher_mixed_precision", "fp8"), '`teacher_mixed_precision` is "fp8"'),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(distill, small_recipe, teacher, images, tmp_path, flags, message):
    flags = [flag.format(teacher=teacher, images=images) for flag in flags]
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as stop:
        run(distill, small_recipe, teacher, images, tmp_path / "out", *flags)
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_a_teacher_larger_than_memory_says_what_it_needs(
    distill, small_recipe, teacher, images, tmp_path, monkeypatch
):
    """From its configuration alone: the weights are not even there."""
    shutil.copytree(teacher / "pretraining_model", tmp_path / "large")
    (tmp_path / "large" / "model.safetensors").unlink()
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    config["backbone_config"] |= {"hidden_size": 16384, "num_hidden_layers": 64}
    (tmp_path / "large" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit, match=r"which needs \d{4}\.\d GB of memory, but this machine has .* GB free"):
        run(distill, small_recipe, tmp_path / "large", images, tmp_path / "out")


def test_damaged_weights_are_one_sentence(distill, small_recipe, teacher, images, tmp_path):
    shutil.copytree(teacher / "pretraining_model", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SystemExit, match="^error: `teacher`: The weights of .* cannot be read"):
        run(distill, small_recipe, tmp_path / "damaged", images, tmp_path / "out")
