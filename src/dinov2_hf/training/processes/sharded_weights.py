"""
Weights that are distributed over processes: this process's share of them, and whole weights.

A parameter has one of three forms. Under DDP and DeepSpeed ZeRO-1/2 it is a plain tensor, the same on every process.
Under FSDP2 it is a `DTensor`. Under ZeRO-3 it is a plain tensor, empty most of the time, with its share as
`ds_tensor`: a float32 slice of the flat weights, padded to the same length on every process.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ..trained_parts import merged_weights


def is_sharded(module: nn.Module) -> bool:
    """Whether processes hold different parts of the weights of `module`."""
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_tensor") for parameter in module.parameters())


def num_parameters(module: nn.Module) -> int:
    """The number of parameters of `module`, including those that other processes hold."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


def local_share(parameter: nn.Parameter) -> torch.Tensor:
    """This process's share of a parameter, for changes in place. Call `drop_stale_copies` afterwards."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return getattr(parameter, "ds_tensor", parameter.data)


def drop_stale_copies(module: nn.Module) -> None:
    """
    Call this after a change of `local_share`. ZeRO-3 keeps whole copies of small parameters on every process, in the
    dtype that it sends. Without these copies the next forward pass gathers them again.
    """
    whole = [parameter for parameter in module.parameters() if getattr(parameter, "ds_shape", None) == parameter.shape]
    if whole:
        whole[0].partition(param_list=whole)


def whole_weights(module: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """
    The state dict of `module` with whole tensors, on the processes that `keep` them. Every process must call it.

    Sharded weights are gathered one tensor at a time and kept in the memory of the host. Other weights are returned
    unchanged.
    """
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    weights, sharded = {}, is_sharded(module)
    for name in module.state_dict():
        whole = _gather(tensors[name])
        if keep:
            weights[name] = whole.cpu() if sharded else whole
    return weights


def whole_copy(module: PreTrainedModel) -> PreTrainedModel:
    """
    A module that each process can run alone: `module` if its weights are not sharded, else a copy with whole weights
    in the memory of the host. Every process must call it.
    """
    if not is_sharded(module):
        return module
    weights = whole_weights(module, keep=True)
    with torch.device("meta"):
        copy = type(module)._from_config(module.config, attn_implementation=module.config._attn_implementation)
    copy.load_state_dict(merged_weights(weights), assign=True)
    return copy


@torch.no_grad()
def _gather(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_tensor"):
        # Not by DeepSpeed's own gathering, which sends bf16 under autocast.
        share = tensor.ds_tensor.to(tensor.device)
        flat = share.new_empty(dist.get_world_size() * len(share))
        dist.all_gather_into_tensor(flat, share)
        return flat[: tensor.ds_numel].view(tensor.ds_shape)
    return tensor.detach()
