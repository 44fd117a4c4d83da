"""Exports a folder that loads as transformers' own DINOv2 by default, and as ours if its code is trusted."""

import ast
import inspect
import re
from pathlib import Path

from transformers import PreTrainedModel

from ...atomic_files import new_folder
from ...model_source import HERE, find_model_folder, read_json
from ...models import (
    DINOv2Backbone,
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2ImageProcessorPil,
    DINOv2Model,
)
from ..model_folder import load_model_folder
from .formats import EXPORTS
from .image_processor_values import FILE_NAME, write_image_processor
from .report import ExportReport
from .stock_transformers import stock_card, write_stock_folder


AUTO_CLASSES = {
    "AutoConfig": DINOv2Config,
    "AutoModel": DINOv2Model,
    "AutoBackbone": DINOv2Backbone,
    "AutoModelForImageClassification": DINOv2ForImageClassification,
    "AutoModelForSemanticSegmentation": DINOv2ForSemanticSegmentation,
    "AutoModelForDepthEstimation": DINOv2ForDepthEstimation,
}
IMAGE_PROCESSORS = (DINOv2ImageProcessorPil, DINOv2ImageProcessor)  # the order that transformers reads: PIL first

LOADING = """\
With `trust_remote_code=True` the code in this folder is used instead: the same weights, with the interpolation of
positions that they were trained with (offset {offset}, antialias {antialias}), at every image size.

```python
{here}
from transformers import AutoModel

model = AutoModel.from_pretrained(".", trust_remote_code=True)
```"""


@EXPORTS.register("dual")
def export_dual(folder: str | Path, output_dir: str | Path, *, overwrite: bool = False) -> ExportReport:
    """
    As `export_transformers`, with this package's configuration, models and image processors as remote code.

    Args:
        folder: folder of a `DINOv2Model`, `DINOv2Backbone` or `DINOv2ForImageClassification`.
        output_dir: the new folder.
        overwrite: replace an earlier model there.

    Returns:
        The report. It measures the difference between the default, transformers' own class, and ours.

    Raises:
        `ValueError`, `ExportCheckError`: as `export_transformers`.
    """
    folder, output_dir = find_model_folder(folder), Path(output_dir)
    with new_folder(output_dir, "model", overwrite=overwrite, sources=[folder]) as new:
        model = load_model_folder(folder)
        config = model.config
        auto_map = {name: class_reference(auto_class) for name, auto_class in AUTO_CLASSES.items()}
        measurements, notes = write_stock_folder(model, folder, new, own_fields(model) | {"auto_map": auto_map})
        if (new / FILE_NAME).is_file():
            references = [class_reference(processor) for processor in IMAGE_PROCESSORS]
            values = read_json(new / FILE_NAME, "an image processor")
            write_image_processor(values | {"auto_map": {"AutoImageProcessor": references}}, new)
        for name, text in code_files().items():
            (new / name).write_text(text)
        report = ExportReport(output_dir, measurements, notes)
        more = LOADING.format(here=HERE, offset=config.interpolate_offset, antialias=config.interpolate_antialias)
        stock_card(model, folder, new, report, more).save(new / "README.md")
    return report


def own_fields(model: PreTrainedModel) -> dict:
    """Only the fields of our configuration. Stock classes keep fields that they do not know."""
    return {name: getattr(model.config, name) for name in DINOv2Config.__annotations__ if not name.startswith("_")}


def class_reference(auto_class: type) -> str:
    """The name that `auto_map` has for a class in a flat folder, `file.Class`."""
    return f"{auto_class.__module__.rsplit('.', 1)[-1]}.{auto_class.__name__}"


def code_files() -> dict[str, str]:
    """
    Names and texts of the files of those classes and of all files that they import from this package, for a flat
    folder: an import from another subpackage becomes an import from the same folder.
    """
    paths, found = [Path(inspect.getfile(one)) for one in (*AUTO_CLASSES.values(), *IMAGE_PROCESSORS)], {}
    while paths:
        path = paths.pop()
        if path.name not in found:
            text = path.read_text()
            paths += imported_files(path, text)
            found[path.name] = re.sub(r"^(\s*from )\.+(?:\w+\.)*(\w+ import )", r"\1.\2", text, flags=re.MULTILINE)
    return dict(sorted(found.items()))


def imported_files(path: Path, text: str) -> list[Path]:
    """The files of this package that a file imports, also inside its functions."""
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
    return [
        path.parents[node.level - 1].joinpath(*(node.module or "").split(".")).with_suffix(".py") for node in imports
    ]
