"""`dinov2-hf curate`."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

from ..command_lines import value_of
from ..curation import curate as run_curation
from ..curation.arguments import STEPS, CurationArguments, read_arguments, read_named
from ..curation.filters import FILTERS
from ..curation.hub_dataset import push_dataset
from ..curation.stages.stage import find_stage
from ..curation.unread_options import refuse_unread_options
from ..hub_repos import prepare_repo
from ..options import Option, options_of
from ..recipe_files import read_recipe


def curate(
    *,
    config: str | None = None,
    stage: str | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    push_to_hub: str | None = None,
    private: bool | None = None,
    **values: Any,
) -> None:
    """From a pile of images to a curated dataset: the recipe of LVD-142M.

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
    is_first = int(os.environ.get("RANK", 0)) == 0  # of several processes of one launch, the first speaks
    if push_to_hub and arguments.executor == "slurm":
        raise ValueError("`--push_to_hub` cannot wait for jobs of Slurm; give it when they are done.")
    if push_to_hub and is_first:
        push_to_hub = prepare_repo(push_to_hub, repo_type="dataset", private=private)
    curation = run_curation(arguments, stage, rank=rank, world_size=world_size)
    if not is_first:
        return
    describe(curation)
    if push_to_hub:
        print(push_dataset(curation.output_dir, push_to_hub, private=private))


def more_options(words: Sequence[str]) -> dict[str, Option]:
    """Those of a recipe, and the names of the stages."""
    steps = f"run one step: {', '.join(STEPS)}, or one of the stages that they are made of."
    options = {"stage": Option("stage", str, steps, None)} | options_of(CurationArguments)
    if {"-h", "--help"} & set(words):
        recipe = value_of("config", words)
        values = read_recipe(recipe) if recipe is not None else {}
        for name, find in (("stages", lambda path: find_stage(path).function), ("filters", FILTERS.find)):
            named = value_of(name, words) or values.get(name) or []
            named = options[name].read(named)
            about = "".join(f" {path} has {_keywords(find(path))}." for path, _ in read_named(name, named))
            options[name] = replace(options[name], help=options[name].help + about)
    return options


def _keywords(function: Callable) -> str:
    """The options of a stage or filter, with their defaults."""
    parameters = [one for one in signature(function).parameters.values() if one.default is not one.empty]
    return (
        f"the options {', '.join(f'{one.name}={one.default}' for one in parameters)}" if parameters else "no options"
    )


def describe(curation) -> None:
    """Print how far each stage is, and of a finished curation the funnel."""
    path = curation.output_dir / "report.json"
    if "report" not in curation.folders or curation.folders["report"].missing():
        for name, folder in curation.folders.items():
            done = folder.num_shards - len(folder.missing())
            rows = f", {folder.rows():,} rows" if done == folder.num_shards else ""
            print(f"{name:24s} {done} of {folder.num_shards} shards{rows}")
        return
    report = json.loads(path.read_text())
    total = report["funnel"][0]["images_in"]
    print(f"{'the pool':28s}{total:12,}")
    for row in report["funnel"]:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in row["dropped"].items())
        print(f"{row['title']:28s}{row['images_out']:12,}" + (f"   dropped: {reasons}" if reasons else ""))
    print(f"{'curated, as they are':28s}{report['dataset']['curated_as_they_are']:12,}")
    print(f"{'in the dataset':28s}{report['dataset']['images']:12,}")
    print(f"{curation.output_dir / 'dataset'}: load_dataset, or examples/pretrain.py --train_data")
    print(f"{curation.output_dir / 'report.html'}: the report; dropped.parquet has a row for every dropped image")
