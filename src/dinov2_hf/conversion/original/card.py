"""The README of a folder that was converted from the original layout."""

from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

from ...models import DINOv2Config
from ..card_code import inputs, python_block
from .checkpoint import BACKBONE, CLASSIFIER, DEPTH, SEGMENTATION, TEACHER, OriginalCheckpoint
from .record import Choice


TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

A DINOv2 {{ description }}, converted from `{{ source }}`, a file in the layout of the original. Its weights are
those of the file, bit for bit. What the tensors of such a file do not tell:

{{ choices }}

The network is {{ hidden_size }} wide, with {{ num_hidden_layers }} blocks, {{ num_attention_heads }} attention heads,
patches of {{ patch_size }} pixels and {{ num_register_tokens }} register tokens.

{{ code }}
"""
IMPORTS = "import dinov2_hf  # registers the model with the Auto classes"
TASKS = {
    BACKBONE: (
        "image-feature-extraction",
        "AutoModel",
        'features = predict("image.jpg", return_tensors=True)  # (1, tokens, {hidden_size}): CLS, registers, patches',
    ),
    CLASSIFIER: (
        "image-classification",
        "AutoModelForImageClassification",
        'classes = predict("image.jpg")  # labels and scores, best first',
    ),
    SEGMENTATION: (
        "image-segmentation",
        "AutoModelForSemanticSegmentation",
        'masks = predict("image.jpg")  # one mask for each label that is there',
    ),
    DEPTH: (
        "depth-estimation",
        "AutoModelForDepthEstimation",
        'depth = predict("image.jpg")["predicted_depth"]  # from {min_depth} to {max_depth} metres',
    ),
}
TASKS[TEACHER] = TASKS[BACKBONE]


def conversion_card(
    name: str,
    original: OriginalCheckpoint,
    config: DINOv2Config,
    choices: Sequence[Choice],
    *,
    has_image_processor: bool,
) -> ModelCard:
    """
    Args:
        name: of the folder.
        original: the file.
        config: of the model in the folder.
        choices: values that the tensors do not tell.
        has_image_processor: whether there is one in the folder.
    """
    kind = original.kind
    task, auto_class, example = TASKS[kind]
    if has_image_processor:
        code = [
            (
                f"{IMPORTS}\nfrom transformers import pipeline",
                f'predict = pipeline("{task}", model=".")\n{example.format(**config.to_dict())}',
            )
        ]
    else:
        shape = (1, config.num_channels, config.image_size, config.image_size)
        loading = f'model = {auto_class}.from_pretrained(".")\noutputs = model(pixel_values)'
        code = [inputs(shape), (f"{IMPORTS}\nfrom transformers import {auto_class}", loading)]
    return ModelCard.from_template(
        ModelCardData(library_name="transformers", pipeline_tag=task, tags=["dinov2"]),
        template_str=TEMPLATE,
        name=name,
        source=original.path.name,
        choices=_table(choices),
        description=kind if kind in (BACKBONE, TEACHER) else f"backbone with a {kind}",
        code=python_block(code),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        patch_size=config.patch_size,
        num_register_tokens=config.num_register_tokens,
    )


def _table(choices: Sequence[Choice]) -> str:
    rows = [f"| {choice.name} | {choice.value} | {choice.reason} |" for choice in choices]
    return "\n".join(["| | value | chosen |", "|---|---|---|", *rows])
