"""Makes the words of a user fit for publication: without tokens, signatures and folders above the last."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any


# One slash also matches, as `Path` writes it.
URL = re.compile(
    r"\b(?P<scheme>[a-zA-Z][\w+.-]+:/{1,2})(?P<user>[^\s/@?#'\"`]*@)?(?P<rest>[^\s?#'\"`]*)(?P<query>[?#][^\s'\"`]*)?"
)
# Tokens of the Hub, of GitHub, and access keys of AWS.
TOKEN = re.compile(r"(?<![A-Za-z0-9])(hf_|api_org_|gh[pousr]_|github_pat_|AKIA)[A-Za-z0-9_]{16,}")


def without_secrets(value: Any) -> Any:
    """
    A text without its tokens, and with its URLs cut to the name of a file: without user, password, query and fragment,
    which may contain signatures. A list or mapping is returned with this done to every text in it.
    """
    if isinstance(value, str):
        return TOKEN.sub(r"\1***", URL.sub(r"\g<scheme>\g<rest>", value))
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_secrets(item) for item in value)
    return value


def is_hub_name(data: str) -> bool:
    """Whether it can be `name` or `owner/name` on the Hub, and does not exist on this machine."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", data):
        return False
    return not (Path(data).exists() or Path(data).suffix in (".parquet", ".tar", ".pth"))


def public_name(data: str) -> str:
    """
    The public form of a name. A name on the Hub stays as it is. A path is cut to its last part, because the folders
    above it are private. So is a URL, without its query.
    """
    return data if is_hub_name(data) else Path(without_secrets(data)).name


def some(names: Iterable[str], mark: str = "") -> str:
    """
    The first three of the names, sorted, and how many more there are.

    Args:
        mark: around each, such as a backtick.
    """
    names = sorted(names)
    listed = ", ".join(f"{mark}{name}{mark}" for name in names[:3])
    return listed if len(names) <= 3 else f"{listed} and {len(names) - 3} more"
