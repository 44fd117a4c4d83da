"""
bf16 under FSDP2 with the same result as autocast under DDP: matrices are multiplied in bf16, everything else is
float32.

FSDP2 gives weights in one dtype for each sharded unit. In bf16 a norm, a LayerScale of 1e-5 or a position would be
rounded, and with them the residual stream: an update that LayerScale makes small is lost in it. So the matrices are
separate units, in bf16, inside the units that Accelerate makes, in float32.
"""

import torch
from accelerate import Accelerator
from torch import nn


MATRICES = (nn.Linear, nn.Conv2d)  # whose weights autocast would round at every use


def shard_matrices_in_bf16(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """
    Shard the modules of `model` that consist only of matrices, and replace their parameters in `optimizer` by the
    sharded ones. `accelerator.prepare` shards the rest.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    plugin = accelerator.state.fsdp_plugin
    mesh = getattr(accelerator, "torch_device_mesh", None)
    # Gradients are summed in float32. Activations are left to autocast.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for module in modules_of_matrices(model):
        fully_shard(
            module,
            mesh=mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh is not None else None,
            reshard_after_forward=plugin.reshard_after_forward,
            mp_policy=policy,
            offload_policy=plugin.cpu_offload,
        )
    sharded = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sharded[names[parameter]] for parameter in group["params"]]


def modules_of_matrices(module: nn.Module) -> list[nn.Module]:
    """The largest modules inside `module` all of whose parameters are those of linear maps and convolutions."""
    found = []
    for child in module.children():
        owners = [owner for owner in child.modules() if any(True for _ in owner.parameters(recurse=False))]
        # A container has no forward pass, in which FSDP2 would hand out the weights.
        is_container = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if owners and not is_container and all(isinstance(owner, MATRICES) for owner in owners):
            found.append(child)
        else:
            found += modules_of_matrices(child)
    return found
