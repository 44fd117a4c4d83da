"""The provenance of a curation: versions of libraries, revisions of models, and options that are not the default."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from ...hub_repos import name_and_revision
from ...public_names import public_name
from ..arguments import CurationArguments
from ..embedders import EMBEDDERS


PACKAGES = ("dinov2_hf", "torch", "transformers", "datasets", "faiss-cpu", "faiss-gpu", "numpy", "pyarrow", "Pillow")


def provenance(arguments: CurationArguments) -> dict[str, Any]:
    """Plain values for the report."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # only one faiss package is installed; this package may run from its sources
            continue
    models = {}
    for field in ("copy_embedder", "retrieval_embedder", "nsfw_model", "face_model"):
        name = getattr(arguments, field)
        if name is not None:
            models[field.removeprefix("copy_")] = _described(name)
    for name, options in arguments.named_filters:
        if isinstance(options.get("model"), str):
            models[f"filter {name}"] = _described(options["model"])
    return {"versions": versions, "models": models}


def _described(name: str) -> str:
    """A model, with the commit of the Hub that was used."""
    if name in EMBEDDERS.names() or Path(name).expanduser().exists() or ":" in name:
        return public_name(name) if Path(name).expanduser().exists() else name
    repo, revision = name_and_revision(name)
    try:
        found = try_to_load_from_cache(repo, "config.json", revision=revision)
    except ValueError:  # not a name of the Hub
        found = None
    commit = Path(found).parent.name if isinstance(found, str) else None
    return name if commit is None else f"{name}, revision {commit}"


def changed_options(arguments: CurationArguments, shown: dict[str, Any]) -> dict[str, Any]:
    """The shown options that are not the default."""
    defaults = vars(CurationArguments(uncurated="pool"))
    return {name: value for name, value in shown.items() if name == "uncurated" or value != defaults[name]}
