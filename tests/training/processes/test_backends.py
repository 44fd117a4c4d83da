"""What a launch asks for is what a run gets, or one sentence; tests/distributed runs the backends themselves."""

from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType, DynamoBackend

from dinov2_hf.training.processes.backends import configure_backend, resume_launch
from tests.examples.conftest import forget_accelerate, images, load_example, recipe  # noqa: F401


RECIPE = {
    "mixed_precision": "no",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 3.0,
    "clip_per_part": False,
    "compile": "no",
}


def accelerator(backend: str, num_processes: int = 2, **plugin):
    """What is read of an `Accelerator` under a backend."""
    kinds = {"zero": DistributedType.DEEPSPEED, "fsdp": DistributedType.FSDP, "ddp": DistributedType.MULTI_GPU}
    kind = next((kind for name, kind in kinds.items() if backend.startswith(name)), DistributedType.NO)
    state = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO))
    if kind == DistributedType.DEEPSPEED:
        state.deepspeed_plugin = SimpleNamespace(zero_stage=int(backend[-1]), **plugin)
    if kind == DistributedType.FSDP:
        state.fsdp_plugin = SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False, **plugin)
    return SimpleNamespace(distributed_type=kind, num_processes=num_processes, state=state, mixed_precision="no")


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_deepspeed_gets_the_recipe(two_processes):
    pytest.importorskip("deepspeed")
    config = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}, "gradient_clipping": 1.0}
    configure_backend(accelerator("zero2", deepspeed_config=config), **{**RECIPE, "mixed_precision": "bf16"})
    assert config["gradient_clipping"] == 3.0
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 2
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert not config["bf16"]["enabled"]


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        ("zero2", {"clip_per_part": True}, "`clip_per_part` is true, but DeepSpeed clips all gradients by one norm"),
        ("zero3", {"mixed_precision": "fp16"}, '`mixed_precision` is "fp16", which zero3 does not train with'),
        ("zero1", {"compile": "blocks"}, '`compile` is "blocks", but DeepSpeed moves weights'),
        ("fsdp2", {"mixed_precision": "fp16"}, '`mixed_precision` is "fp16", which fsdp2 does not train with'),
    ],
)
def test_what_a_backend_cannot_do(two_processes, backend, changes, message):
    with pytest.raises(ValueError, match=message):
        configure_backend(accelerator(backend), **{**RECIPE, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsdp_version": 1}, "`fsdp_version` is 1; it must be 2"),
        ({"cpu_ram_efficient_loading": True}, "`fsdp_cpu_ram_efficient_loading` is true"),
    ],
)
def test_settings_of_fsdp_that_are_refused(two_processes, changes, message):
    launched = accelerator("fsdp2")
    vars(launched.state.fsdp_plugin).update(changes)
    with pytest.raises(ValueError, match=message):
        configure_backend(launched, **RECIPE)


@pytest.mark.parametrize(
    ("saved", "saved_processes", "backend", "processes", "message"),
    [
        ("ddp", 2, "single", 1, None),
        ("ddp", 2, "ddp", 4, None),
        ("fsdp2", 2, "fsdp2", 4, None),
        ("zero2", 2, "zero2", 2, None),
        ("zero2", 2, "zero2", 4, "has 4 processes, but DeepSpeed's checkpoint is split for 2.*`pretraining_model`"),
        ("zero2", 2, "zero3", 2, "launched as zero3, but the checkpoint is of a run as zero2"),
        ("fsdp2", 2, "ddp", 2, "launched as ddp, but the checkpoint is of a run as fsdp2"),
    ],
)
def test_which_checkpoint_a_launch_can_continue(saved, saved_processes, backend, processes, message):
    launched = {"backend": saved, "num_processes": saved_processes}
    if message is None:
        resume_launch(accelerator(backend, processes), {"launch": launched})
    else:
        with pytest.raises(ValueError, match=message):
            resume_launch(accelerator(backend, processes), {"launch": launched})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "the launch asks for FSDP, but Accelerate made NO of it"),
        ({"WORLD_SIZE": "2"}, "2 processes were launched, but Accelerate connects 1 of them"),
    ],
)
def test_the_script_refuses_a_silent_fallback(recipe, images, tmp_path, monkeypatch, environment, message):  # noqa: F811
    forget_accelerate()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        load_example("pretrain").main(
            ["--config", recipe, "--train_data", str(images), "--output_dir", str(tmp_path / "out")]
        )
    assert not (tmp_path / "out").exists()
    forget_accelerate()
