"""Models that are not in a model folder: files of the original or of timm, and checkpoints of a run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel

from ..model_source import MODEL, PRETRAINING_MODEL, find_model, is_other_layout
from ..models.image_processing_dinov2 import image_processor_of
from .original.from_original import read_models


@dataclass(frozen=True)
class OtherLayout:
    """
    Args:
        models: models by the folder that each would have: "" for the model that users load, "pretraining_model" for
            student, teacher and heads.
        image_processor: image processor of the models; `None` if there cannot be one.
    """

    models: dict[str, PreTrainedModel]
    image_processor: Any | None

    @property
    def backbone(self) -> PreTrainedModel:
        return self.models[""].base_model

    def save(self, folder: Path) -> None:
        """Write folders that `from_pretrained` loads."""
        for name, model in self.models.items():
            model.save_pretrained(folder / name)
            if self.image_processor is not None:
                self.image_processor.save_pretrained(folder / name)


def read_other_layout(path: Path) -> OtherLayout:
    """
    Load a model for which `model_source.is_other_layout` is true, in evaluation mode.

    Raises:
        `ValueError`: it is damaged, or has no known kind.
    """
    if path.is_file():
        read = read_models(path)
        read.say_choices()
        return OtherLayout(read.models, read.image_processor)
    return _read_checkpoint(path)


@contextmanager
def model_folder(source: str | Path, parts: Sequence[str] = (MODEL,)) -> Iterator[Path | str]:
    """
    The folder or Hub id of a model that a user named. For another layout, a folder is made from it, which exists as
    long as the block.
    """
    found = find_model(source, parts)
    if not is_other_layout(found):
        yield found
        return
    read = read_other_layout(found)
    with TemporaryDirectory() as folder:
        read.save(Path(folder))
        del read
        yield Path(folder)


def _read_checkpoint(path: Path) -> OtherLayout:
    from .run_checkpoints import read_checkpoint  # imports Accelerate and the readers of shards

    read = read_checkpoint(path)
    recipe = read.recipe
    values = {name: recipe[name] for name in ("image_mean", "image_std") if recipe.get(name) is not None}
    image_processor = image_processor_of(read.backbone.config, recipe.get("eval_resize_size"), **values)
    models = {"": read.backbone} | ({PRETRAINING_MODEL: read.whole} if read.whole is not None else {})
    return OtherLayout(models, image_processor)
