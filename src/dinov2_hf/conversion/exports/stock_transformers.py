"""
Exports a model to the DINOv2 classes of transformers itself (`dinov2`, `dinov2_with_registers`).

Parameter names are the same. So an export changes config.json, and the prefix if a head is on a model with registers.
Then it is checked: both models run on random images, and the export is only kept if they agree.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, save_torch_state_dict
from transformers import (
    Dinov2Backbone,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ...atomic_files import new_folder
from ...model_source import find_model_folder
from ...models import DINOv2Backbone, DINOv2Config, DINOv2ForImageClassification, DINOv2Model
from ..card_code import inputs, python_block
from ..model_folder import load_model_folder
from .formats import EXPORTS, ExportCheckError
from .image_processor_values import FILE_NAME, stock_image_processor_values, write_image_processor
from .report import ExportReport, Measurement, export_card, measure


STOCK_CLASSES = {
    DINOv2Model: {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel},
    DINOv2Backbone: {"dinov2": Dinov2Backbone, "dinov2_with_registers": Dinov2WithRegistersBackbone},
    DINOv2ForImageClassification: {
        "dinov2": Dinov2ForImageClassification,
        "dinov2_with_registers": Dinov2WithRegistersForImageClassification,
    },
}
STOCK_CONFIGS = {"dinov2": Dinov2Config, "dinov2_with_registers": Dinov2WithRegistersConfig}
# How stock models resize their position embeddings. Their configurations have no field for it.
STOCK_ANTIALIAS = {"dinov2": False, "dinov2_with_registers": True}
TOLERANCE = 1e-5
CHECKED_GRIDS = ((16, 16), (7, 7), (16, 22))  # patches beside the native grid: 224, 98 and a rectangle for /14

LOADING = {
    DINOv2Model: (
        "from transformers import pipeline",
        """\
extract = pipeline("image-feature-extraction", model=".")
features = extract("image.jpg", return_tensors=True)  # (1, tokens, {hidden_size})""",
    ),
    DINOv2ForImageClassification: (
        "from transformers import pipeline",
        """\
classify = pipeline("image-classification", model=".")
classes = classify("image.jpg")""",
    ),
}
OUTPUTS = {DINOv2Model: "last_hidden_state", DINOv2Backbone: "feature_maps", DINOv2ForImageClassification: "logits"}


@EXPORTS.register("transformers")
def export_transformers(folder: str | Path, output_dir: str | Path, *, overwrite: bool = False) -> ExportReport:
    """
    Write a folder that transformers loads without this package.

    Models without registers become `dinov2`, or, when their positions are interpolated with antialiasing,
    `dinov2_with_registers` with 0 registers, which computes the same. Weights keep their dtype and are bit-equal.

    Args:
        folder: folder of a `DINOv2Model`, `DINOv2Backbone` or `DINOv2ForImageClassification`.
        output_dir: the new folder.
        overwrite: replace an earlier model there.

    Returns:
        The report, with the difference at the native size, at 224, at 98 and for a rectangle (all rounded to patches).

    Raises:
        `ValueError`: the folder contains no such model, transformers has no class that computes the same, or
            `output_dir` is in use.
        `ExportCheckError`: the exported model differs by more than 1e-5 of the largest value at the native size. Then
            no file is left.
    """
    folder, output_dir = find_model_folder(folder), Path(output_dir)
    with new_folder(output_dir, "model", overwrite=overwrite, sources=[folder]) as new:
        model = load_model_folder(folder)
        measurements, notes = write_stock_folder(model, folder, new)
        report = ExportReport(output_dir, measurements, notes)
        stock_card(model, folder, new, report).save(new / "README.md")
    return report


def write_stock_folder(
    model: PreTrainedModel, source: Path, folder: Path, extra_fields: dict[str, Any] | None = None
) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """
    Write config, weights and image processor, and compare. Afterwards `model` is in float32.

    Args:
        extra_fields: fields to add to the config.json; stock classes keep them and do not read them.

    Returns:
        Measurements and notes of the report.
    """
    config, stock_class = stock_config(model, extra_fields or {})
    processor = stock_image_processor_values(source, model.config.num_channels)
    config.save_pretrained(folder)
    save_torch_state_dict(stock_state_dict(model, config), folder)
    notes = []
    if processor is not None:
        write_image_processor(processor, folder)
    else:
        notes.append(
            f"{source} has no image processor and the model is for {model.config.num_channels} channels, so none was"
            " written."
        )
    measurements = compare_with_stock(model.float(), stock_class, folder)
    if not measurements[0].within(TOLERANCE):
        raise ExportCheckError(
            f"The exported {stock_class.__name__} differs by {measurements[0].max_difference:.1e} at"
            f" {measurements[0].height} x {measurements[0].width} pixels, where at most {TOLERANCE} of the largest"
            f" value ({measurements[0].largest_value:.1e}) is right; the export was removed."
        )
    return measurements, (*difference_notes(model.config, config, measurements), *notes)


def stock_model_type(config: DINOv2Config) -> str:
    """The kind of stock model with the closest interpolation of positions."""
    return "dinov2_with_registers" if config.num_register_tokens or config.interpolate_antialias else "dinov2"


