"""What a run leaves for others: the backbone that users load, and the whole module with teacher and heads."""

from pathlib import Path

from accelerate import Accelerator
from torch import nn
from transformers import BaseImageProcessor

from .checkpoints import replace_folder
from .model_card import model_card
from .sharded_weights import whole_weights


def export_models(
    accelerator: Accelerator, model: nn.Module, image_processor: BaseImageProcessor, output_dir: Path, card: dict
) -> Path:
    """
    Write `output_dir/model` (the backbone of `model.ema_module` with image processor and model card) and
    `output_dir/pretraining_model` (student, teacher and heads). Every process must call it.

    Args:
        model: the module as prepared by Accelerate; it offers `ema_module`, which has a `backbone`.
        card: `steps`, `recipe` and `knn` for `model_card`.

    Returns:
        The folder of the backbone.
    """
    unwrapped = accelerator.unwrap_model(model)
    state_dict = whole_weights(unwrapped, keep=accelerator.is_main_process)
    prefix = next(name for name, module in unwrapped.named_modules() if module is unwrapped.ema_module.backbone) + "."
    backbone_state = {
        name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)
    }
    backbone = unwrapped.ema_module.backbone

    def write_backbone(folder: Path) -> None:
        if accelerator.is_main_process:
            backbone.save_pretrained(folder, state_dict=backbone_state)
            image_processor.save_pretrained(folder)
            model_card(backbone.config, output_dir.resolve().name, **card).save(folder / "README.md")

    def write_everything(folder: Path) -> None:
        if accelerator.is_main_process:
            unwrapped.save_pretrained(folder, state_dict=state_dict)
            image_processor.save_pretrained(folder)

    replace_folder(accelerator, output_dir / "model", write_backbone)
    replace_folder(accelerator, output_dir / "pretraining_model", write_everything)
    return output_dir / "model"
