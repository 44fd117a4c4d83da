import importlib.util
import json
import os
import shutil
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch

from tests import forked_python
from tests.examples.conftest import evaluations, images, masks  # noqa: F401  (fixtures)

from .one_process import train_alone


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate_configs"
WITHOUT_DEEPSPEED = next(
    (
        f"needs {name}"
        for name, found in (
            ("deepspeed", importlib.util.find_spec("deepspeed")),
            ("ninja, to compile DeepSpeed's operators", importlib.util.find_spec("ninja")),
            ("a C++ compiler, for DeepSpeed's operators", shutil.which("g++") or shutil.which("c++")),
        )
        if not found
    ),
    None,
)
deepspeed = pytest.mark.skipif(WITHOUT_DEEPSPEED is not None, reason=str(WITHOUT_DEEPSPEED))

POISONED_STEP = 10
# A step takes milliseconds. Each head has one matrix above ZeRO-3's limit of 100,000 elements for what it keeps whole,
# clipping is active in every step, and what differs between one process and two is off: KoLeo, stochastic depth, and
# softmax centering, whose centre of patches is a mean of the means of processes. Crops are packed, as on every GPU; in
# the one process that all is compared with each size has a pass of its own.
RECIPE = """
hidden_size: 32
num_hidden_layers: 2
num_attention_heads: 2
image_size: 16
patch_size: 4
layerscale_value: 0.1
drop_path_rate: 0.0
num_prototypes: 4096
head_hidden_size: 32
bottleneck_size: 32
separate_ibot_head: true
centering: sinkhorn_knopp
koleo_loss_weight: 0.0
local_crop_size: 8
num_local_crops: 2
max_steps: 12
per_device_train_batch_size: 4
learning_rate: 1e-3
learning_rate_scaling: none
warmup_steps: 0
freeze_last_layer_steps: 1
max_grad_norm: 0.3
teacher_momentum: 0.999
teacher_temperature_warmup_steps: 3
logging_steps: 1
save_steps: 6
eval_steps: 12
eval_pictures: 0
eval_resize_size: 16
dataloader_num_workers: 0
mixed_precision: "no"
attn_implementation: sdpa
crop_packing: always
"""


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@dataclass
class Run:
    """A finished run of `witness.py`."""

    output_dir: Path
    witnessed: Path
    printed: str
    returncode: int

    @property
    def facts(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in sorted(self.witnessed.glob("facts_*.json"))]

    @property
    def dtypes(self) -> list[dict[str, list[str]]]:
        return [json.loads(path.read_text()) for path in sorted(self.witnessed.glob("dtypes_*.json"))]

    @cached_property
    def weights(self) -> dict:
        return torch.load(self.witnessed / "weights.pt")

    def records(self, metric: str) -> list[dict]:
        lines = (self.output_dir / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if metric in record]


def environment(config: str, **extra: str) -> dict[str, str]:
    """For a launch on a CPU, which Accelerate and DeepSpeed must be told of in different ways."""
    device = {"DS_ACCELERATOR": "cpu"} if config.startswith("deepspeed") else {"ACCELERATE_USE_CPU": "true"}
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **device, **extra}


def launch_command(config: str, num_processes: int, script: str) -> list[str]:
    """Of a script of this folder, on a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{config}.yaml")]
    command += ["--num_processes", str(num_processes), "--main_process_port", str(port)]
    return [*command, str(Path(__file__).parent / script)]


@pytest.fixture(scope="session")
def launch(recipe, images):  # noqa: F811
    def launch(config: str, output_dir: Path, *flags: str, num_processes: int = 2, **extra: str) -> Run:
        witnessed = output_dir.with_name(f"{output_dir.name}.witnessed")
        witnessed.mkdir(exist_ok=True)
        command = [*launch_command(config, num_processes, "witness.py"), str(witnessed), "--config", str(recipe)]
        command += ["--train_data", str(images), "--output_dir", str(output_dir), *flags]
        finished = forked_python.run(command, env=environment(config, **extra))
        return Run(output_dir, witnessed, finished.stdout + finished.stderr, finished.returncode)

    return launch


def clips_per_part(backend: str) -> bool:
    return not backend.startswith("deepspeed")  # which clips by one norm


@pytest.fixture(scope="session")
def straight(launch, evaluations, tmp_path_factory):  # noqa: F811
    """
    An uninterrupted run under a backend, made when it is first asked for. In step 10, counted from 0, the second
    process meets a NaN.
    """
    runs = {}

    def straight(backend: str):
        if backend not in runs:
            flags = [
                "--clip_per_part",
                str(clips_per_part(backend)).lower(),
                *evaluations,
            ]
            poisoned = str(POISONED_STEP + 1)
            runs[backend] = launch(backend, tmp_path_factory.mktemp(backend) / "out", *flags, POISONED_CALL=poisoned)
            assert runs[backend].returncode == 0, runs[backend].printed
        return runs[backend]

    return straight


@pytest.fixture(scope="session")
def alone(recipe, images):  # noqa: F811
    runs = {}

    def alone(clip_per_part: bool):
        if clip_per_part not in runs:
            runs[clip_per_part] = train_alone(recipe, images, clip_per_part, leave_out=POISONED_STEP)
        return runs[clip_per_part]

    return alone
