"""
What a user may name as a model: a model folder, the output folder of a run, a checkpoint of a run, an id on the Hub, a
file of the original implementation, or a DINOv2 file of timm.

All commands use this, so all accept the same. Anything else is refused with one sentence, before any file of weights
is opened. `conversion.saved_models` loads each of them.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .output_folders import KINDS, read_marker
from .training.checkpointing.checkpoint_folders import CHECKPOINTS, LATEST, STATE_FILE, list_checkpoints


MODEL, PRETRAINING_MODEL = "model", "pretraining_model"  # of the output folder of a run
# The `model_type` of folders with student, teacher and heads.
PRETRAINING_TYPE = "dinov2_hf_pretraining"
# This comment stands above the code of a card, which loads from ".": the only path that stays right if the folder
# moves. An upload replaces it by the id on the Hub.
HERE = '# In this folder; from elsewhere, give its path instead of ".".'
NEEDED = "a model folder, the output folder of a run or an id on the Hub"
_HUB_ID = r"[\w.-]+(/[\w.-]+)?"
_WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors", ".ckpt")


def find_model(source: str | os.PathLike, parts: Sequence[str] = (MODEL,), *, folder_only: bool = False) -> Path | str:
    """
    Find the model that a user named: a folder or Hub id that `from_pretrained` loads, or something that
    `conversion.other_layouts` reads (`is_other_layout`).

    Args:
        source: a folder with config.json; the output folder of a run; one of its checkpoints, also
            `checkpoints/latest`, with the name of a student below it if there are several; an id on the Hub; a file of
            the original or of timm.
        parts: the folders of a run that are accepted, best first. Without "pretraining_model" among them, a folder
            with student, teacher and heads is refused; with it, `owner/name/pretraining_model` is looked for on the
            Hub.
        folder_only: whether to accept only what `from_pretrained` loads.

    Returns:
        A path if the model is on this machine, or the id as it was given.

    Raises:
        ValueError: it is something else. The message says what it is, and what to name instead.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if not folder_only and (checkpoint := split_checkpoint(path)):
        return Path(*checkpoint)
    if path.is_dir():
        if not folder_only and (timm := _weights_of_timm(path)):
            return timm
        folder = _folder_of_model(path, parts)
        _refuse_other_config(folder, parts)
        return folder
    if path.is_file():
        if not folder_only and path.suffix in _WEIGHT_FILES and not (path.parent / "config.json").exists():
            return path
        raise ValueError(_about_file(path))
    hub_id = name.removesuffix(f"/{PRETRAINING_MODEL}") if PRETRAINING_MODEL in parts else name
    if not re.fullmatch(_HUB_ID, hub_id) or name.startswith("."):
        address = " is an address, but" if "://" in name else " does not exist, and"
        raise ValueError(f"{name}{address} {NEEDED} is needed.")
    return name


def find_model_folder(source: str | os.PathLike, parts: Sequence[str] = (MODEL,)) -> Path:
    """
    As `find_model`, for folders on this machine that `from_pretrained` loads.

    Raises:
        ValueError: as `find_model`, and for an id on the Hub.
    """
    found = find_model(source, parts, folder_only=True)
    if isinstance(found, str):
        raise ValueError(f"{found} is not a folder on this machine, but a model folder is needed.")
    return found


def is_other_layout(found: Path | str) -> bool:
    """Whether `from_pretrained` cannot load the result of `find_model`: a file, or a checkpoint of a run."""
    return isinstance(found, Path) and (found.is_file() or split_checkpoint(found) is not None)


def split_checkpoint(path: Path) -> tuple[Path, str] | None:
    """
    The folder of a checkpoint, and the name of a student if the path has one; `None` for anything else.

    Args:
        path: "latest" stands for the newest of `checkpoints`, if no folder has that name.

    Raises:
        ValueError: the newest is asked for, but there is none yet.
    """
    for folder, student in ((path, ""), (path.parent, path.name)):
        if folder.name == LATEST and folder.parent.name == CHECKPOINTS and not folder.exists():
            found = list_checkpoints(folder.parent)
            if not found:
                raise ValueError(f"{folder.parent} holds no checkpoint yet; {NEEDED} is needed.")
            return found[-1], student
        if (folder / STATE_FILE).is_file() and not (student and path.exists()):
            return folder, student
    return None


