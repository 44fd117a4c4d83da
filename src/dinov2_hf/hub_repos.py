"""Checks, before any work, whether a repository on the Hub can be written; errors are one sentence."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import OfflineModeIsEnabled


REASONS = {
    401: "the Hub does not accept the token, or got none; log in with `hf auth login`, or set HF_TOKEN to one that may"
    " write",
    403: "the token may not write there; use one with write access to that user or organization",
}


def prepare_repo(
    repo_id: str,
    *,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """
    Create the repository and the branch `revision` if they do not exist, and check that the token may write.

    Args:
        repo_id: "namespace/name", or a name in the token's own namespace.
        repo_type: "model" or "dataset".
        private: whether a new repository is private; `None` is public unless the organization's default says
            otherwise.
        token: `None` is the token of `hf auth login` or HF_TOKEN.

    Returns:
        The whole "namespace/name".

    Raises:
        `ValueError`: one sentence, if the Hub refuses or cannot be reached, or if `private` is asked for but the
            repository exists and is public.
    """
    api = hub_api(token)
    with one_sentence(f"the repository {repo_id} cannot be prepared for an upload"):
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        # create_repo succeeds if it may only read an existing repository.
        api.auth_check(repo_id, repo_type=repo_type, write=True)
        if revision and not revision.startswith("refs/pr/"):
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        is_private = api.repo_info(repo_id, repo_type=repo_type).private
    if private and not is_private:
        raise ValueError(
            f"a private repository is asked for, but {repo_id} exists and is public; make it private in its settings"
            " or choose another name."
        )
    return repo_id


def hub_api(token: str | None) -> HfApi:
    """The Hub, for a token (`None`: that of `hf auth login` or HF_TOKEN). `ValueError` if it cannot be a token."""
    secret = token or get_token()
    if secret and not re.fullmatch(r"[!-~]+", secret):
        # Otherwise the HTTP client would refuse the header, and print it.
        raise ValueError(
            "the token contains a space, a line break or another character that no token has; copy it again."
        )
    return HfApi(token=token, library_name="dinov2_hf")


@contextmanager
def one_sentence(what: str) -> Iterator[None]:
    """Turn any error of the block into a `ValueError` that says what failed, and why."""
    try:
        yield
    except Exception as error:  # of the HTTP client (which one depends on huggingface_hub's version), of Xet, of disk
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = REASONS.get(status) or " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if isinstance(error, OfflineModeIsEnabled):
            reason = "HF_HUB_OFFLINE is set"
        raise ValueError(f"{what}: {reason}.") from error


def name_and_revision(model: str) -> tuple[str, str | None]:
    """Split `owner/name@revision` of the Hub into the name and the branch, tag or commit. A path is only a name."""
    name, _, revision = model.partition("@")
    return (name, revision) if revision and not os.path.exists(os.path.expanduser(model)) else (model, None)
