import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from dinov2_hf.runs import loop
from dinov2_hf.runs.ending import finished_run as results
from dinov2_hf.runs.ending import outputs
from dinov2_hf.training.checkpointing.checkpoints import CheckpointSaver
from tests.evaluation.dense.data import banded_images


EXAMPLES = Path(__file__).parents[2] / "examples"

# A network of 2 layers on 16 px images: a step takes milliseconds.
TINY = """
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
image_size: 16
patch_size: 4
layerscale_value: 0.1
drop_path_rate: 0.3
num_prototypes: 32
head_hidden_size: 32
bottleneck_size: 16
local_crop_size: 8
num_local_crops: 2
max_steps: 6
per_device_train_batch_size: 4
learning_rate: 1e-3
learning_rate_scaling: none
warmup_steps: 2
freeze_last_layer_steps: 1
teacher_momentum: 0.9
teacher_temperature_warmup_steps: 3
logging_steps: 1
save_steps: 2
eval_steps: 3
eval_pictures: 0
eval_resize_size: 16
dataloader_num_workers: 0
mixed_precision: "no"
attn_implementation: sdpa
"""


def load_example(name: str):
    """A script of the examples as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """They take several times as long as a run."""
    patch.setattr(outputs, "plot_training_curves", lambda *_, **__: None)
    patch.setattr(results, "save_patch_pca", lambda *_, **__: None)
    patch.setattr(results, "pipeline", lambda *_, **__: lambda *_, **__: torch.zeros(1))


@contextlib.contextmanager
def drawn(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo `without_pictures` for a block."""
    patch.undo()
    yield
    without_pictures(patch)


@pytest.fixture(scope="package", autouse=True)
def no_pictures():
    """Of runs in tests and fixtures, but those of a session."""
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        yield patch


@pytest.fixture
def with_pictures(no_pictures):
    with drawn(no_pictures):
        yield


class Interrupted(Exception):
    pass


def run_until_saved(step: int, run: Callable[[], None]) -> None:
    """Let a run end by no fault of its own, as soon as it has saved the checkpoint of that step."""
    save = CheckpointSaver.save

    def save_and_stop(saver, state, **options):
        save(saver, state, **options)
        if state["step"] == step:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointSaver, "save", save_and_stop)
        with pytest.raises(Interrupted):
            run()


def forget_accelerate() -> None:
    """Let the next run of a script in this process find Accelerate as a new process would."""
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


def changed_batches(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable:
    """`Step.batches` whose batches go through `change` on their way to the network."""
    batches = loop.Step.batches

    def changed(step):
        for batch in batches(step):
            change(batch)
            yield batch

    return changed


@pytest.fixture(autouse=True)
def fresh_accelerate():
    forget_accelerate()


@pytest.fixture(scope="session")
def pretrain():
    return load_example("pretrain")


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="session")
def masks(tmp_path_factory) -> Path:
    """A folder with the splits train (5 images) and test (3), of three bands of colour and their masks."""
    folder = tmp_path_factory.mktemp("masks")
    for seed, (split, count) in enumerate({"train": 5, "test": 3}.items()):
        banded_images(count, seed).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def evaluations(images, masks) -> list[str]:
    """The flags of every evaluation that a run may have."""
    labelled = ["--eval_data", str(images), "--eval_split", "train", "--linear_eval_steps", "6"]
    return [*labelled, "--dense_eval_data", str(masks)]


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """24 PNG files in two class folders: stripes that lie and stripes that stand, with noise."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(24):
        kind = ("lying", "standing")[index % 2]
        stripes = np.where(np.arange(24) // 3 % 2, 200, 50)[:, None].repeat(20, axis=1)
        pixels = np.clip(
            (stripes if kind == "lying" else stripes[:20].T.repeat(1, axis=0)) + rng.normal(0, 25), 0, 255
        )
        pixels = np.clip(pixels[..., None] + rng.normal(0, 25, (*pixels.shape, 3)), 0, 255)
        (folder / kind).mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{index:02d}.png")
    return folder