def stock_config(
    model: PreTrainedModel, extra_fields: dict[str, Any]
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """
    The configuration and class that compute the same in transformers.

    Raises:
        `ValueError`: there is no such class.
    """
    config, kind = model.config, type(model)
    if kind not in STOCK_CLASSES:
        raise ValueError(
            f"The folder holds a {kind.__name__}, which transformers has no class for; a"
            f" {', '.join(known.__name__ for known in STOCK_CLASSES)} can be exported."
        )
    if kind is DINOv2ForImageClassification and not (
        config.classifier_num_layers == 1 and config.classifier_use_patch_mean
    ):
        raise ValueError(
            f"`classifier_num_layers` is {config.classifier_num_layers} and `classifier_use_patch_mean` is"
            f" {config.classifier_use_patch_mean}, but the classifier of transformers reads the last layer and the"
            " mean patch (1 and True)."
        )
    if config.mlp_ratio != int(config.mlp_ratio):
        raise ValueError(f"`mlp_ratio` is {config.mlp_ratio}, but transformers takes whole numbers only.")
    model_type = stock_model_type(config)
    stock_fields = {field.name for field in dataclasses.fields(STOCK_CONFIGS[model_type])}
    values = {name: value for name, value in config.to_dict().items() if name in stock_fields}
    values |= {
        name: float(values[name]) for name in ("initializer_range", "layer_norm_eps", "layerscale_value")
    }  # ours may be whole numbers, which stock classes refuse
    values |= {"mlp_ratio": int(config.mlp_ratio), "out_features": config.out_features}
    stock_class = STOCK_CLASSES[kind][model_type]
    values |= {"architectures": [stock_class.__name__], "dtype": model.dtype}
    return STOCK_CONFIGS[model_type](**extra_fields | values), stock_class


def stock_state_dict(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """The weights under the names of the stock class."""
    if config.model_type == "dinov2":
        return model.state_dict()
    ours, stock = f"{DINOv2Model.base_model_prefix}.", f"{Dinov2WithRegistersModel.base_model_prefix}."
    weights = {
        stock + name.removeprefix(ours) if name.startswith(ours) else name: value
        for name, value in model.state_dict().items()
    }
    if not config.num_register_tokens:
        # The stock class always has this parameter, even with 0 tokens.
        prefix = stock if isinstance(model, DINOv2ForImageClassification) else ""
        cls_token = weights[f"{prefix}embeddings.cls_token"]
        weights[f"{prefix}embeddings.register_tokens"] = cls_token.new_zeros(1, 0, cls_token.shape[-1])
    return weights


@torch.no_grad()
def compare_with_stock(
    model: PreTrainedModel, stock_class: type[PreTrainedModel], folder: Path
) -> tuple[Measurement, ...]:
    """Compare the model with the exported folder on random images: first the native size, then `CHECKED_GRIDS`."""
    stock = stock_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    config = model.config
    native = config.image_size // config.patch_size
    generator = torch.Generator().manual_seed(0)
    measurements = []
    for rows, columns in dict.fromkeys([(native, native), *CHECKED_GRIDS]):
        height, width = rows * config.patch_size, columns * config.patch_size
        images = torch.randn(1, config.num_channels, height, width, generator=generator)
        measurements.append(measure(main_outputs(model, images), main_outputs(stock, images), images))
    return tuple(measurements)


def main_outputs(model: PreTrainedModel, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Logits, feature maps, or the tokens after the final norm."""
    outputs = model(images)
    for name in ("logits", "last_hidden_state"):
        if name in outputs:
            return (outputs[name],)
    return outputs["feature_maps"]


def difference_notes(
    config: DINOv2Config, stock: PreTrainedConfig, measurements: tuple[Measurement, ...]
) -> tuple[str, ...]:
    """A sentence about the sizes at which the features differ, if there are any."""
    differing = [m for m in measurements if not m.within(TOLERANCE)]
    if not differing:
        return ()
    worst = max(differing, key=lambda measurement: measurement.max_difference)
    sizes = ", ".join(f"{m.height} x {m.width}" for m in differing)
    return (
        f"At other sizes than {config.image_size} x {config.image_size} pixels the features are not the same, because"
        f" transformers interpolates the positions of a `{stock.model_type}` with offset 0.0 and antialias"
        f" {STOCK_ANTIALIAS[stock.model_type]}, and this model was made with {config.interpolate_offset} and"
        f" {config.interpolate_antialias}: measured at {sizes}, up to {worst.max_difference:.1e} where the largest"
        f" value is {worst.largest_value:.1e}.",
    )


def stock_card(model: PreTrainedModel, source: Path, new: Path, report: ExportReport, more: str = "") -> ModelCard:
    """README.md of the folder `new`; `more` follows the section on loading."""
    name, config, kind = report.folder.absolute().name, model.config, type(model)
    stock_class = STOCK_CLASSES[kind][stock_model_type(config)].__name__
    has_processor = (new / FILE_NAME).is_file()
    if kind in LOADING and has_processor:
        imports, code = LOADING[kind]
        parts = [(imports, code.format(hidden_size=config.hidden_size))]
    else:
        shape = None if has_processor else (1, config.num_channels, config.image_size, config.image_size)
        loading = f'model = {stock_class}.from_pretrained(".")\n{OUTPUTS[kind]} = model(pixel_values).{OUTPUTS[kind]}'
        parts = [inputs(shape), (f"from transformers import {stock_class}", loading)]
    body = f"A DINOv2 model as `{stock_class}` of transformers; no other package is needed.\n\n{python_block(parts)}"
    return export_card(
        source,
        title=name,
        body=f"{body}\n\n{more}" if more else body,
        library_name="transformers",
        pipeline_tag=(
            "image-classification" if isinstance(model, DINOv2ForImageClassification) else "image-feature-extraction"
        ),
        report=report,
    )
