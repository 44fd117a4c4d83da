"""Exports the models of a run: the backbone that users load, and the whole module with teacher and heads."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard
from torch import Tensor
from transformers import PreTrainedModel

from ...models.checkpoint_keys import renamed_below
from ...output_folders import check_kind
from ...training.processes.sharded_weights import whole_weights
from ...training.processes.shared_folders import replace_folder
from ...training.trained_parts import merged_weights
from ..while_training.best_model import describe_best
from .model_card import model_card


if TYPE_CHECKING:
    from ..run import Run
    from .outputs import Output


def export_models(run: "Run") -> None:
    """
    For each student write `model` (the backbone of its average, with image processor and model card) and, if it has
    heads to continue with, `pretraining_model` (student, average and heads). Every process must call it.
    """
    state_dict = merged_weights(whole_weights(run.module, keep=run.accelerator.is_main_process))
    paths = {part: path for path, part in run.module.named_modules()}
    for output in run.outputs:
        backbone = run.module.exported[output.name].backbone
        weights = renamed_below(state_dict, {paths[backbone]: ""})
        _write(run, output.folder / "model", backbone, weights, _card(run, output))
        whole, renamed = run.module.continued_as(output.name)
        if whole is not None:
            _write(run, output.folder / "pretraining_model", whole, renamed_below(state_dict, renamed), None)


def export_backbone(run: "Run", output: "Output", name: str) -> None:
    """Write the averaged backbone of one student to a folder of this name, as for `model`. All must call it."""
    backbone = run.module.exported[output.name].backbone
    weights = merged_weights(whole_weights(backbone, keep=run.accelerator.is_main_process))
    _write(run, output.folder / name, backbone, weights, _card(run, output))


def _card(run: "Run", output: "Output") -> ModelCard:
    return model_card(
        run.module.exported[output.name].backbone.config,
        output.folder.resolve().name,
        steps=run.state["step"],
        recipe=output.recipe,
        measured=output.measured(),
        best=describe_best(run.state.get("best")),
    )


def _write(
    run: "Run", folder: Path, network: PreTrainedModel, weights: dict[str, Tensor], card: ModelCard | None
) -> None:
    def write_files(partial: Path) -> None:
        if run.accelerator.is_main_process:
            network.save_pretrained(partial, state_dict=weights)
            run.image_processor.save_pretrained(partial)
            if card is not None:
                card.save(partial / "README.md")

    replace_folder(run.accelerator, folder, write_files, kind="model", check=lambda there: check_kind(there, "model"))
