"""What a run leaves for others: the backbone that users load, and the whole module with teacher and heads."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard
from torch import Tensor
from transformers import PreTrainedModel

from ..models.checkpoint_keys import renamed_below
from ..output_folders import check_kind
from ..training.sharded_weights import whole_weights
from ..training.shared_folders import replace_folder
from .model_card import model_card


if TYPE_CHECKING:
    from .run import Run


def export_models(run: "Run") -> None:
    """
    For each student write `model` (the backbone of its average, with image processor and model card) and, where it has
    heads to continue with, `pretraining_model` (student, average and heads). Every process must call it.
    """
    accelerator, module = run.accelerator, run.module
    state_dict = whole_weights(module, keep=accelerator.is_main_process)
    paths = {part: path for path, part in module.named_modules()}

    def write(folder: Path, network: PreTrainedModel, weights: dict[str, Tensor], card: ModelCard | None) -> None:
        def write_files(partial: Path) -> None:
            if accelerator.is_main_process:
                network.save_pretrained(partial, state_dict=weights)
                run.image_processor.save_pretrained(partial)
                if card is not None:
                    card.save(partial / "README.md")

        replace_folder(accelerator, folder, write_files, kind="model", check=lambda there: check_kind(there, "model"))

    for output in run.outputs:
        backbone, name = module.exported[output.name].backbone, output.folder.resolve().name
        card = model_card(backbone.config, name, steps=run.state["step"], recipe=output.recipe, knn=output.knn())
        write(output.folder / "model", backbone, renamed_below(state_dict, {paths[backbone]: ""}), card)
        whole, renamed = module.continued_as(output.name)
        if whole is not None:
            write(output.folder / "pretraining_model", whole, renamed_below(state_dict, renamed), None)
