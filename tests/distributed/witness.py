"""
What the tests of backends launch: `examples/pretrain.py` on a CPU, with witnesses around its training loop, and
without its pictures, which take several times as long as its steps.

    accelerate launch ... tests/distributed/witness.py FOLDER [flags of pretrain.py]

Every process writes `facts_<rank>.json` to FOLDER, and `dtypes_<rank>.json`: the dtypes of weights and outputs of
blocks, norms and LayerScales while it trained. The main one also writes `weights.pt`, whole weights gathered in the
library's own way: `before` and `after` training, and `before_update` and `after_update` of the teacher in one step.
"""

import importlib.util
import itertools
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch.distributed.tensor import DTensor

from dinov2_hf.models.modeling_dinov2 import DINOv2Layer, DINOv2LayerScale
from dinov2_hf.runs import loop
from dinov2_hf.runs.ending import finished_run as results
from dinov2_hf.runs.ending import outputs
from dinov2_hf.training.processes.backends import allow_fsdp_on_cpu


WATCHED_STEP = 4
TRACED_BY = os.environ.get("TRACED_BY", "")  # the backend that a compiled run uses in the place of its own
POISONED_CALL = int(os.environ.get("POISONED_CALL", "-1"))  # the batch of the second process that holds a NaN, from 1


def whole(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The state dict by means of the library that shards."""
    module = accelerator.unwrap_model(model)
    if hasattr(next(module.parameters()), "ds_tensor"):
        import deepspeed

        # Leaves alone what is whole anyway, and so comparable with a run that is not watched.
        with deepspeed.zero.GatheredParameters([p for p in module.parameters() if p.shape != p.ds_shape]):
            weights = {name: value.clone() for name, value in module.state_dict().items()}
    else:
        weights = {name: value.clone() for name, value in accelerator.get_state_dict(model).items()}
    return weights if accelerator.is_main_process else None


def watch_dtypes(model: torch.nn.Module) -> dict[str, list[str]]:
    """Of every block, norm and LayerScale the dtypes of weights and output in forward passes; filled as they run."""
    seen = {}

    def look(name):
        def hook(module, _, output):
            weights = (parameter.dtype for parameter in module.parameters(recurse=False))
            seen[name] = sorted({*seen.get(name, ()), str(output.dtype), *map(str, weights)})

        return hook

    for name, module in model.named_modules():
        if isinstance(module, DINOv2Layer | DINOv2LayerScale | torch.nn.LayerNorm):
            module.register_forward_hook(look(name))
    return seen


def watch(pretrain, folder: Path) -> None:
    train, update_ema, step_batches = pretrain.train, pretrain.update_ema, loop.Step.batches
    watched, calls = {}, []

    def watching_train(run, model, optimizer):
        accelerator, module = run.accelerator, run.module
        facts = {
            "distributed_type": accelerator.distributed_type.value,
            "num_processes": accelerator.num_processes,
            "dtensors": sum(isinstance(p, DTensor) for p in module.parameters()),
            "zero3_shares": sum(hasattr(p, "ds_tensor") for p in module.parameters()),
            "parameters": len(list(module.parameters())),
            "stored": sorted({str(getattr(p, "ds_tensor", p).dtype) for p in module.parameters()}),
        }
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            facts["zero_stage"] = model.zero_optimization_stage()
            facts["gradient_clipping"] = model.gradient_clipping()
        (folder / f"facts_{accelerator.process_index}.json").write_text(json.dumps(facts))

        def watching_update(average, student, momentum, left_out):
            calls.append("update")
            if len(calls) != WATCHED_STEP:
                return update_ema(average, student, momentum, left_out)
            watched["before_update"] = whole(accelerator, model)
            update_ema(average, student, momentum, left_out)
            watched["after_update"] = whole(accelerator, model)
            watched["momentum"] = momentum

        pretrain.update_ema = watching_update
        watched["before"] = whole(accelerator, model)
        dtypes = {} if TRACED_BY else watch_dtypes(module)  # hooks would be compiled with the rest
        try:
            train(run, model, optimizer)
        finally:
            watched["after"] = whole(accelerator, model)
            (folder / f"dtypes_{accelerator.process_index}.json").write_text(json.dumps(dtypes))
            if accelerator.is_main_process:
                torch.save(watched, folder / "weights.pt")

    numbers = itertools.count(1)

    def poisoned(step):
        for batch in step_batches(step):
            if next(numbers) == POISONED_CALL and os.environ["RANK"] == "1":
                batch["global_crops"][0, 2, 0, 3, 3] = torch.nan
            yield batch

    pretrain.train, loop.Step.batches = watching_train, poisoned


if __name__ == "__main__":
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        allow_fsdp_on_cpu()
    script = Path(__file__).parents[2] / "examples" / "pretrain.py"
    spec = importlib.util.spec_from_file_location("pretrain", script)
    pretrain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pretrain)
    outputs.plot_training_curves = results.save_patch_pca = lambda *_, **__: None
    watch(pretrain, Path(sys.argv[1]))
    with torch.compiler.set_stance(force_backend=TRACED_BY) if TRACED_BY else nullcontext():
        pretrain.main(sys.argv[2:])
