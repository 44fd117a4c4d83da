"""
How a run is distributed over processes: not at all, replicated (DDP), or sharded (FSDP2, DeepSpeed ZeRO-1/2/3).

The loop is the same for all. This module has what a backend needs before it starts. `accelerate launch` chooses the
backend, and the recipe chooses batch, precision and clipping. Neither may silently override the other.
"""

import importlib.metadata
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    DynamoBackend,
    InitProcessGroupKwargs,
    KwargsHandler,
    parse_flag_from_env,
)
from packaging.version import Version

from .sharded_precision import shard_matrices_in_bf16


MIN_DEEPSPEED = "0.19.8"


def launch_settings(use_cpu: bool) -> list[KwargsHandler]:
    """The `kwargs_handlers` for `Accelerator`."""
    # Beyond the usual 10 minutes: the others wait while the main process evaluates.
    process_group = {"timeout": timedelta(hours=4)}
    if use_cpu and "LOCAL_RANK" in os.environ:  # DeepSpeed would not start one by itself
        process_group["backend"] = "gloo"
    # Otherwise DDP keeps gradients twice, 4 bytes more for each parameter.
    return [InitProcessGroupKwargs(**process_group), DistributedDataParallelKwargs(gradient_as_bucket_view=True)]


def backend_name(accelerator: Accelerator) -> str:
    """`"single"`, `"ddp"`, `"fsdp2"`, `"zero1"`, `"zero2"` or `"zero3"`."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return f"zero{accelerator.state.deepspeed_plugin.zero_stage}"
    if accelerator.distributed_type == DistributedType.FSDP:
        return "fsdp2"
    return "ddp" if accelerator.num_processes > 1 else "single"


COMPUTE_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # of `compute_precision`


def compute_precision(accelerator: Accelerator) -> str:
    """`"no"`, `"bf16"` or `"fp16"`: the precision of matrix products. Weights are always float32."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # where Accelerate knows of cast weights only
        return "bf16" if accelerator.state.deepspeed_plugin.deepspeed_config["torch_autocast"]["enabled"] else "no"
    return accelerator.mixed_precision


def configure_backend(
    accelerator: Accelerator,
    *,
    mixed_precision: str,
    per_device_train_batch_size: int,
    gradient_accumulation_steps: int,
    max_grad_norm: float,
    clip_per_part: bool,
    compile: str,
) -> None:
    """
    Configure the backend by the recipe.

    Raises:
        `ValueError`: Accelerate fell back to another backend than the launch asked for, or the backend cannot do what
            the recipe asks.
    """
    _check_launch(accelerator)
    backend = backend_name(accelerator)
    if compile != "no" and (dynamo := accelerator.state.dynamo_plugin.backend) != DynamoBackend.NO:
        raise ValueError(
            f'`compile` is "{compile}", but the launch compiles too, by the dynamo backend {dynamo.value.lower()};'
            ' launch without it, or set `compile` to "no".'
        )
    if compile != "no" and backend.startswith("zero"):
        raise ValueError(
            f'`compile` is "{compile}", but DeepSpeed moves weights in the middle of what is compiled; set it to "no",'
            " or use the fsdp2 or ddp backend."
        )
    if backend in ("single", "ddp"):
        return
    if mixed_precision == "fp16":
        raise ValueError(
            f'`mixed_precision` is "fp16", which {backend} does not train with here; use "bf16", or the ddp backend.'
        )
    if backend == "fsdp2":
        _configure_fsdp2(accelerator.state.fsdp_plugin)
        return
    if clip_per_part:
        raise ValueError(
            "`clip_per_part` is true, but DeepSpeed clips all gradients by one norm; set it to false, or use the fsdp2"
            " or ddp backend."
        )
    _configure_deepspeed(
        accelerator.state.deepspeed_plugin.deepspeed_config,
        train_micro_batch_size_per_gpu=per_device_train_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        gradient_clipping=max_grad_norm,  # 1.0 when left out
        torch_autocast={"enabled": mixed_precision == "bf16", "dtype": "bfloat16"},
    )


