"""The README of an exported backbone: recipe, data, steps, results, and how to load it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from ...data.reading.mixed_images import paths_of
from ...model_source import HERE
from ...public_names import is_hub_name, public_name, without_secrets
from ..while_training.evaluation_words import WORDS, bank_of


CARD = Path(__file__).with_name("model_card.md.jinja")
PICTURES = {
    "training_curves.png": "Training curves",
    "patch_pca.png": "Images and the first three principal components of their patch features, as colours",
}
PRETRAINING_MODEL = """
## Continue the pretraining

Student, teacher and heads:

```python
import dinov2_hf
from transformers import AutoModelForPreTraining

model = AutoModelForPreTraining.from_pretrained({source}, subfolder="pretraining_model")
```
"""


def model_card(
    config: PreTrainedConfig,
    name: str,
    *,
    steps: int,
    recipe: dict[str, Any],
    measured: Mapping[str, Mapping[str, dict[str, float] | None]],
    best: str = "",
) -> ModelCard:
    """
    The card of a backbone, whose example loads from the folder of the card itself.

    Args:
        name: name of the run.
        recipe: its recipe; only the last part of a path goes into the card.
        measured: for each evaluation, the metrics in [0, 1] by name, such as `knn_top1_k20`, `before` and `after`
            training, or `None`.
        best: the metric, value and step of the best model of the run, if it is kept.
    """
    public = public_recipe(recipe)
    data = card_metadata(recipe)
    # Otherwise they belong to weights before this continuation of the run.
    now = {key: found for key, found in measured.items() if found["after"] and recipe[WORDS[key].data]}
    if now:
        results = [
            result for key, found in now.items() for result in _eval_results(key, recipe, public, found["after"])
        ]
        data.model_name, data.eval_results = name, results
    num_registers = config.num_register_tokens
    return ModelCard.from_template(
        data,
        template_path=str(CARD),
        name=name,
        here=HERE,
        steps=steps,
        max_steps=recipe["max_steps"],
        best=best,
        train_data="`, `".join(paths_of(public["train_data"])),
        teacher=public.get("teacher"),
        objective=", by its features" if recipe.get("distillation_objective") == "features" else "",
        measured="\n\n".join(_table(key, public, found) for key, found in now.items()) or "Not measured.",
        recipe=yaml.safe_dump(public, sort_keys=False).strip(),
        num_tokens=1 + num_registers + (config.image_size // config.patch_size) ** 2,
        hidden_size=config.hidden_size,
        num_channels=config.num_channels,
        token_order=f"CLS, {num_registers} registers, patches" if num_registers else "CLS, then patches",
    )


def public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for publication: paths are cut to their last part, and secrets are removed."""
    public = {
        key: public_name(value)
        if isinstance(value, str) and (key.endswith("_data") or key in ("init_from", "teacher", "gram_teacher"))
        else value
        for key, value in recipe.items()
    }
    if not isinstance(recipe["train_data"], str):
        public["train_data"] = [{**entry, "path": public_name(entry["path"])} for entry in recipe["train_data"]]
    if recipe.get("students"):
        public["students"] = [public_recipe({"train_data": "", **entry}) for entry in recipe["students"]]
        for entry in public["students"]:
            del entry["train_data"]
    return without_secrets(public)


def card_metadata(recipe: dict[str, Any]) -> ModelCardData:
    """The metadata of a card that is known before the first step: `license` and data set, task and tags."""
    init_from = recipe.get("init_from")
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=["dinov2", "dinov2_hf", "self-supervised"],
        license=recipe["license"],
        datasets=[path for path in paths_of(recipe["train_data"]) if is_hub_name(path)] or None,
        base_model=init_from if init_from and is_hub_name(init_from) else None,
    )


def card_for_repo(
    card: ModelCard, repo_id: str, *, revision: str | None, pictures: Sequence[str], pretraining_model: bool
) -> ModelCard:
    """
    The card for the Hub: its examples load from the repository instead of a folder. It shows the pictures and mentions
    the pretraining model if they are uploaded with it. A card that `model_card` did not write is not changed.
    """
    source = f'"{repo_id}"' + (f', revision="{revision}"' if revision else "")
    text = card.text
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    if title and HERE in text:
        text = text.replace(title[0], f"# {repo_id}", 1).replace(f"{HERE}\n", "", 1).replace('"."', source)
        if card.data.eval_results:
            card.data.model_name = repo_id.split("/")[-1]
    if pictures:
        text += "\n## Pictures\n\n" + "\n\n".join(f"![{PICTURES[name]}]({name})" for name in pictures) + "\n"
    if pretraining_model:
        text += PRETRAINING_MODEL.format(source=source)
    card.text = text
    return card


def _eval_results(evaluation: str, recipe: dict, public: dict, metrics: dict[str, float]) -> list[EvalResult]:
    """The metrics of an evaluation as the `model-index` that the Hub shows beside the card."""
    words = WORDS[evaluation]
    task_type, task_name = words.task
    return [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type=recipe[words.data] if is_hub_name(recipe[words.data]) else "private",
            dataset_name=public[words.data],
            dataset_split=recipe[words.data.replace("_data", "_split")],
            metric_type="mean_iou" if name.endswith("miou") else "accuracy",
            metric_name=words.on_hub.format(label),
            metric_value=round(value, 4),
        )
        for name, (label, value) in words.shown(metrics).items()
    ]


def _table(evaluation: str, public: dict, found: Mapping[str, dict[str, float] | None]) -> str:
    words, before, pixels = WORDS[evaluation], found["before"], found.get("pixels")
    lines = [
        words.described.format(data=public[words.data], bank=bank_of(words, public)),
        "",
        f"| | trained | {'before this run' if public.get('init_from') else 'untrained'} |"
        + (" raw pixels |" if pixels else ""),
        "|---|---|---|" + ("---|" if pixels else ""),
    ]
    for name, (label, trained) in words.shown(found["after"]).items():
        of_pixels = f" {pixels[name]:.3f} |" if pixels else ""
        lines.append(f"| {label} | {trained:.3f} | {f'{before[name]:.3f}' if before else 'not measured'} |{of_pixels}")
    return "\n".join(lines)
