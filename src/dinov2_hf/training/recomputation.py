"""
Recomputation in the backward pass instead of saving activations (activation checkpointing): less memory, more time.

`"full"` saves the input of each block and runs the block again. `"selective"` also saves attention and all products
except the widest one. This is the first of the feed-forward network, which takes as much memory as all others and a
third of their time. It is computed again, and so are norms and activations.
"""

from functools import partial
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel


HOW = ("no", "selective", "full", "true", "false")  # the last two are "full" and "no"
WIDEST_KEPT = 3  # times the input: query, key and value side by side


def recompute_blocks(network: PreTrainedModel, how: str) -> None:
    """Make the blocks of `network` recompute activations in the backward pass; `how` is one of `HOW`."""
    if how in ("no", "false"):
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if how == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, kept_or_made_again)
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def kept_or_made_again(_, kernel: Any, *args: Any, **__: Any) -> CheckpointPolicy:
    """Whether the result of a PyTorch kernel is saved. Other kernels cannot be distinguished, and run again."""
    schema = getattr(kernel, "_schema", None)
    name = "" if schema is None else schema.name.removeprefix("aten::")
    is_kept = "scaled_dot_product" in name
    if name in ("mm", "addmm"):
        inputs, outputs = args[-1].shape
        is_kept = outputs <= WIDEST_KEPT * inputs
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
