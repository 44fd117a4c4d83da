"""What a reader of the documents does, in a process of its own: a folder with data and a run, blocks, commands."""

import contextlib
import glob
import importlib.util
import io
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from tests.docs.documents import ROOT


# The documents' commands are about real networks and days of training; these flags come behind their own.
SHORT_RUN = (
    "--hidden_size 64 --num_hidden_layers 4 --num_attention_heads 1 --image_size 56 --local_crop_size 28"
    " --num_local_crops 2 --num_prototypes 32 --head_hidden_size 32 --bottleneck_size 16 --max_steps 2"
    " --warmup_steps 1 --teacher_temperature_warmup_steps 1 --freeze_last_layer_steps 0"
    " --per_device_train_batch_size 4 --dataloader_num_workers 0 --logging_steps 1 --mixed_precision no"
).split()
# Of a run that starts from weights, these are theirs.
NETWORK = {"--hidden_size", "--num_hidden_layers", "--num_attention_heads"}
# Features are compared of global crops, and without heads.
HEADS = {
    "--num_local_crops", "--local_crop_size", "--head_hidden_size", "--bottleneck_size", "--freeze_last_layer_steps",
    "--teacher_temperature_warmup_steps",
}  # fmt: skip
SHORTER = {
    "pretrain": SHORT_RUN,
    "distill": [word for words in zip(SHORT_RUN[::2], SHORT_RUN[1::2], strict=True) for word in words
                if words[0] != "--num_prototypes"],
    # Processes that decode images take longer to start than all these images take.
    "curate": ["--num_workers", "0", "--progress", "false"],
    "evaluate": "--num_workers 0 --knn_ks 1 --linear_num_steps 20 --linear_train_batch_size 8".split(),
}  # fmt: skip
KEPT: set[Path] = set()
PLACES = ("outputs/my_run/*", "outputs/*", "*")
# Numbers of a long run that a run of two steps takes in their place.
SMALL_NUMBERS = {
    "--max_steps": "2", "--stop_after_steps": "1", "--export_every": "1", "--eval_steps": "1", "--cooldown_steps": "1",
}  # fmt: skip
IMAGE_FOLDERS = (
    "path/to/images", "path/to/labelled_images", "path/to/others", "path/to/test_set", "path/to/train", "path/to/test",
    "crawl/2024", "crawl/2025",
)  # fmt: skip


def make_world(folder: str) -> None:
    """Go to `folder`, which gets images, this repository's examples, and released models on the Hub."""
    os.chdir(folder)
    rng = np.random.default_rng(0)
    for number, name in enumerate(IMAGE_FOLDERS):
        for index in range(24):  # `knn_top1_k20` needs 20
            path = Path(name) / ("dark", "light")[index % 2] / f"{number}_{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_picture(rng, 100 + 50 * (index % 2)).save(path)
    for name in ("image.jpg", "street.jpg"):
        draw_picture(rng, 128).save(name)
    Path("examples").symlink_to(ROOT / "examples")
    Path("path/to/this").mkdir()
    Path("path/to/this/repository").symlink_to(ROOT)


def draw_picture(rng: np.random.Generator, brightness: int) -> Image.Image:
    """A picture that is like no other: ellipses and boxes, 80 x 64 pixels."""
    image = Image.new("RGB", (80, 64), tuple(int(value) for value in rng.integers(0, brightness, 3)))
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle) * 3:
        x, y, width, height = (int(value) for value in rng.integers((0, 0, 10, 10), (60, 50, 40, 40)))
        colour = tuple(int(value) for value in rng.integers(brightness - 100, brightness + 100, 3))
        shape((x, y, x + width, y + height), fill=colour)
    return image


def released_models(folder: str) -> dict[str, dict[str, bytes]]:
    """Files of repositories on the Hub: stock models with random weights, small but where a name says the size."""
    from transformers import (
        BitImageProcessor,
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
    )

    tiny = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    small = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
    models = {
        "facebook/dinov2-base": Dinov2Model(Dinov2Config(**tiny)),
        "facebook/dinov2-with-registers-base": Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**tiny)),
        "facebook/dinov2-small": Dinov2Model(Dinov2Config(**small)),
    }
    files = {}
    for name, model in models.items():
        place = Path(folder) / name
        model.save_pretrained(place)
        BitImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225], resample=3,
        ).save_pretrained(place)  # fmt: skip
        files[name] = {path.name: path.read_bytes() for path in place.iterdir()}
    return files


def write_teacher_checkpoint() -> None:
    """What a training of the original leaves: the run's model, with the names of its `teacher_checkpoint.pth`."""
    import torch

    run_command(["dinov2-hf", "convert", "outputs/my_run", "backbone.pth"])
    weights = torch.load("backbone.pth")
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in weights.items()}}, "teacher_checkpoint.pth")


def remember_world() -> None:
    """What is there now is what `restore_world` leaves."""
    KEPT.update(path for pattern in PLACES for path in Path().glob(pattern))


def restore_world() -> None:
    """Remove what a page left, so that the next one finds what every reader has."""
    for path in [path for pattern in PLACES for path in Path().glob(pattern)]:
        if path not in KEPT:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def run_block(text: str, name: str) -> None:
    """Run a block of Python as a script of its own."""
    exec(compile(text, name, "exec"), {"__name__": "__main__"})


def run_command(words: list[str]) -> str:
    """Run a command in this process, made `shorter`. What it printed comes back."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from dinov2_hf.cli import main

    printed = io.StringIO()
    words = [found for word in words for found in (sorted(glob.glob(word)) if "*" in word else [word])]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            if words[0] == "dinov2-hf":
                main([*words[1:], *shorter(words[1], words[2:])])
            else:
                name = Path(words[0]).stem
                load_example(name).main([*words[1:], *shorter(name, words[1:])])
    except SystemExit as stop:
        if stop.code:
            raise AssertionError(f"{printed.getvalue()[-2000:]}\n{stop.code}") from None
    finally:
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
    return printed.getvalue()


def shorter(command: str, words: list[str]) -> list[str]:
    """What is put behind the words of a command for a run of seconds. What it says itself stays, but its length."""
    if "--help" in words or "--resume_from_checkpoint" in words:
        return []
    added = [SMALL_NUMBERS[word] if word in SMALL_NUMBERS else None for word in words]
    more = [text for word, number in zip(words, added, strict=True) if number for text in (word, number)]
    said = {word for word in words if word.startswith("--")}
    if "--init_from" in words:
        said |= NETWORK
        more += ["--freeze_backbone_steps", "1"]
    if "vits14_features" in words:
        said |= HEADS
    options = SHORTER.get(command, [])
    for name, value in zip(options[::2], options[1::2], strict=True):
        protocol = name.removeprefix("--").partition("_")[0]
        is_of_another = command == "evaluate" and name != "--num_workers" and protocol not in words[0].split(",")
        if name not in said and not is_of_another:
            more += [name, value]
    return more


def load_example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
