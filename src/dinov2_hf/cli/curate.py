"""`dinov2-hf curate`."""

import argparse
import dataclasses
import os
import types
from collections.abc import Callable
from typing import Any, Union, get_args, get_origin


def curate(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """From a pile of images to a curated dataset: the recipe of LVD-142M."""
    from ..curation.arguments import STEPS, CurationArguments

    parser.register("action", None, _StoreOnce)
    parser.add_argument("--config", help="recipe: a YAML file of the names below")
    parser.add_argument(
        "--stage", help=f"run one step: {', '.join(STEPS)}, or one of the stages that they are made of"
    )
    parser.add_argument("--rank", type=int, help="with a single --stage: run this launch's share of its shards")
    parser.add_argument("--world_size", type=int, help="how many launches there are")
    parser.add_argument("--push_to_hub", metavar="OWNER/NAME", help="upload the dataset")
    parser.add_argument("--private", action="store_true", default=None, help="make a new Hub dataset private")
    for field in dataclasses.fields(CurationArguments):
        parser.add_argument(f"--{field.name}", **_options(field))

    def run(config, stage, rank, world_size, push_to_hub, private, **values: Any) -> None:
        from ..curation import curate as run_curation
        from ..curation.arguments import read_arguments
        from ..curation.unread_options import refuse_unread_options

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
            from ..hub_repos import prepare_repo

            push_to_hub = prepare_repo(push_to_hub, repo_type="dataset", private=private)
        curation = run_curation(arguments, stage, rank=rank, world_size=world_size)
        if not is_first:
            return
        describe(curation)
        if push_to_hub:
            from ..curation.hub_dataset import push_dataset

            print(push_dataset(curation.output_dir, push_to_hub, private=private))

    return run


def describe(curation) -> None:
    """Print how far each stage is, and of a finished curation the funnel."""
    import json

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


def _options(field: dataclasses.Field) -> dict[str, Any]:
    """How argparse reads a field; flags that are not given are no arguments, so that the recipe's values stay."""
    annotation, help = field.type, field.metadata["help"]
    options: dict[str, Any] = {"default": argparse.SUPPRESS}
    is_optional = get_origin(annotation) in (Union, types.UnionType)
    if is_optional:
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if annotation is bool:
        return {**options, "action": _SwitchOnce, "help": help}
    if get_origin(annotation) is list:
        (item,) = get_args(annotation)
        return {**options, "nargs": "+", "type": item if item in (str, int) else str, "help": help}
    if get_origin(annotation) is dict:
        return {**options, "nargs": "+", "action": _PairsOnce, "metavar": "NAME=VALUE", "help": help}

    def value_of(text: str) -> Any:
        return None if is_optional and text == "null" else annotation(text)

    value_of.__name__ = annotation.__name__  # argparse names it in its complaint
    default = "" if field.default in (None, "") else f" (default: {field.default})"
    return {**options, "type": value_of, "help": help + default}


class _Once(argparse.Action):
    """Of an option that is given twice argparse keeps the last: of `--uncurated a --uncurated b` all of a is lost."""

    is_given = False

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if self.is_given:
            raise argparse.ArgumentError(self, "is given twice; give it once, with all its values")
        self.is_given = True
        super().__call__(parser, namespace, values, option_string)


class _StoreOnce(_Once, argparse._StoreAction):
    """A value."""


class _SwitchOnce(_Once, argparse.BooleanOptionalAction):
    """`--name` or `--no-name`."""


class _StorePairs(argparse.Action):
    """name=value words as a mapping; values are YAML."""

    def __call__(self, parser, namespace, words, option_string=None) -> None:
        import yaml

        wrong = [word for word in words if not word.partition("=")[0] or "=" not in word]
        if wrong:
            raise argparse.ArgumentError(self, f"{wrong[0]!r} must be NAME=VALUE")
        pairs = [word.partition("=")[::2] for word in words]
        repeated = [name for number, (name, _) in enumerate(pairs) if name in dict(pairs[:number])]
        if repeated:
            raise argparse.ArgumentError(self, f"{repeated[0]} is given twice")
        setattr(namespace, self.dest, {name: yaml.safe_load(value) for name, value in pairs})


class _PairsOnce(_Once, _StorePairs):
    """A mapping."""
