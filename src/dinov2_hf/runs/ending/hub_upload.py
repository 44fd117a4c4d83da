"""
Uploads a finished run, or any model folder, to the Hub.

A wrong name or token is found before the first step (`prepare_upload`). The upload itself is a single commit, so a
repository never contains half of a model. Any error is one sentence: at that time the run is complete on the disk.
"""

import re
import shlex
from pathlib import Path

from accelerate import Accelerator
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard, ModelCardData
from huggingface_hub.utils import get_session, hf_raise_for_status

from ...hub_repos import hub_api, one_sentence, prepare_repo
from ...model_source import MODEL, PRETRAINING_MODEL, find_model
from ...training.processes.distributed import on_main_for_all
from ..pretraining_arguments import PreTrainingArguments
from .model_card import PICTURES, card_for_repo


# Files that from_pretrained looks for in turn: one from an earlier upload with another number of shards could be
# chosen.
WEIGHT_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    pretraining_model: bool = False,
    commit_message: str = "Upload model",
) -> str:
    """
    Upload a model folder, or `model/`, pictures and `metrics.json` of a run's output folder, to the root of a model
    repository, in one commit. The examples of the card then name the repository. The folder is not changed.

    Args:
        repo_id, private, revision, token: as in `prepare_repo`.
        pretraining_model: for a run, also upload student, teacher and heads, to a folder of that name.

    Returns:
        The address of the repository.

    Raises:
        `ValueError`: one sentence, if the folder contains no model, or if the upload fails.
    """
    files = _files_to_upload(Path(folder), pretraining_model)
    repo_id = prepare_repo(repo_id, private=private, revision=revision, token=token)
    api = hub_api(token)
    with one_sentence(f"the upload of {folder} to {repo_id} failed"):
        operations = [CommitOperationAdd(name, path) for name, path in files.items() if name != "README.md"]
        if "README.md" in files:
            card = card_for_repo(
                ModelCard.load(files["README.md"]),
                repo_id,
                revision=revision,
                pictures=[name for name in PICTURES if name in files] if _is_run(folder) else [],
                pretraining_model=pretraining_model,
            )
            operations.append(CommitOperationAdd("README.md", str(card).encode()))
        operations += [
            CommitOperationDelete(name)
            for name in api.list_repo_files(repo_id, revision=revision)
            if name not in files and WEIGHT_FILES.fullmatch(_in_uploaded_folder(name, pretraining_model))
        ]
        api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
    return f"{api.endpoint}/{repo_id}" + (f"/tree/{revision}" if revision else "")


def prepare_upload(
    accelerator: Accelerator, args: PreTrainingArguments, metadata: ModelCardData, student: str
) -> str | None:
    """
    `prepare_repo` for a student and check its card's `metadata`, on the main process. Every process must call it.

    Returns:
        The repository's "namespace/name", or `None` without `push_to_hub`.

    Raises:
        `ValueError`: on every process, the sentence of the main process.
    """
    if not args.push_to_hub:
        return None

    def prepare() -> str:
        name = (args.hub_model_id or Path(args.output_dir).resolve().name) + (f"-{student}" if student else "")
        where = {"revision": args.hub_revision, "token": args.hub_token}
        repo_id = prepare_repo(name, private=args.hub_private_repo, **where)
        _check_metadata(metadata, args.hub_token)
        return repo_id

    return on_main_for_all(accelerator, prepare)


def push_run(folder: Path, args: PreTrainingArguments, repo_id: str) -> str:
    """`push_folder` for a finished run. If it fails, the `ValueError` gives the command that uploads it again."""
    try:
        return push_folder(
            folder,
            repo_id,
            private=args.hub_private_repo,
            revision=args.hub_revision,
            token=args.hub_token,
            pretraining_model=args.hub_pretraining_model,
        )
    except ValueError as error:
        command = ["dinov2-hf", "push", str(folder), "--repo_id", repo_id]
        command += ["--revision", args.hub_revision] if args.hub_revision else []
        command += ["--pretraining_model"] if args.hub_pretraining_model else []
        raise ValueError(
            f"{str(error).rstrip('.')}; the run itself is complete, its model is in {folder / 'model'},"
            f" and this uploads it again: {shlex.join(command)}"
        ) from error


def _check_metadata(metadata: ModelCardData, token: str | None) -> None:
    """As `ModelCard.validate`, which in huggingface_hub 1.33 asks the public Hub whatever HF_ENDPOINT says."""
    with one_sentence("the Hub would not accept the model card"):
        response = get_session().post(
            f"{hub_api(token).endpoint}/api/validate-yaml",
            json={"repoType": "model", "content": f"---\n{metadata.to_yaml()}\n---\n"},
            headers={"Accept": "text/plain"},
        )
        if response.status_code == 400:
            raise ValueError(response.text)
        hf_raise_for_status(response)


def _is_run(folder: str | Path) -> bool:
    return (Path(folder) / "model" / "config.json").is_file()


def _files_to_upload(folder: Path, pretraining_model: bool) -> dict[str, Path]:
    """Files by their name in the repository; hidden files are not uploaded."""
    if _is_run(folder):
        files = _files_in(folder / "model")
        files |= {name: folder / name for name in (*PICTURES, "metrics.json") if (folder / name).is_file()}
    elif isinstance(find_model(folder, (MODEL, PRETRAINING_MODEL), folder_only=True), Path):
        files = _files_in(folder)
    else:
        raise ValueError(
            f"{folder} is not a folder on this machine; give a model folder or the output folder of a run."
        )
    if pretraining_model:
        if not (_is_run(folder) and (folder / "pretraining_model" / "config.json").is_file()):
            raise ValueError(f"`pretraining_model` is asked for, but {folder} holds no folder of that name.")
        files |= {f"pretraining_model/{name}": path for name, path in _files_in(folder / "pretraining_model").items()}
    return files


def _files_in(folder: Path) -> dict[str, Path]:
    names = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path for name, path in names.items() if not any(part.startswith(".") for part in name.parts)
    }


def _in_uploaded_folder(name: str, pretraining_model: bool) -> str:
    return name.removeprefix("pretraining_model/") if pretraining_model else name
