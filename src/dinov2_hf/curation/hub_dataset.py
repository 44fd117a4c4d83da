"""Uploads a curated dataset to the Hub: its files unchanged, its card, and the numbers of its report.

`report.html` is not uploaded, because it shows images that are not in the dataset.
"""

import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from ..hub_repos import hub_api, one_sentence, prepare_repo
from .arguments import read_arguments
from .report.dataset_card import dataset_card


def push_dataset(
    output_dir: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload the dataset of a finished curation to a dataset repository, in one commit.

    Args:
        output_dir: output folder of the curation.
        repo_id: "namespace/name"; created if it is missing.
        private: whether a new repository is private.
        token: None is the token of `hf auth login`, or HF_TOKEN.
        revision: a branch; None is main.

    Returns:
        The address of the dataset.

    Raises:
        ValueError: the curation is not finished, or the Hub refuses or cannot be reached.
    """
    output_dir = Path(output_dir)
    files = sorted((output_dir / "dataset" / "data").glob("train-*.parquet"))
    if not files or not (output_dir / "report.json").exists():
        raise ValueError(f"{output_dir} holds no finished dataset: run `dinov2-hf curate` to its end first.")
    report = json.loads((output_dir / "report.json").read_text())
    arguments = read_arguments(output_dir / "curation.yaml")
    repo_id = prepare_repo(repo_id, repo_type="dataset", private=private, revision=revision, token=token)
    api = hub_api(token)
    with one_sentence(f"the dataset is whole in {output_dir}, but its upload to {repo_id} failed"):
        operations = [CommitOperationAdd(f"data/{path.name}", path) for path in files]
        operations.append(CommitOperationAdd("README.md", dataset_card(arguments, report, repo_id).encode()))
        operations.append(CommitOperationAdd("report.json", output_dir / "report.json"))
        uploaded = {operation.path_in_repo for operation in operations}
        # Files of an earlier upload with another number of files would be read together with these.
        operations += [
            CommitOperationDelete(name)
            for name in api.list_repo_files(repo_id, repo_type="dataset", revision=revision)
            if name.startswith("data/train-") and name not in uploaded
        ]
        api.create_commit(
            repo_id, operations, commit_message="Upload curated dataset", repo_type="dataset", revision=revision
        )
    return f"{api.endpoint}/datasets/{repo_id}" + (f"/tree/{revision}" if revision else "")