def prepare(
    accelerator: Accelerator, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """`accelerator.prepare`. Afterwards `model` computes in the precision of the run under every backend."""
    if backend_name(accelerator) == "fsdp2" and accelerator.mixed_precision == "bf16":
        # Accelerate casts inputs and outputs of every block instead, with them the residual stream and the loss.
        model.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(model.forward)
        shard_matrices_in_bf16(accelerator, model, optimizer)
    return accelerator.prepare(model, optimizer)


def resume_launch(accelerator: Accelerator, state: dict) -> None:
    """
    Record in the `state` of a run how it is launched.

    Raises:
        `ValueError`: its checkpoint belongs to another backend, or under DeepSpeed to another number of processes, so
            this launch cannot read it.
    """
    backend, processes = backend_name(accelerator), accelerator.num_processes
    launch = {"backend": backend, "num_processes": processes}
    saved, state["launch"] = state.get("launch", launch), launch
    way_round = "or start a new run from the `pretraining_model` that a finished run exports"
    if {saved["backend"], backend} == {"single", "ddp"}:  # one process or several of the same files
        return
    if saved["backend"] != backend:
        raise ValueError(
            f"this run is launched as {backend}, but the checkpoint is of a run as {saved['backend']}, which it cannot"
            f" read; launch it as {saved['backend']}, {way_round}."
        )
    if backend.startswith("zero") and saved["num_processes"] != processes:
        raise ValueError(
            f"this run has {processes} processes, but DeepSpeed's checkpoint is split for {saved['num_processes']} and"
            f" cannot be read by another number; launch {saved['num_processes']}, {way_round}."
        )


def allow_fsdp_on_cpu() -> None:
    """Let FSDP2 also run over gloo, for tests and measurements. Call it before creating an `Accelerator`."""
    original = PartialState.__init__

    def init(self, cpu: bool = False, **kwargs):
        original(self, cpu, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = init


def _check_launch(accelerator: Accelerator) -> None:
    actual = accelerator.distributed_type
    for flag, wanted in (
        ("ACCELERATE_USE_DEEPSPEED", DistributedType.DEEPSPEED),
        ("ACCELERATE_USE_FSDP", DistributedType.FSDP),
    ):
        if parse_flag_from_env(flag) and actual != wanted:
            raise ValueError(
                f"the launch asks for {wanted.value}, but Accelerate made {actual.value} of it; leave out"
                " `ACCELERATE_USE_CPU`, and for FSDP2 use a GPU."
            )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    # A process group may exist that Accelerate does not use.
    connected = 1 if actual == DistributedType.NO else accelerator.num_processes
    if connected != launched:
        raise ValueError(
            f"{launched} processes were launched, but Accelerate connects {connected} of them, so each would train"
            " alone; start them with `accelerate launch` or torchrun."
        )


def _configure_fsdp2(plugin) -> None:
    if plugin.fsdp_version != 2:
        raise ValueError(f"`fsdp_version` is {plugin.fsdp_version}; it must be 2.")
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "`fsdp_cpu_ram_efficient_loading` is true, which loses the weights that a run starts with; make it false."
        )
    plugin.mixed_precision_policy = None  # float32, but for what `shard_matrices_in_bf16` takes out


def _configure_deepspeed(config: dict, **from_recipe) -> None:
    from transformers.integrations import unset_hf_deepspeed_config

    version = importlib.metadata.version("deepspeed")
    if Version(version) < Version(MIN_DEEPSPEED):
        raise ValueError(
            f"deepspeed is {version}, which may put gradients that are not finite into the weights; it must be"
            f" {MIN_DEEPSPEED} or newer."
        )
    # `bf16.enabled` would cast the teacher too, which then stands still: autocast leaves all weights in float32.
    config.update(from_recipe, bf16={"enabled": False}, fp16={"enabled": False}, zero_allow_untested_optimizer=True)
    if config["zero_optimization"].get("offload_param", {}).get("device") == "nvme":
        raise ValueError(
            '`offload_param_device` is "nvme", where the teacher cannot be averaged; use "cpu" or "none".'
        )
    # Else transformers splits the weights of ZeRO-3 while a model is made, before the teacher is copied from the
    # student, and a model loaded by the main process alone waits for the others forever.
    unset_hf_deepspeed_config()
