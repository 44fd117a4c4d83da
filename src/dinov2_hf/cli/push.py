"""`dinov2-hf push`."""

from pathlib import Path


def push(
    model: Path,
    *,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    pretraining_model: bool = False,
    commit_message: str = "Upload model",
) -> dict[str, str]:
    """Upload a model folder, or a finished run, to the Hub.

    Args:
        model: a model folder, or the output folder of a run.
        repo_id: "namespace/name" on the Hub; created if it is missing.
        private: make a new repository private.
        revision: branch to upload to (default: main).
        token: (default: that of `hf auth login`, or HF_TOKEN).
        pretraining_model: upload student, teacher and heads of a run as well.
        commit_message: of the upload.
    """
    from ..runs.ending.hub_upload import push_folder

    url = push_folder(
        model,
        repo_id,
        private=private,
        revision=revision,
        token=token,
        pretraining_model=pretraining_model,
        commit_message=commit_message,
    )
    print(url)
    return {"url": url}
