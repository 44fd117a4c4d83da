"""`from_pretrained` for commands: it checks that every weight is in the file, has the right shape and is finite.

The method itself, which users of transformers call, fills missing weights with random numbers and reports them in a
table.
"""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..public_names import some


def load_whole(model_class: type[PreTrainedModel], source: str | Path, subfolder: str = "", **options: Any):
    """`load_with_missing` for a model that needs all of its tensors; returns only the model."""
    return load_with_missing(model_class, source, subfolder, may_be_missing=lambda name: False, **options)[0]


def load_with_missing(
    model_class: type[PreTrainedModel],
    source: str | Path,
    subfolder: str = "",
    *,
    may_be_missing: Callable[[str], bool],
    may_be_unexpected: Callable[[str], bool] = lambda name: True,
    **options: Any,
) -> tuple[PreTrainedModel, set[str]]:
    """
    `from_pretrained` of a class. It must find every tensor of the model except those that may be missing.

    Args:
        source: folder or Hub id.
        may_be_missing: whether the tensor with a name may be missing.
        may_be_unexpected: whether a tensor in the file may be ignored, as a backbone ignores a head.
        options: options of `from_pretrained`. The number type is the saved one unless `dtype` is given.

    Returns:
        The model, in evaluation mode, and the names of its missing tensors, which have random values.

    Raises:
        ValueError: there is no such model, a file is damaged, a tensor is missing, unexpected, has another shape, or
            has values that are not finite.
    """
    _refuse_whole_numbers(Path(source) / subfolder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the table of transformers is raised below as a sentence
    try:
        model, report = model_class.from_pretrained(
            source,
            **{"subfolder": subfolder} if subfolder else {},
            **{"dtype": "auto", **options},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except UnpicklingError as error:
        raise ValueError(
            f"The weights of {source} are a pickle that asks for more than tensors or is damaged, so they were not"
            " read. If you trust them, load them yourself and save them as safetensors."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(_why_not_read(source, model_class, error)) from error
    finally:
        logging.set_verbosity(verbosity)
    kind = type(model).__name__
    if report["mismatched_keys"]:
        name, in_file, in_model = min(report["mismatched_keys"])
        raise ValueError(
            f"`{name}` in the weights of {source} has shape {tuple(in_file)}, but its config.json describes a {kind}"
            f" with {tuple(in_model)}."
        )
    lacking = set(report["missing_keys"])
    missing = {name for name in lacking if not may_be_missing(name)}
    if missing:
        raise ValueError(
            f"The weights of {source} lack {some(missing, '`')}, which a {kind} needs; copy or download them again."
        )
    unexpected = {name for name in report["unexpected_keys"] if not may_be_unexpected(name)}
    if unexpected:
        raise ValueError(f"The weights of {source} hold {some(unexpected, '`')}, which a {kind} does not have.")
    refuse_not_finite(model, source)
    return model, lacking


def refuse_not_finite(weights: nn.Module | dict[str, torch.Tensor], source: str | Path) -> None:
    """
    Raises:
        ValueError: tensors have values that are NaN or infinite; the message has their names.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    damaged = [
        name
        for name, tensor in tensors.items()
        if torch.is_tensor(tensor)
        and (tensor.is_floating_point() or tensor.is_complex())
        and not tensor.is_meta
        and not torch.isfinite(tensor).all()
    ]
    if damaged:
        raise ValueError(
            f"The weights of {source} hold values that are NaN or infinite, in {some(damaged, '`')} of"
            f" {len(tensors)} tensors; use weights from before the training broke down, or copy them again."
        )


def _refuse_whole_numbers(folder: Path) -> None:
    """
    Refuse weights that are whole numbers. `from_pretrained` would silently accept them. Models whose config.json
    describes a quantization may have them.

    Raises:
        ValueError: weights are whole numbers; the message has the name of a tensor.
    """
    config = folder / "config.json"
    if config.is_file() and "quantization_config" in config.read_text(errors="replace"):
        return
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(path, framework="pt") as file:
                kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}
        except (OSError, SafetensorError):
            continue  # `from_pretrained` reports this
        whole = [name for name, kind in kinds.items() if kind[0] in "IU" and not name.endswith("num_batches_tracked")]
        if whole:
            raise ValueError(
                f"The weights of {folder} are whole numbers ({kinds[whole[0]]}) in {some(whole, '`')}, but weights are"
                " floating-point numbers; save them again before they were rounded."
            )


def _why_not_read(source: str | Path, model_class: type, error: Exception) -> str:
    """One sentence for an error of `from_pretrained`."""
    reason = " ".join(str(error).split()).rstrip(".")
    if Path(source).is_dir() and isinstance(error, (OSError, SafetensorError)):
        return (
            f"The weights of {source} cannot be read, a file is damaged or missing ({reason}); copy or download them"
            " again."
        )
    # transformers lists every configuration that it knows, 10 kB of them.
    said = f"{reason[:300]}{'...' if len(reason) > 300 else ''}."
    return f"No {model_class.__name__} can be read from {as_it_was_taken(source)}: {said}"


def as_it_was_taken(source: str | Path) -> str:
    """What a message calls the source of a model: a misspelled path looks like an id on the Hub."""
    if Path(source).is_dir():
        return str(source)
    return f"{source} (it is not a folder on this machine, so it was taken for an id on the Hub)"
