"""Models that lie in no model folder: files of the original or of timm, and checkpoints of a run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from ..model_source import CHECKPOINT_WEIGHTS, MODEL, PRETRAINING_MODEL, find_model, is_other_layout
from ..models import DINOv2Config, DINOv2ImageProcessor
from ..options import options_of
from ..pretraining import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from ..recipe_files import read_recipe
from .loaded_weights import refuse_not_finite
from .original.from_original import read_models


@dataclass(frozen=True)
class OtherLayout:
    """
    Args:
        models: by the folder that each would have: "" for what users load, "pretraining_model" for student, teacher
            and heads.
        image_processor: of the models; `None` where there can be none.
    """

    models: dict[str, PreTrainedModel]
    image_processor: Any | None

    @property
    def backbone(self) -> PreTrainedModel:
        return self.models[""].base_model


def read_other_layout(path: Path) -> OtherLayout:
    """
    What `model_source.is_other_layout` says is one, in memory and in evaluation mode.

    Raises:
        `ValueError`: it is damaged, or of no kind that is known.
    """
    if path.is_file():
        read = read_models(path)
        read.say_choices()
        return OtherLayout(read.models, read.image_processor)
    return _read_checkpoint(path)


@contextmanager
def model_folder(source: str | Path, parts: Sequence[str] = (MODEL,)) -> Iterator[Path | str]:
    """
    The folder or Hub id of what a user named as a model. Of what is another layout, a folder that is made of it and
    lasts as long as the block.
    """
    found = find_model(source, parts)
    if not is_other_layout(found):
        yield found
        return
    read = read_other_layout(found)
    with TemporaryDirectory() as folder:
        for name, model in read.models.items():
            model.save_pretrained(Path(folder) / name)
            if read.image_processor is not None:
                read.image_processor.save_pretrained(Path(folder) / name)
        del read
        yield Path(folder)


def _read_checkpoint(path: Path) -> OtherLayout:
    """The teacher's backbone, and the whole module, as the run would have left them at this step."""
    recipe = read_recipe(path.parents[1] / "recipe.yaml")
    backbone, objective = (
        {name: recipe[name] for name in options_of(kind) if recipe.get(name) is not None}
        for kind in (DINOv2Config, DINOv2PreTrainingConfig)
    )
    config = DINOv2PreTrainingConfig(backbone_config=DINOv2Config(**backbone), **objective)
    try:
        weights = load_file(path / CHECKPOINT_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The weights of {path} cannot be read ({error}); name an earlier checkpoint.") from error
    refuse_not_finite(weights, path)
    with torch.device("meta"):
        whole = DINOv2ForPreTraining(config)
    try:
        whole.load_state_dict(weights, assign=True)
    except RuntimeError:
        raise ValueError(
            f"{path} holds weights of another kind of run than a pretraining; continue it to its end, and name the"
            " model that it leaves."
        ) from None
    size = config.backbone_config.image_size
    values = {name: recipe[name] for name in ("image_mean", "image_std") if name in recipe}
    image_processor = DINOv2ImageProcessor(
        size={"shortest_edge": recipe.get("eval_resize_size") or round(size * 256 / 224)},
        crop_size={"height": size, "width": size},
        do_convert_rgb=config.backbone_config.num_channels == 3,
        **values,
    )
    whole.eval()
    return OtherLayout({"": whole.teacher.backbone, PRETRAINING_MODEL: whole}, image_processor)
