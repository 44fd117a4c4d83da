"""Loads the teacher of a distillation from a folder or the Hub: with its heads, or any network with features."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from ..conversion.saved_models import DATA_ALONE, load_network, read_config
from ..model_source import MODEL, PRETRAINING_MODEL, find_model, is_other_layout
from ..models import DINOv2Config
from ..pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from ..pretraining.frozen_teacher import FrozenTeacher
from ..pretraining.teachers import TEACHERS
from .distillation_arguments import DistillationArguments
from .initial_weights import load_initial_model


OURS = (DINOv2Config.model_type, DINOv2PreTrainingConfig.model_type, "dinov2", "dinov2_with_registers")
GIGABYTE = 1e9


@dataclass
class LoadedTeacher:
    """
    A teacher on the CPU in float32, before it is frozen.

    Args:
        objective: the objective for which it is loaded, `"paper"` or `"features"`.
        network: student, teacher and heads of an earlier pretraining, or a network without heads.
        image_mean, image_std: values that it expects; `None` if unknown.
    """

    objective: str
    network: DINOv2ForPreTraining | PreTrainedModel
    image_mean: list[float] | None
    image_std: list[float] | None

    def recipe(self) -> dict[str, Any]:
        """Default values for the students from the teacher, by the names of fields."""
        if self.objective != "paper":
            return {}
        config = self.network.config
        of_backbone = ("image_size", "patch_size", "num_channels")
        of_heads = ("num_prototypes", "separate_ibot_head", "ibot_num_prototypes", "centering", "center_momentum")
        return {name: getattr(config.backbone_config, name) for name in of_backbone} | {
            name: getattr(config, name) for name in of_heads
        }

    def freeze(self, args: DistillationArguments, *, bf16: bool, device: torch.device) -> FrozenTeacher:
        """
        The teacher on `device`, as `args` configure it. Parts that it does not need are freed, so call this only once.

        Raises:
            `ValueError`: it does not fit into the memory of the device.
        """
        options = {
            "bf16": bf16,
            "pixel_mean": args.image_mean,
            "pixel_std": args.image_std,
            "own_mean": self.image_mean,
            "own_std": self.image_std,
            "image_size": args.teacher_image_size,
        }
        network, self.network = self.network, None
        if isinstance(network, DINOv2ForPreTraining):
            centerings = ((name, getattr(network, name)) for name in ("dino_centering", "ibot_centering"))
            centers = {name: module.center for name, module in centerings if hasattr(module, "center")}
            has_heads = self.objective == "paper"
            network = network.teacher if has_heads else network.teacher.backbone
            options |= {"centers": centers if has_heads else None}
        teacher = (TEACHERS.find(args.teacher_class) if args.teacher_class else FrozenTeacher)(network, **options)
        if device.type == "cuda":
            tensors = [*teacher.parameters(), *teacher.buffers()]
            needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            check_memory("the teacher", needed, torch.cuda.mem_get_info(device)[0], f"{device}")
        return teacher.to(device)


def load_teacher(source: str, objective: str, option: str = "teacher") -> LoadedTeacher:
    """
    Load a teacher.

    Args:
        source: for the paper's objective a `pretraining_model` folder, the folder of a finished run, the same on the
            Hub (`owner/name/pretraining_model`), or a teacher of the original with its heads; for the objective of
            features also any model that `AutoModel` loads.
        objective: `"paper"` or `"features"`.
        option: its name in messages.

    Raises:
        `ValueError`: there is no such model, it has no heads but the objective needs them, its weights are damaged or
            incomplete, or it does not fit into the memory of this machine.
    """
    # For a run, the part that the objective needs.
    parts = (PRETRAINING_MODEL, MODEL) if objective == "paper" else (MODEL, PRETRAINING_MODEL)
    with _said_of(option):
        folder = find_model(source, parts)
        has_config = not is_other_layout(folder) and not _is_part_on_the_hub(folder)
        config = read_config(folder) if has_config else None
    network = _on_meta(config) if config is not None else None
    if network is not None:
        # It is loaded in float32, in addition to the mapped file.
        needed = 4 * sum(parameter.numel() for parameter in network.parameters())
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        check_memory(source, needed, psutil.virtual_memory().available // processes, "this machine", processes)
    with _said_of(option):
        if config is None or config.model_type in OURS:
            network = load_initial_model(str(folder))
        else:
            network = load_network(folder, dtype=torch.float32)
    if objective == "paper" and not isinstance(network, DINOv2ForPreTraining):
        raise ValueError(
            f"`teacher` is {source}, a {type(network).__name__} without heads, but the paper's objective needs the"
            " trained ones (none of the released DINOv2 has them); give a pretraining_model, or set"
            ' `distillation_objective` to "features".'
        )
    return LoadedTeacher(objective, network, *_normalization(folder))


def check_memory(name: str, needed: int, available: int, where: str, processes: int = 1) -> None:
    """`ValueError` unless `needed` bytes are `available`."""
    if needed > available:
        each = f" for each of its {processes} processes" if processes > 1 else ""
        raise ValueError(
            f"`teacher` is {name}, which needs {needed / GIGABYTE:.1f} GB of memory, but {where} has"
            f" {available / GIGABYTE:.1f} GB free{each}; use a smaller teacher or a machine with more."
        )


def _is_part_on_the_hub(folder: Path | str) -> bool:
    return str(folder).endswith(f"/{PRETRAINING_MODEL}") and not Path(folder).exists()


@contextmanager
def _said_of(option: str) -> Iterator[None]:
    """Name the option in the sentence of an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"`{option}`: {error}") from None


def _on_meta(config: PreTrainedConfig) -> torch.nn.Module | None:
    model_class = DINOv2ForPreTraining if config.model_type == DINOv2PreTrainingConfig.model_type else AutoModel
    with torch.device("meta"):
        try:
            return model_class._from_config(config) if model_class is not AutoModel else AutoModel.from_config(config)
        except (ValueError, KeyError):  # AutoModel reports this when it loads the model
            return None


def _normalization(folder: Path | str) -> tuple[list[float] | None, list[float] | None]:
    """Mean and deviation of the image processor in the folder of the model; `None` without one."""
    if is_other_layout(folder):
        return None, None
    try:
        part = {"subfolder": PRETRAINING_MODEL} if _is_part_on_the_hub(folder) else {}
        name = str(folder).removesuffix(f"/{PRETRAINING_MODEL}") if part else folder
        processor = AutoImageProcessor.from_pretrained(name, **part, **DATA_ALONE)
    except (OSError, ValueError, KeyError):
        return None, None
    return list(processor.image_mean), list(processor.image_std)
