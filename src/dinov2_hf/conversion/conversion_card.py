"""The README of a folder that was converted from the original layout."""

from collections.abc import Sequence

from huggingface_hub import ModelCard, ModelCardData

from ..models import DINOv2Config
from .original_checkpoint import BACKBONE, CLASSIFIER, DEPTH, SEGMENTATION, TEACHER, OriginalCheckpoint
from .original_record import Choice


TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

A DINOv2 {{ description }}, converted from `{{ source }}`, a file in the layout of the original. Its weights are
those of the file, bit for bit. What the tensors of such a file do not tell:

{{ choices }}

The network is {{ hidden_size }} wide, with {{ num_hidden_layers }} blocks, {{ num_attention_heads }} attention heads,
patches of {{ patch_size }} pixels and {{ num_register_tokens }} register tokens.

```python
import dinov2_hf  # registers the model with the Auto classes
from transformers import pipeline

predict = pipeline("{{ task }}", model="{{ name }}")
{{ example }}
```
"""
TASKS = {
    BACKBONE: (
        "image-feature-extraction",
        'features = predict("image.jpg", return_tensors=True)  # (1, tokens, {hidden_size}): CLS, registers, patches',
    ),
    CLASSIFIER: ("image-classification", 'classes = predict("image.jpg")  # labels and scores, best first'),
    SEGMENTATION: ("image-segmentation", 'masks = predict("image.jpg")  # one mask for each label that is there'),
    DEPTH: (
        "depth-estimation",
        'depth = predict("image.jpg")["predicted_depth"]  # from {min_depth} to {max_depth} metres',
    ),
}
TASKS[TEACHER] = TASKS[BACKBONE]


def conversion_card(
    name: str, original: OriginalCheckpoint, config: DINOv2Config, choices: Sequence[Choice]
) -> ModelCard:
    """
    Args:
        name: of the folder.
        original: the file.
        config: of the model in the folder.
        choices: values that the tensors do not tell.
    """
    kind = original.kind
    task, example = TASKS[kind]
    return ModelCard.from_template(
        ModelCardData(library_name="transformers", pipeline_tag=task, tags=["dinov2"]),
        template_str=TEMPLATE,
        name=name,
        source=original.path.name,
        choices=_table(choices),
        description=kind if kind in (BACKBONE, TEACHER) else f"backbone with a {kind}",
        task=task,
        example=example.format(**config.to_dict()),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        patch_size=config.patch_size,
        num_register_tokens=config.num_register_tokens,
    )


def _table(choices: Sequence[Choice]) -> str:
    rows = [f"| {choice.name} | {choice.value} | {choice.reason} |" for choice in choices]
    return "\n".join(["| | value | chosen |", "|---|---|---|", *rows])
