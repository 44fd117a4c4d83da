"""The script that users run: what it leaves, that it resumes exactly, and what it says to bad input."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline

from dinov2_hf import DINOv2ForPreTraining, DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.data import load_image_dataset
from dinov2_hf.data.stream_rows import StreamRows
from dinov2_hf.evaluation.knn import evaluate_knn
from dinov2_hf.features import FeatureExtractor
from dinov2_hf.output_folders import write_marker
from dinov2_hf.runs import loop
from dinov2_hf.runs.while_training import knn_probe as evaluation
from dinov2_hf.training.checkpointing.checkpoint_manifest import write_manifest
from tests import forked_python

from .conftest import changed_batches, drawn, forget_accelerate, run_until_saved, without_pictures


def run(pretrain, recipe, images, output_dir, *flags: str) -> None:
    pretrain.main(["--config", recipe, "--train_data", str(images), "--output_dir", str(output_dir), *flags])


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "pretraining_model" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-equal weights, and the same losses on the way."""
    one_weights, other_weights = weights(one), weights(other)
    assert one_weights.keys() == other_weights.keys()
    assert [name for name in one_weights if not torch.equal(one_weights[name], other_weights[name])] == []
    records = [
        [
            {
                name: value
                for name, value in json.loads(line).items()
                if name not in ("images_per_second", "data_wait_share")
            }
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (one, other)
    ]
    assert records[0] == records[1]


@pytest.fixture(scope="package")
def finished_run(no_pictures, pretrain, recipe, images, tmp_path_factory):
    """One uninterrupted run with k-NN evaluation and pictures, and what it printed."""
    output_dir, printed = tmp_path_factory.mktemp("run") / "out", io.StringIO()
    with drawn(no_pictures), contextlib.redirect_stdout(printed):
        run(pretrain, recipe, images, output_dir, "--eval_data", str(images), "--eval_split", "train")
    return output_dir, printed.getvalue()


def test_what_a_run_leaves(finished_run):
    output_dir, printed = finished_run
    assert sorted(path.name for path in output_dir.iterdir()) == [
        ".dinov2_hf.json", "checkpoints", "metrics.json", "metrics.jsonl", "model", "patch_pca.png",
        "pretraining_model", "recipe.yaml",
        "training_curves.png",
    ]  # fmt: skip
    assert [path.name for path in sorted((output_dir / "checkpoints").iterdir())] == [
        "step_0000002", "step_0000004", "step_0000006",
    ]  # fmt: skip
    metrics = json.loads((output_dir / "metrics.json").read_text())
    assert metrics["steps"] == metrics["last_training_record"]["step"] == 6
    knn = metrics["knn"]
    assert {*knn["before"]} == {*knn["after"]} == {*knn["pixels"]} == {"knn_top1_k10", "knn_top1_k20"}
    assert f"  raw pixels        {knn['pixels']['knn_top1_k20']:.3f}\n  before training" in printed
    assert "returns (1, 17, 32)" in printed
    for name in ("training_curves.png", "patch_pca.png"):
        with Image.open(output_dir / name) as picture:
            assert min(picture.size) > 200
    records = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in records if "knn_top1_k20" in r] == [0, 3, 6]


def test_the_model_loads_as_any_other(finished_run, images):
    folder = finished_run[0] / "model"
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is DINOv2ImageProcessor
    assert processor.crop_size["height"] == 16
    model = AutoModel.from_pretrained(folder)
    assert type(model) is DINOv2Model
    image = next(images.rglob("*.png"))
    features = pipeline("image-feature-extraction", model=str(folder))(str(image), return_tensors=True)
    pixels = processor(images=Image.open(image), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(features, model.eval()(pixels).last_hidden_state)
    card = (folder / "README.md").read_text()
    assert "image-feature-extraction" in card
    assert "num_prototypes: 32" in card


def test_the_example_of_the_card_runs_in_its_folder(finished_run, images, tmp_path, monkeypatch):
    """Wherever that lies; with a picture of that name in it."""
    folder = tmp_path / "anywhere"
    shutil.copytree(finished_run[0] / "model", folder)
    Image.open(next(images.rglob("*.png"))).save(folder / "image.jpg")
    monkeypatch.chdir(folder)
    (example,) = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    names = {}
    exec(example, names)
    assert names["features"].shape == (1, 17, 32)
    assert type(names["model"]) is DINOv2Model
    assert type(names["processor"]) is DINOv2ImageProcessor


def test_the_exported_backbone_is_the_teacher(finished_run):
    everything = AutoModelForPreTraining.from_pretrained(finished_run[0] / "pretraining_model")
    assert type(everything) is DINOv2ForPreTraining
    backbone = AutoModel.from_pretrained(finished_run[0] / "model")
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, everything.teacher.backbone.state_dict()[name])
        if "embeddings.cls_token" in name:
            assert not torch.equal(value, everything.student.backbone.state_dict()[name])


