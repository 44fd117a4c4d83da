"""`dinov2-hf push`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def push(parser: argparse.ArgumentParser) -> Callable[..., None]:
    """Upload a model folder, or a finished run, to the Hub."""
    parser.add_argument("folder", type=Path, help="a model folder, or the output folder of examples/pretrain.py")
    parser.add_argument("--repo_id", required=True, help='"namespace/name" on the Hub; made where it is missing')
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", help="branch to upload to (default: main)")
    parser.add_argument("--token", help="(default: that of `hf auth login`, or HF_TOKEN)")
    parser.add_argument(
        "--pretraining_model", action="store_true", help="upload student, teacher and heads of a run as well"
    )
    parser.add_argument("--commit_message", default="Upload model")

    def run(folder: Path, repo_id: str, **options: Any) -> None:
        from ..runs.hub_upload import push_folder

        print(push_folder(folder, repo_id, **options))

    return run
