"""Reads a checkpoint file of the original implementation without executing anything in it, and recognises its kind."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ...public_names import some
from .names import State, from_timm, unchunk_blocks


BACKBONE = "backbone"
TEACHER = "teacher with projection heads"
CLASSIFIER = "linear classifier"
SEGMENTATION = "linear segmentation head"
DEPTH = "linear depth head"

# The name in a state dict's `_metadata` under which this package stores facts that tensors do not give.
RECORD = "dinov2_hf"
# The keys under which the original and the toolboxes of its evaluations wrap a state dict, first one first.
WRAPPERS = ("teacher", "model", "state_dict")
# Numbers of numpy, which training toolboxes leave in a checkpoint's description (best score, learning rate).
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")),
]


@dataclass
class OriginalCheckpoint:
    """
    The content of a file, without prefixes and chunks. Names are still those of the original.

    Args:
        path: the file.
        kind: `BACKBONE`, `TEACHER`, `CLASSIFIER`, `SEGMENTATION` or `DEPTH`.
        backbone: empty when the file has only a head.
        heads: `{"dino_head": ..., "ibot_head": ...}` of a teacher, `{"": ...}` of the other heads.
        class_names: class names of a segmentation head, if the file has them.
        record: facts that this package stored when it wrote the file, by "config", "image_processor" and
            "pretraining"; empty for other files.
    """

    path: Path
    kind: str
    backbone: State = field(default_factory=dict)
    heads: dict[str, State] = field(default_factory=dict)
    class_names: list[str] | None = None
    record: dict[str, dict] = field(default_factory=dict)


def read_original_checkpoint(path: str | Path, classifier_name: str | None = None) -> OriginalCheckpoint:
    """
    Read a `.pth` file of the original and recognise its kind from its keys.

    Args:
        classifier_name: the classifier to take from a checkpoint of the linear evaluation, which has dozens.

    Raises:
        `ValueError`: the file does not exist, is incomplete, would have to execute code, or has no known kind.
    """
    path = Path(path)
    loaded = read_tensors(path)
    state = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), loaded)
    record = record_of(state)
    not_tensors = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if not_tensors or not state:
        found = f"`{not_tensors[0]}` is a {type(state[not_tensors[0]]).__name__}" if state else "it is empty"
        raise ValueError(f"{path} holds no state dict of tensors ({found}); give a checkpoint of the original DINOv2.")
    try:
        refuse_other_values(state)
        parts = split_parts(from_timm(dict(state)))
        backbone = unchunk_blocks(parts.pop("backbone", {}))
        if classifier_name is not None and "classifiers_dict" not in parts:
            raise ValueError(f'--classifier_name is "{classifier_name}", but it does not hold several classifiers.')
        if not parts and set(backbone) == {"weight", "bias"}:
            return OriginalCheckpoint(path, CLASSIFIER, heads={"": backbone}, record=record)
        if not parts or backbone:
            refuse_other_kinds(backbone)
        kind, heads = recognise_heads(parts, classifier_name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    names = class_names(loaded) if kind == SEGMENTATION else None
    return OriginalCheckpoint(path, kind, backbone, heads, names, record)


def record_of(state: Mapping) -> dict[str, dict]:
    """The record of a state dict that this package wrote; empty for others. Unknown parts are ignored."""
    metadata = getattr(state, "_metadata", None)
    record = metadata.get(RECORD) if isinstance(metadata, Mapping) else None
    if not isinstance(record, Mapping):
        return {}
    return {str(part): dict(values) for part, values in record.items() if isinstance(values, Mapping)}


def refuse_other_values(state: State) -> None:
    """
    Raises:
        `ValueError`: a tensor is not an array of floating-point numbers. Only counters of batch norms may be whole
            numbers.
    """
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(
                f"`{name}` is a {str(tensor.layout).removeprefix('torch.')} tensor of {tensor.dtype}, but a dense one,"
                " not quantized, is needed."
            )
        if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise ValueError(
                f"`{name}` holds values of {str(tensor.dtype).removeprefix('torch.')}, but weights are floating-point"
                " numbers."
            )


def recognise_heads(parts: dict[str, State], classifier_name: str | None) -> tuple[str, dict[str, State]]:
    """The kind of a file and its heads, as in `OriginalCheckpoint`, from all of its parts except the backbone."""
    if not parts:
        return BACKBONE, {}
    if set(parts) <= {"dino_head", "ibot_head"}:
        return TEACHER, parts
    if set(parts) == {"decode_head"}:
        return decode_head_kind(parts["decode_head"]), {"": parts["decode_head"]}
    if set(parts) == {"linear_head"}:
        return CLASSIFIER, {"": parts["linear_head"]}
    if set(parts) == {"classifiers_dict"}:
        return CLASSIFIER, {"": choose_classifier(parts["classifiers_dict"], classifier_name)}
    raise ValueError(f"it holds {some(parts, '`')}, but the heads of one model are expected.")


def read_tensors(path: Path) -> Mapping:
    """
    The mapping in a `.pth` file. Only tensors, numbers, texts and containers are unpickled; nothing is executed.

    Raises:
        `ValueError`: as `read_original_checkpoint`.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a .pth file of the original DINOv2.")
    if re.search(r"\.rank_\d+\.pth$", path.name):
        raise ValueError(
            f"{path} is one process's shard of a training state; give the `teacher_checkpoint.pth` that the same run"
            " wrote to its folder `eval`."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            # With mapping, a file of 4.5 GB (ViT-g) is not in memory twice. The format before torch 1.6 cannot be
            # mapped.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for `{unknown[1]}`" if unknown else "it is not a pickle of tensors"
        raise ValueError(
            f"{path} was not loaded, because only tensors, numbers and texts are read from a file, but {reason}. If"
            " you trust it, load it yourself and save only its state dict."
        ) from None
    except OSError:
        raise
    except Exception as error:  # the errors of damaged files have no common class
        first_line = (str(error).splitlines() or [""])[0][:120]
        raise ValueError(
            f"{path} cannot be read as a PyTorch checkpoint ({type(error).__name__}: {first_line}); it may be cut off"
            " or of another format, so compare its size with the source's."
        ) from None
    if not isinstance(loaded, Mapping) or not all(isinstance(name, str) for name in loaded):
        raise ValueError(
            f"{path} holds a {type(loaded).__name__}, not a state dict; give a checkpoint of the original DINOv2."
        )
    return loaded


def split_parts(state: State) -> dict[str, State]:
    """
    Tensors by their module, without its name: `backbone` (also tensors without a prefix), heads.

    Raises:
        `ValueError`: two names are equal without their prefixes.
    """
    parts: dict[str, State] = {}
    heads = "dino_head|ibot_head|decode_head|linear_head|classifiers_dict"
    for name, tensor in state.items():
        match = re.fullmatch(rf"(?:module\.)*(?:({heads})\.|linear\.(?=weight$|bias$)|)(.*)", name)
        part, rest = match[1] or "backbone", match[2]
        if part == "backbone":
            rest = re.sub(r"^(?:(?:module|backbone)\.)+", "", rest)
        if rest in parts.setdefault(part, {}):
            raise ValueError(f"it holds `{rest}` of the {part} twice, under different prefixes.")
        parts[part][rest] = tensor
    return parts


def decode_head_kind(head: State) -> str:
    """The task of a linear head for a dense task; other heads are refused."""
    if "conv_seg.weight" in head and "bn.weight" in head:
        return SEGMENTATION
    if "conv_depth.weight" in head:
        return DEPTH
    raise ValueError(
        f"it holds a decode head with {some(head, '`')}, but of these heads only linear ones are known: `bn` and"
        " `conv_seg` (segmentation), or `conv_depth` (depth)."
    )


def choose_classifier(classifiers: State, wanted: str | None) -> State:
    """`weight` and `bias` of one classifier of the linear evaluation, from `{name}.linear.weight`, ..."""
    names = sorted({name.split(".")[0] for name in classifiers})
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted not in names:
        asked = "none was chosen" if wanted is None else f'--classifier_name is "{wanted}"'
        raise ValueError(
            f"it holds {len(names)} classifiers and {asked}; choose the best one of the evaluation's"
            f" results with --classifier_name: {', '.join(names)}."
        )
    prefix = f"{wanted}.linear."
    return {name.removeprefix(prefix): tensor for name, tensor in classifiers.items() if name.startswith(prefix)}


def class_names(loaded: dict) -> list[str] | None:
    """The names of the classes, which the segmentation toolbox keeps in a checkpoint's `meta`."""
    meta = loaded.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    return [str(name) for name in names] if isinstance(names, list | tuple) else None


def refuse_other_kinds(state: State) -> None:
    """
    Raises:
        `ValueError`: this is not a DINOv2 backbone; the message says what it looks like.
    """
    if {"cls_token", "pos_embed", "mask_token", "patch_embed.proj.weight"} <= set(state):
        return
    marks = {
        r"(dinov2.*\.)?embeddings\.": "a model in the layout of the Hub, which DINOv2Model.from_pretrained loads from"
        " its folder",
        r"rope_embed\.|storage_tokens$": "a DINOv3 backbone, which is another architecture",
        r".*flat_param": "one process's shard of a training state",
        r"(student|teacher)\.": "student and teacher of a training state",
        r"layer1\.0\.conv1\.": "a ResNet",
        r"cls_token$": "a vision transformer of another family (DINO, iBOT, timm): DINOv2 has `pos_embed`,"
        " `mask_token` and `patch_embed.proj.weight`",
    }
    looks_like = next((text for mark, text in marks.items() if any(re.match(mark, name) for name in state)), None)
    found = f"looks like {looks_like}" if looks_like else f"is of no known kind, with {some(state, '`')}"
    raise ValueError(
        f"it {found}; expected is a backbone, a teacher checkpoint, or a linear head of the original DINOv2."
    )
