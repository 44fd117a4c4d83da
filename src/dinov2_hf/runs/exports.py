"""What a run leaves for others: the backbone that users load, and the whole module with teacher and heads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import ModelCard
from torch import Tensor, nn
from transformers import BaseImageProcessor, PreTrainedModel

from ..output_folders import check_kind
from ..training.sharded_weights import whole_weights
from ..training.shared_folders import replace_folder
from ..training.students import recipe_of_student, student_folder
from .model_card import model_card
from .summary import knn_before_and_after


def export_models(
    accelerator: Accelerator,
    model: nn.Module,
    image_processor: BaseImageProcessor,
    output_dir: Path,
    state: Mapping[str, Any],
    recipe: Mapping[str, Any],
) -> dict[str, Path]:
    """
    For each student write `model` (the backbone of its average, with image processor and model card) and, where it has
    heads to continue with, `pretraining_model` (student, average and heads). Every process must call it.

    Args:
        model: the module as prepared by Accelerate; it offers `averages`, modules with a `backbone` by the names of
            their students, and `continued_as(name)`.
        state: of the run, with its `step` and accuracies, for the model cards.
        recipe: what the run can be repeated from, for the same.

    Returns:
        The folders of the backbones, by the names of the students.
    """
    unwrapped = accelerator.unwrap_model(model)
    state_dict = whole_weights(unwrapped, keep=accelerator.is_main_process)
    paths = {module: path for path, module in unwrapped.named_modules()}

    def write(folder: Path, network: PreTrainedModel, weights: dict[str, Tensor], card: ModelCard | None) -> None:
        def write_files(partial: Path) -> None:
            if accelerator.is_main_process:
                network.save_pretrained(partial, state_dict=weights)
                image_processor.save_pretrained(partial)
                if card is not None:
                    card.save(partial / "README.md")

        replace_folder(accelerator, folder, write_files, kind="model", check=lambda there: check_kind(there, "model"))

    folders = {}
    for name, average in unwrapped.averages.items():
        folder, backbone = student_folder(output_dir, name), average.backbone
        card = model_card(
            backbone.config,
            folder.resolve().name,
            steps=state["step"],
            recipe=recipe_of_student(recipe, name),
            knn=knn_before_and_after(state, name),
        )
        write(folder / "model", backbone, _under(state_dict, {paths[backbone]: ""}), card)
        whole, renamed = unwrapped.continued_as(name)
        if whole is not None:
            write(folder / "pretraining_model", whole, _under(state_dict, renamed), None)
        folders[name] = folder / "model"
    return folders


def _under(state_dict: dict[str, Tensor], renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights below the given paths, with other paths in their place; an empty path is above everything."""
    return {
        ".".join(filter(None, (new, key[len(old) :].removeprefix(".")))): value
        for old, new in renamed.items()
        for key, value in state_dict.items()
        if not old or key.startswith(f"{old}.")
    }
