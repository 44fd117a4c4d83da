"""The evaluation protocols by name, and the contract that each follows.

A protocol is a function `(extractor, train_dataset, eval_dataset, *, ..., output_dir=None)` that returns metrics:

* `extractor` is the frozen model and how it is run, see `FeatureExtractor`. `extractor.features` gives features.
* The keywords are the protocol's own options, with a type and a default. Text in the docstring under `Args:` explains
  them; a keyword is the option `--<protocol>_<keyword>` of the command.
* Ranges and choices are in the types, such as `Annotated[int, AT_LEAST_ONE]`, and are checked by every call.
* Everything else that is wrong is refused with a `ValueError` before the first features. If a protocol's work begins
  with something else, it calls `extractor.begin()` there. The command runs the checks of all protocols before the
  first one starts its work.
* `output_dir` is the protocol's own folder. Only the main process writes, see `folder_of_main`.
* It returns a dict, or `Metrics`, which can also contain further findings.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ..features import FeatureExtractor
from ..named_objects import Registry
from ..options import options_of


PROTOCOLS = Registry(
    "evaluation protocol",
    {
        name: f"{__package__}.{name}"
        for name in (
            "knn", "linear", "logistic_regression", "video", "segmentation", "patch_knn", "depth", "retrieval",
            "copy_detection",
        )
    },
)  # fmt: skip
P = ParamSpec("P")
R = TypeVar("R")
PIP_NAMES = {"sklearn": "scikit-learn", "torchmetrics": "torchmetrics", "av": "PyAV (av)"}


def protocol(
    name: str, *, task: str, metrics: Mapping[str, str], requires: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that registers a protocol.

    Args:
        name: its name for `--protocol`, in results and in cards.
        task: task of the Hub, such as "image-classification".
        metrics: the beginnings of the names of its main metrics, and the names of these on the Hub.
        requires: a module that it imports, from an extra that may not be installed.
    """

    def registered(function: Callable[P, R]) -> Callable[P, R]:
        options = options_of(function)

        @wraps(function)
        def checked(*arguments: P.args, **given: P.kwargs) -> R:
            for keyword, value in given.items():
                if keyword in options:
                    options[keyword].check(value)
            return function(*arguments, **given)

        return PROTOCOLS.register(name, task=task, metrics=dict(metrics), requires=requires)(checked)

    return registered


def check_extra(module: str | None, needed_by: str) -> None:
    """`ImportError`, with the command that installs it, if a module cannot be imported."""
    if module is not None and find_spec(module) is None:
        raise ImportError(
            f"{needed_by} needs {PIP_NAMES.get(module, module)}, which is not installed: pip install"
            ' "dinov2_hf[evaluation]".'
        )


def folder_of_main(extractor: FeatureExtractor, output_dir: Any) -> Path | None:
    """The output folder on the process that writes; None on the others, and if there is no folder."""
    return Path(output_dir) if output_dir is not None and extractor.is_main_process else None
