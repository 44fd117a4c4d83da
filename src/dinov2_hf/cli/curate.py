"""`dinov2-hf curate`."""

import json
import os
from typing import Any

from ..curation import curate as run_curation
from ..curation.arguments import read_arguments
from ..curation.hub_dataset import push_dataset
from ..curation.unread_options import refuse_unread_options
from ..hub_repos import prepare_repo
from ..public_names import without_secrets


def curate(
    *,
    config: str | None = None,
    stage: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    push_to_hub: str | None = None,
    private: bool | None = None,
    **values: Any,
) -> dict[str, Any] | None:
    """Make a curated dataset from a pile of images, by the recipe of LVD-142M.

    Args:
        config: recipe: a YAML file of the names below, or the name of one of the package.
        rank: with a single --stage: run this launch's share of its shards.
        world_size: how many launches there are.
        push_to_hub: upload the dataset to this repository, owner/name.
        private: make a new Hub dataset private.
    """
    if push_to_hub and stage not in (None, "build", "report"):
        raise ValueError("`--push_to_hub` needs the whole dataset; leave `--stage` out.")
    if private and not push_to_hub:
        raise ValueError("`--private` is for a new repository on the Hub; give `--push_to_hub` too.")
    arguments = read_arguments(config, **values)
    refuse_unread_options(arguments, values)
    if push_to_hub and arguments.dataset_url is not None:
        raise ValueError("`--push_to_hub` uploads a dataset of this machine; leave it or `--dataset_url` out.")
    is_first = int(os.environ.get("RANK", 0)) == 0  # only the first process of a launch prints
    if push_to_hub and arguments.executor == "slurm":
        raise ValueError("`--push_to_hub` cannot wait for jobs of Slurm; give it when they are done.")
    if push_to_hub and is_first:
        push_to_hub = prepare_repo(push_to_hub, repo_type="dataset", private=private)
    curation = run_curation(arguments, stage, rank=rank, world_size=world_size)
    if not is_first:
        return None
    found = describe(curation)
    if push_to_hub:
        found["url"] = push_dataset(curation.output_dir, push_to_hub, private=private)
        print(found["url"])
    return {"output": str(curation.output_dir), **found}


def describe(curation) -> dict[str, Any]:
    """Print the progress of each stage, and the funnel of a finished curation; and return these."""
    path = curation.output_dir / "report.json"
    if "report" not in curation.folders or curation.folders["report"].missing():
        stages = {}
        for name, folder in curation.folders.items():
            done = folder.num_shards - len(folder.missing())
            stages[name] = {"shards_done": done, "shards": folder.num_shards}
            rows = f", {folder.rows():,} rows" if done == folder.num_shards else ""
            print(f"{name:24s} {done} of {folder.num_shards} shards{rows}")
        return {"stages": stages}
    report = json.loads(path.read_text())
    total = report["funnel"][0]["images_in"]
    print(f"{'the pool':28s}{total:12,}")
    for row in report["funnel"]:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in row["dropped"].items())
        print(f"{row['title']:28s}{row['images_out']:12,}" + (f"   dropped: {reasons}" if reasons else ""))
    print(f"{'curated, as they are':28s}{report['dataset']['curated_as_they_are']:12,}")
    print(f"{'in the dataset':28s}{report['dataset']['images']:12,}")
    if curation.arguments.dataset_url is not None:
        print(f"{without_secrets(curation.arguments.dataset_url)}: the dataset; its card says how to load it")
    else:
        print(f"{curation.output_dir / 'dataset'}: load_dataset, or examples/pretrain.py --train_data")
    print(f"{curation.output_dir / 'report.html'}: the report; dropped.parquet has a row for every dropped image")
    return {"funnel": report["funnel"], "dataset": report["dataset"]}