def _weights_of_timm(path: Path) -> Path | None:
    """The file of weights in a folder that timm wrote."""
    weights, config = path / "model.safetensors", path / "config.json"
    if not (weights.is_file() and config.is_file()):
        return None
    values = read_json(config, "a model folder")
    return weights if "model_type" not in values and "architecture" in values else None


def read_json(path: Path, needed: str) -> dict:
    """
    The object in a JSON file.

    Args:
        needed: what the folder of the file should be, for the error message.

    Raises:
        ValueError: there is no such file, or it does not contain a JSON object.
    """
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"There is no {path.name} in {path.parent}, but {needed} is needed.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}), but {needed} is needed.") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is not JSON, but {needed} is needed.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, but a JSON object is needed.")
    return values


def _folder_of_model(path: Path, parts: Sequence[str]) -> Path:
    if (path / "config.json").exists() or (path / "adapter_config.json").exists():
        # The folder of a converted teacher contains its backbone, and below it the whole module.
        better = [part for part in parts if part != MODEL and (path / part / "config.json").exists()]
        return path / better[0] if better and parts[0] != MODEL else path
    for part in parts:
        if (path / part / "config.json").exists():
            return path / part
    raise ValueError(_about_folder(path, parts))


def _refuse_other_config(folder: Path, parts: Sequence[str]) -> None:
    if not (folder / "config.json").exists():  # an adapter's
        return
    model_type = read_json(folder / "config.json", "a model folder").get("model_type")
    if not isinstance(model_type, str):
        raise ValueError(
            f"{folder} is not a model folder: its config.json has no `model_type`; name a folder that save_pretrained"
            " wrote, the output folder of a run or an id on the Hub."
        )
    if model_type == PRETRAINING_TYPE and PRETRAINING_MODEL not in parts:
        backbone = next((p for p in (folder.with_name(MODEL), folder.parent) if (p / "config.json").exists()), None)
        instead = f"name {backbone}" if backbone else "name the folder `model` of the same run"
        raise ValueError(
            f"{folder} holds student, teacher and heads, to continue a training from; {instead}, which holds only the"
            " backbone."
        )


def _about_file(path: Path) -> str:
    if path.suffix in (".pth", ".pt"):
        return (
            f"{path} is a file of weights, but a model folder is needed; if it is a file of the original, make a"
            f" folder with `dinov2-hf convert {path} FOLDER` and name that."
        )
    inside = f"; name its folder, {path.parent}" if (path.parent / "config.json").exists() else ""
    return f"{path} is a file, but {NEEDED} is needed{inside}."


def _about_folder(path: Path, parts: Sequence[str]) -> str:
    """Why a folder is not a model, and what to name instead."""
    if path.name == CHECKPOINTS and list_checkpoints(path):
        return f"{path} holds checkpoints; name one of them, or {path / LATEST} for the newest."
    if path.name == CHECKPOINTS and _is_run(path.parent):
        found = next((path.parent / part for part in parts if (path.parent / part / "config.json").exists()), None)
        instead = f"name the model of that run, {found}" if found else "continue that run, which has left no model yet"
        return f"{path} holds no checkpoint; {instead}."
    if split_checkpoint(path) is not None:
        return f"{path} is a checkpoint, but {NEEDED} is needed; make a model folder of it with `dinov2-hf convert`."
    students = sorted(str(found.parent) for found in path.glob(f"students/*/{MODEL}/config.json"))
    if students:
        return f"{path} is the output folder of a run with several students; name one of {', '.join(students)}."
    if _is_run(path):
        checkpoints = path / CHECKPOINTS
        now = f"; name {checkpoints / LATEST} for its present weights" if list_checkpoints(checkpoints) else ""
        return (
            f"{path} is the output folder of a run that has left no model yet; continue it to its end with"
            f" --resume_from_checkpoint latest{now}."
        )
    kind = (read_marker(path) or {}).get("kind")
    if kind:
        return f"{path} holds {KINDS[kind]}, but {NEEDED} is needed."
    weights = any(file.suffix in _WEIGHT_FILES for file in path.iterdir())
    found = "holds weights, but no config.json" if weights else "has no config.json, so it is not a model folder"
    return f"{path} {found}; name a folder that save_pretrained wrote, the output folder of a run or an id on the Hub."


def _is_run(path: Path) -> bool:
    kind = (read_marker(path) or {}).get("kind")
    return kind == "run" or (kind is None and (path / "recipe.yaml").is_file())
