"""The README of a curated dataset: its content, and how it was made."""

import re
from typing import Any

import yaml
from huggingface_hub import DatasetCardData

from ...pictures.html_pages import templates
from ...public_names import without_secrets
from ..arguments import CurationArguments


SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"), (100_000_000, "10M<n<100M"), (1_000_000_000, "100M<n<1B"), (float("inf"), "n>1B"),
)  # fmt: skip


def dataset_card(arguments: CurationArguments, report: dict[str, Any], repo_id: str | None = None) -> str:
    """The text of the card.

    Args:
        report: from `numbers.gather_report`.
        repo_id: its repository on the Hub; None: the loading example names the folder.
    """
    dataset = report["dataset"]
    data = DatasetCardData(
        license=arguments.license,
        task_categories=["image-feature-extraction"],
        tags=["dinov2", "dinov2_hf", "data-curation"],
        size_categories=[next(name for limit, name in SIZES if dataset["rows"] < limit)],
        # `datasets` caches a folder by its name and this name. Without it, changed content would not be read again.
        configs=[
            {
                "config_name": f"curated-{dataset['fingerprint']}",
                "data_files": [{"split": "train", "path": "data/train-*"}],
            }
        ],
    )
    configuration = yaml.safe_dump(report["configuration"], sort_keys=False).strip()
    longest = max((len(run) for run in re.findall("`+", configuration)), default=0)
    environment = templates(__package__, autoescape=False)
    environment.filters["cell"] = _as_text
    return environment.get_template("card.md.jinja").render(
        {**report, "configuration": configuration},
        card_data=data.to_yaml(),
        loaded=_loaded(arguments, repo_id),
        how=arguments.how_selected,
        fence="`" * max(3, longest + 1),  # no value can end the block
    )


def _loaded(arguments: CurationArguments, repo_id: str | None) -> str:
    """The arguments of `load_dataset`."""
    if arguments.dataset_url is not None and repo_id is None:
        return f'"parquet", data_files="{without_secrets(arguments.dataset_url).rstrip("/")}/data/*.parquet"'
    return f'"{repo_id or "dataset"}"'


def _as_text(value: str) -> str:
    """A name or reason as plain text for a cell of a table: without markup, links, or ends of the cell or line."""
    value = " ".join(value.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|\[\]`*])", r"\\\1", value)