def test_the_resolved_recipe_gives_the_same_run(finished_run, pretrain, tmp_path):
    output_dir = finished_run[0]
    pretrain.main(["--config", str(output_dir / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    assert_same_run(output_dir, tmp_path / "again")


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--gradient_accumulation_steps", "2", "--dataloader_num_workers", "2"),
        ("--streaming", "true", "--shuffle_buffer_size", "5"),
        ("--streaming", "true", "--shuffle_buffer_size", "3", "--dataloader_num_workers", "3"),
    ],
)
def test_resume_equals_the_uninterrupted_run(pretrain, recipe, images, tmp_path, flags):
    run(pretrain, recipe, images, tmp_path / "straight", *flags)
    run_until_saved(4, lambda: run(pretrain, recipe, images, tmp_path / "resumed", *flags))
    torch.manual_seed(99)  # the state of the process must not matter
    run(pretrain, recipe, images, tmp_path / "resumed", *flags, "--resume_from_checkpoint", "latest")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


DIES_WHILE_SAVING = """
import importlib.util, os, signal, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("pretrain", sys.argv[1])
pretrain = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretrain)
from accelerate import Accelerator
save_state = Accelerator.save_state
def save_and_die(self, folder):
    save_state(self, folder)
    if "4" in folder.rpartition("step_")[2]:
        (Path(folder) / "optimizer.bin").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
Accelerator.save_state = save_and_die
pretrain.main(sys.argv[2:])
"""


def test_a_killed_save_leaves_the_checkpoint_before(finished_run, pretrain, recipe, images, tmp_path):
    """SIGKILL in the middle of the second save; then resume, and end where the others do."""
    flags = ["--config", recipe, "--train_data", str(images), "--output_dir", str(tmp_path / "killed")]
    flags += ["--eval_data", str(images), "--eval_split", "train"]
    process = forked_python.run(["-c", DIES_WHILE_SAVING, pretrain.__file__, *flags])
    assert process.returncode == -signal.SIGKILL, process.stderr
    left = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").iterdir())
    assert [name[:14] for name in left] == [".step_0000004.", "step_0000002"[:14]]
    pretrain.main([*flags, "--resume_from_checkpoint", "latest"])
    assert_same_run(finished_run[0], tmp_path / "killed")


def test_launched_by_accelerate_as_documented(recipe, images, tmp_path, pretrain):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", pretrain.__file__, "--config", recipe]
    command += ["--train_data", str(images), "--output_dir", str(tmp_path / "out"), "--max_steps", "2"]
    command += ["--report_to", "tensorboard"]
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert finished.returncode == 0, finished.stderr
    assert "returns (1, 17, 32)" in finished.stdout
    assert all(part in finished.stderr for part in ("local", "global", "ibot", "koleo", "entropy", "images/s"))
    assert list((tmp_path / "out" / "trackers").rglob("events.out.tfevents.*"))


def test_not_finite_stops_before_the_weights_are_touched(pretrain, recipe, images, tmp_path, monkeypatch):
    calls = []

    def poison(batch):
        calls.append(batch)
        if len(calls) == 4:
            batch["global_crops"][0, 2, 0, 3, 3] = torch.nan

    monkeypatch.setattr(loop.Step, "batches", changed_batches(poison))
    with pytest.raises(SystemExit) as stop:
        run(pretrain, recipe, images, tmp_path / "out", "--max_nonfinite_steps", "0")
    message = str(stop.value)
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    assert "the loss of step 4 is nan, number 1 in a row where `max_nonfinite_steps` (0) are left out" in message
    assert message.count(".png)") == 4
    assert message.endswith("--resume_from_checkpoint latest continues from " + f"{checkpoint}.")
    assert checkpoint.name == "step_0000002"
    assert all(torch.isfinite(value).all() for value in load_file(checkpoint / "model.safetensors").values())
    monkeypatch.undo()
    run(pretrain, recipe, images, tmp_path / "out", "--resume_from_checkpoint", "latest")


def test_broken_images_are_skipped_and_listed(pretrain, recipe, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "lying" / "empty.png").write_bytes(b"")
    whole = next(images.rglob("*.png")).read_bytes()
    (folder / "standing" / "torn.png").write_bytes(whole[: len(whole) // 2])
    run(pretrain, recipe, folder, tmp_path / "out", "--max_skipped_fraction", "0.5", "--max_steps", "12")
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped_images.jsonl").read_text().splitlines()]
    assert {Path(line["row_id"].rstrip(")")).name for line in lines} == {"empty.png", "torn.png"}
    assert {"the file is empty"} < {line["reason"] for line in lines}
    with pytest.raises(
        SystemExit, match="could not be decoded, more than `max_skipped_fraction` \\(0.01\\) of 26 allows"
    ):
        run(pretrain, recipe, folder, tmp_path / "strict", "--max_steps", "12")


MISTAKES = {
    "no images": (["--train_data", "{tmp}/empty"], "no images"),
    "no such folder": (["--train_data", "{tmp}/nowhere/x"], "does not exist"),
    "missing column": (["--image_column", "picture"], "'picture'.*columns: image, label"),
    "crop and patch": (["--local_crop_size", "10"], r"`local_crop_size` is 10.*`patch_size` \(4\).*8"),
    "image and patch": (["--image_size", "18"], r"`image_size` is 18.*`patch_size` \(4\)"),
    "one image and KoLeo": (["--per_device_train_batch_size", "1"], "`per_device_train_batch_size` is 1.*KoLeo"),
    "unknown key": (["--config", "{tmp}/typo.yaml"], "`num_prototype`. Did you mean `num_prototypes`"),
    "used folder": (["--output_dir", "{tmp}/used"], "already holds a run.*--resume_from_checkpoint"),
    "nothing to resume": (["--resume_from_checkpoint", "latest"], "holds no complete checkpoint"),
    "unlabelled bank": (
        ["--eval_data", "{images}", "--eval_split", "train", "--label_column", "kind"],
        "has no `kind` column",
    ),
    "scale": (["--global_crop_scale", "0.5", "1.5"], "global_crop_scale"),
    "long warm-up": (["--warmup_steps", "7"], r"`warmup_steps` is 7, more than `max_steps` \(6\)"),
    "precision": (["--mixed_precision", "bf8"], '`mixed_precision` is "bf8"'),
    "half a range": (["--mask_ratio", "0.3"], r"`mask_ratio` is \[0.3\]; it must be two numbers"),
    "three global crops": (["--global_blur_probabilities", "0", "0", "0"], "`global_blur_probabilities` is"),
    "channels": (["--num_channels", "4"], "num_channels is 4"),
    "activation": (["--hidden_act", "glu"], '`hidden_act` is "glu"'),
    "tracker": (["--report_to", "mlflow"], "`report_to` is mlflow, but this tracker is not installed"),
    "attention": (["--attn_implementation", "fast"], "fast"),
    "one class": (["--eval_data", "{one_class}", "--eval_bank_data", "{one_class}"], "has the one class"),
    "more images than there are": (["--per_device_train_batch_size", "64"], "64"),
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_before_training(pretrain, recipe, images, tmp_path, flags, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "metrics.jsonl").write_text("")
    write_marker(tmp_path / "used", "run")
    (tmp_path / "typo.yaml").write_text("num_prototype: 3")
    one_class = tmp_path / "one_class.parquet"
    only = load_image_dataset(str(images)).filter(lambda label: label == 0, input_columns="label")
    only.to_parquet(one_class)
    flags = [flag.format(tmp=tmp_path, images=images, one_class=one_class) for flag in flags]
    recipes = [] if "--config" in flags else ["--config", recipe]
    given = ["--train_data", str(images), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=f"(?s)^error: .*{message}") as stop:
        pretrain.main([*recipes, *given, *flags])
    assert "\n" not in str(stop.value)
    assert not (tmp_path / "out").exists()


def test_bf16_trains_with_float32_weights(pretrain, recipe, images, tmp_path):
    run(pretrain, recipe, images, tmp_path / "out", "--mixed_precision", "bf16", "--attn_implementation", "auto")
    assert {value.dtype for value in weights(tmp_path / "out").values()} == {torch.float32}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    forget_accelerate()
    run(pretrain, recipe, images, tmp_path / "full")
    expected = [json.loads(line)["loss"] for line in (tmp_path / "full" / "metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx(expected, rel=0.05)
    assert losses != expected


def test_knn_of_a_bf16_run_is_that_of_the_exported_model(pretrain, recipe, images, tmp_path, monkeypatch):
    """As `evaluate` measures it, in float32: to the last digit, and with the dtype of the features."""
    dtypes = []

    def noted(extractor, *arguments, **options):
        handle = extractor.model.register_forward_hook(
            lambda _, __, output: dtypes.append(output.last_hidden_state.dtype)
        )
        try:
            return evaluate_knn(extractor, *arguments, **options)
        finally:
            handle.remove()

    monkeypatch.setattr(evaluation, "evaluate_knn", noted)
    flags = ("--mixed_precision", "bf16", "--eval_data", str(images), "--eval_split", "train")
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    assert set(dtypes) == {torch.float32}
    dataset = load_image_dataset(str(images), split="train")
    folder = tmp_path / "out" / "model"
    extractor = FeatureExtractor(AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder))
    expected = evaluate_knn(extractor, dataset, dataset, ks=(10, 20))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["knn"]["after"] == expected


@pytest.mark.usefixtures("with_pictures")
def test_a_checkpoint_before_the_first_record(pretrain, recipe, images, tmp_path):
    """Without k-NN nothing is measured yet, so there is nothing to draw."""
    flags = ("--save_steps", "2", "--logging_steps", "3", "--max_steps", "3")
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    assert (tmp_path / "out" / "training_curves.png").is_file()


def test_a_broken_bank_image_does_not_stop_the_evaluation(pretrain, recipe, images, tmp_path, caplog):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    (folder / "lying" / "empty.png").write_bytes(b"")
    flags = ("--eval_data", str(images), "--eval_split", "train", "--max_skipped_fraction", "0.5")
    run(pretrain, recipe, folder, tmp_path / "out", *flags, "--max_steps", "2")
    assert "1 training images cannot be decoded and are left out" in caplog.text


def test_twenty_broken_images_in_a_row_stop_the_run(pretrain, recipe, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(24):
        (folder / f"{index}.png").write_bytes(b"")
    with pytest.raises(SystemExit, match="^stopped: 20 images in a row could not be decoded"):
        run(pretrain, recipe, folder, tmp_path / "out")


def test_a_stream_resumes_with_the_same_readers_only(pretrain, recipe, images, tmp_path):
    flags = ("--streaming", "--save_steps", "2", "--max_steps", "2")
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    flags += ("--resume_from_checkpoint", "latest", "--dataloader_num_workers", "1")
    with pytest.raises(SystemExit, match="`dataloader_num_workers` is 1, but .* was made with 0, and a stream"):
        run(pretrain, recipe, images, tmp_path / "out", *flags)


def test_a_stream_goes_on_where_it_was(pretrain, recipe, images, tmp_path, caplog):
    """What it had before the checkpoint is not read; where the checkpoint does not tell the place, all of it is."""
    flags = ("--streaming", "--shuffle_buffer_size", "4", "--max_steps", "24", "--save_steps", "22")
    run(pretrain, recipe, images, tmp_path / "straight", *flags)
    counts, read = [], StreamRows._read

    def counted(rows, *arguments):
        dataset, values = read(rows, *arguments)
        return dataset, (counts.append(1) or value for value in values)

    for name in ("again", "of an earlier version"):
        shutil.copytree(tmp_path / "straight", tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "step_0000024")
    checkpoint = tmp_path / "of an earlier version" / "checkpoints" / "step_0000022"
    (checkpoint / "data_position_0.json").unlink()
    write_manifest(checkpoint)
    numbers = []
    for name in ("again", "of an earlier version"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StreamRows, "_read", counted)
            forget_accelerate()
            run(pretrain, recipe, images, tmp_path / name, *flags, "--resume_from_checkpoint", "latest")
        assert_same_run(tmp_path / "straight", tmp_path / name)
        numbers.append(len(counts))
        counts.clear()
    assert 2 * 4 <= numbers[0] <= 2 * 4 + 5 * 4
    assert numbers[1] >= 24 * 4
    assert "step_0000022 does not tell where the stream was: up to there it is read again" in caplog.text


def test_a_stream_of_other_data_begins_anew(pretrain, recipe, images, tmp_path, caplog):
    shutil.copytree(images, tmp_path / "images")
    flags = ("--streaming", "--save_steps", "2")
    run_until_saved(4, lambda: run(pretrain, recipe, tmp_path / "images", tmp_path / "out", *flags))
    next((tmp_path / "images").rglob("*.png")).unlink()
    flags += ("--resume_from_checkpoint", "latest")
    with pytest.raises(SystemExit, match="`train_data shards` was 24 and is 23, so .* add --allow_recipe_change"):
        run(pretrain, recipe, tmp_path / "images", tmp_path / "out", *flags)
    run(pretrain, recipe, tmp_path / "images", tmp_path / "out", *flags, "--allow_recipe_change")
    assert "with another `train_data shards` the stream is another: a new pass over it begins" in caplog.text
    (of_worker,) = json.loads((tmp_path / "out/checkpoints/step_0000006/data_position_0.json").read_text())
    place, pass_index, *_ = of_worker[0]
    assert (place, pass_index) == (6 * 4, 1)


def test_two_processes_train_resume_and_export(pretrain, recipe, images, tmp_path, free_port):
    """DDP over gloo: one global order of the data, equal weights, and models that load at the end."""
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port), pretrain.__file__, "--output_dir", str(tmp_path / "out")]
    start = ["--config", recipe, "--train_data", str(images), "--per_device_train_batch_size", "4"]
    start += ["--eval_data", str(images), "--eval_split", "train"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    resumed = ["--resume_from_checkpoint", str(tmp_path / "out" / "checkpoints" / "step_0000004")]
    results = []
    for flags in (start, resumed):
        finished = forked_python.run([*command, *flags], env=environment)
        assert finished.returncode == 0, finished.stderr
        assert "8 = 4 per device x 1 accumulated x 2 processes" in finished.stdout
        assert "returns (1, 17, 32)" in finished.stdout
        results.append(weights(tmp_path / "out"))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert AutoModel.from_pretrained(tmp_path / "out" / "model").config.hidden_size == 32


def test_packed_crops_train_the_same(pretrain, recipe, images, tmp_path, monkeypatch):
    """What every GPU does, to rounding; stochastic depth draws in another order there."""
    without_pictures(monkeypatch)
    losses = []
    for packing in ("always", "never"):
        forget_accelerate()
        run(pretrain, recipe, images, tmp_path / packing, "--crop_packing", packing, "--drop_path_rate", "0")
        lines = (tmp_path / packing / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] != losses[1]


def test_the_share_of_the_peak_is_that_of_what_the_networks_need(
    pretrain, recipe, images, tmp_path, monkeypatch, capfd
):
    """On a device of a known peak; images per second and the share are of the same seconds."""
    monkeypatch.setattr(loop, "peak_flops", lambda device, precision: 1e9)
    needed, of_pass = [], loop.StepFlops.of_pass
    monkeypatch.setattr(loop.StepFlops, "of_pass", lambda *told: needed.append(of_pass(*told)) or needed[-1])
    flags = ("--logging_steps", "2", "--gradient_accumulation_steps", "2", "--eval_steps", "6", "--save_steps", "6")
    run(pretrain, recipe, images, tmp_path / "out", *flags)
    found = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert len(needed) == 12
    for number, record in enumerate(record for record in found if "loss" in record):
        assert record["mfu"] * 1e9 / record["images_per_second"] == pytest.approx(
            sum(needed[4 * number : 4 * number + 4]) / (4 * 4)
        )
        assert "peak_memory_gib" not in record
    assert "% of peak" in capfd.readouterr().err
