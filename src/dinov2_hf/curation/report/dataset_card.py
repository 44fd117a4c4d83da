"""The README of a curated dataset: what is in it, and how it was made."""

import re
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from ..arguments import CurationArguments


CARD = """---
{{ card_data }}
---

# Curated images

{{ images }} images, curated with dinov2_hf: {{ from_the_pool }} from a pool of {{ pool }}{{ curated }}.{{ repeats }}

```python
from datasets import load_dataset

dataset = load_dataset({{ loaded }}, split="train")
```

| column | what |
|---|---|
| `image` | the image |
| `id`, `source` | which image of which source it is |
| `origin` | "pool", or "curated" for images that are taken as they are |
| `retrieved_for` | the curated sources whose images brought it |
| `times_retrieved` | how often it was retrieved or chosen; 0 for curated images |

## How it was made

{{ method }}

| after | images of the pool | dropped |
|---|---|---|
{{ funnel }}

| source | role | images | in the dataset |
|---|---|---|---|
{{ sources }}

{{ fence }}yaml
{{ configuration }}
{{ fence }}
"""
METHODS = {
    "retrieval": "The recipe is that of LVD-142M (Oquab et al., *DINOv2: Learning Robust Visual Features without"
    " Supervision*, section 3 and appendix A).",
    "hierarchical": "Copies were left out as for LVD-142M (Oquab et al., *DINOv2: Learning Robust Visual Features"
    " without Supervision*, appendix A); then images were drawn evenly from a hierarchy of clusters (Vo et al.,"
    " *Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach*).",
    "all": "Copies were left out as for LVD-142M (Oquab et al., *DINOv2: Learning Robust Visual Features without"
    " Supervision*, appendix A); all other images were kept.",
}
SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"), (float("inf"), "n>1B"),
)  # fmt: skip


def dataset_card(arguments: CurationArguments, report: dict[str, Any], repo_id: str | None = None) -> str:
    """The text of the card.

    Args:
        report: from `summary.gather_report`.
        repo_id: where it will be on the Hub; None: its loading example names the folder.
    """
    dataset = report["dataset"]
    # `datasets` caches a folder by its name and this one. Of another content it would give what it read before.
    configuration = {
        "config_name": f"curated-{dataset['fingerprint']}",
        "data_files": [{"split": "train", "path": "data/train-*"}],
    }
    data = DatasetCardData(
        license=arguments.license,
        task_categories=["image-feature-extraction"],
        tags=["dinov2", "dinov2_hf", "data-curation"],
        size_categories=[next(name for limit, name in SIZES if dataset["rows"] < limit)],
        configs=[configuration],
    )
    funnel = [
        f"| {row['title']} | {row['images_out']:,} | "
        + ("; ".join(f"{count:,} {_as_text(reason)}" for reason, count in row["dropped"].items()) or "none")
        + " |"
        for row in report["funnel"]
    ]
    sources = [
        f"| {_as_text(source['name'])} | {source['role']} | {source['images']:,} | {source['in_dataset']:,} |"
        for source in report["sources"]
    ]
    as_they_are = dataset["curated_as_they_are"]
    configuration_text = yaml.safe_dump(report["configuration"], sort_keys=False).strip()
    longest = max((len(run) for run in re.findall("`+", configuration_text)), default=0)
    card = DatasetCard.from_template(
        data,
        template_str=CARD,
        images=f"{dataset['images']:,}",
        from_the_pool=f"{dataset['from_the_pool']:,}",
        pool=f"{report['funnel'][0]['images_in']:,}",
        curated=f", and {as_they_are:,} curated ones as they are" if as_they_are else "",
        loaded=f'"{repo_id}"' if repo_id else '"dataset"',
        repeats="" if dataset["rows"] == dataset["images"] else f" With repeats they are {dataset['rows']:,} rows.",
        method=METHODS[arguments.how_selected],
        funnel="\n".join(funnel),
        sources="\n".join(sources),
        configuration=configuration_text,
        fence="`" * max(3, longest + 1),  # no value can end the block
    )
    return str(card)


def _as_text(value: str) -> str:
    """A name or reason in a cell of a table as it is: no markup, no link, no end of the cell or of the line."""
    value = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|\[\]`*])", r"\\\1", value)
