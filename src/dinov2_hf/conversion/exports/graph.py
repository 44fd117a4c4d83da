"""
Exports a model to a graph for one image size: ONNX, or PyTorch's own (`torch.export`).

Shapes: `B` images of `height` x `width` pixels and `C` channels, `N` patches, `R` register tokens, `D` hidden size.
Graphs compute in float32.
"""

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import PreTrainedModel

from ...atomic_files import new_folder
from ...model_source import find_model_folder
from ...models import (
    DINOv2Backbone,
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2Model,
)
from ...models.modeling_dinov2 import DINOv2Embeddings
from ..card_code import HERE_ONLY, inputs, python_block
from ..model_folder import load_model_folder
from .formats import EXPORTS, ExportCheckError
from .image_processor_values import for_fixed_size, stock_image_processor_values, write_image_processor
from .report import ExportReport, Measurement, export_card, measure


OUTPUT_NAMES = {
    DINOv2Model: ("last_hidden_state", "pooler_output"),
    DINOv2ForImageClassification: ("logits",),
    DINOv2ForSemanticSegmentation: ("logits",),
    DINOv2ForDepthEstimation: ("predicted_depth",),
}
PIPELINE_TAGS = {
    DINOv2Model: "image-feature-extraction",
    DINOv2Backbone: "image-feature-extraction",
    DINOv2ForImageClassification: "image-classification",
    DINOv2ForSemanticSegmentation: "image-segmentation",
    DINOv2ForDepthEstimation: "depth-estimation",
}
TOLERANCE = 1e-4
CHECKED_BATCHES = (1, 3)  # batch sizes for checking a graph with a dynamic batch, which is traced with 2
ONNX_FILE, TORCH_FILE = "model.onnx", "model.pt2"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LOWEST_OPSET = 18  # of the exporter; its conversion to older opsets fails for transformers
# Runs a loaded graph: maps images to outputs by name.
Runner = Callable[[torch.Tensor], dict[str, torch.Tensor]]

# Imports and code of README.md.
RUNNING_ONNX = (
    "import onnxruntime",
    """\
session = onnxruntime.InferenceSession("model.onnx")
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(None, {"pixel_values": pixel_values.numpy()})))""",
)
RUNNING_TORCH = (
    "import torch",
    """\
model = torch.export.load("model.pt2").module()
outputs = model(pixel_values)""",
)


@EXPORTS.register("onnx")
def export_onnx(
    folder: str | Path,
    output_dir: str | Path,
    *,
    image_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """
    Write `model.onnx` for one image size, with config.json (which names the labels), image processor and README.md.

    Weights of more than 2 GB go to a file of their own beside it.

    Args:
        folder: of any model of this package but those to be pretrained.
        output_dir: the new folder.
        image_size: of the images, in pixels, multiples of the patch size: the side of a square, or height and width
            (default: the crop of the image processor, or the model's `image_size` where there is none).
        batch_size: fixed number of images (default: any number).
        opset: version of the ONNX operators, at least 18 (default: the exporter's choice).
        overwrite: replace an earlier model at `output_dir`.

    Returns:
        The report: the graph in onnxruntime against the model, for 1 and for 3 images, or for `batch_size`.

    Raises:
        `ImportError`: one of onnx, onnxscript and onnxruntime is not installed.
        `ValueError`: a size is not possible, the folder holds no such model, or `output_dir` is in use.
        `ExportCheckError`: the graph differs by more than 1e-4 of the largest value. Nothing is left behind then.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'the export to ONNX needs {" and ".join(missing)}: pip install "dinov2_hf[onnx]".')
    if opset is not None and opset < LOWEST_OPSET:
        raise ValueError(f"`opset` is {opset}; it must be at least {LOWEST_OPSET}.")

    def write(program: torch.export.ExportedProgram, output_names: list[str], new: Path) -> Runner:
        write_onnx(program, output_names, new / ONNX_FILE, opset)
        return onnx_runner(new / ONNX_FILE)

    return export_graph(
        folder, output_dir, image_size, batch_size, overwrite, write=write, running=RUNNING_ONNX, library="onnx"
    )


@EXPORTS.register("torch-export")
def export_torch(
    folder: str | Path,
    output_dir: str | Path,
    *,
    image_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """
    Write `model.pt2`, a graph of `torch.export` for one image size, with the same files beside it as `export_onnx`.

    Args:
        folder, output_dir, overwrite: as in `export_onnx`.
        image_size: as in `export_onnx`: the side of a square, or height and width (default: the image processor's).
        batch_size: fixed number of images (default: any number).

    Returns and raises as `export_onnx`, with `torch.export.load` in the place of onnxruntime.
    """

    def write(program: torch.export.ExportedProgram, output_names: list[str], new: Path) -> Runner:
        # Through memory: on a full disk, torch's own writer of files ends the whole process.
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        (new / TORCH_FILE).write_bytes(buffer.getbuffer())
        return torch.export.load(new / TORCH_FILE).module()

    return export_graph(
        folder, output_dir, image_size, batch_size, overwrite, write=write, running=RUNNING_TORCH, library="pytorch"
    )


class FixedSizeEmbeddings(nn.Module):
    """
    `DINOv2Embeddings` for one patch grid: its positions are resized once, and the position of CLS is added once
    (registers have none). Nothing of the stored size or of masking remains.
    """

    def __init__(self, embeddings: DINOv2Embeddings, grid: tuple[int, int]):
        super().__init__()
        self.patch_embeddings = embeddings.patch_embeddings
        positions = embeddings.positions(grid).detach()
        prefix = [embeddings.cls_token.detach() + positions[:, :1]]
        if embeddings.register_tokens is not None:
            prefix.append(embeddings.register_tokens.detach())
        self.prefix_tokens = nn.Parameter(torch.cat(prefix, dim=1))  # (1, 1 + R, D)
        self.position_embeddings = nn.Parameter(positions[:, 1:].clone())  # (1, N, D)

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: None = None) -> torch.Tensor:
        """`(B, C, H, W)` to `(B, 1 + R + N, D)`."""
        patches = self.patch_embeddings(pixel_values) + self.position_embeddings
        return torch.cat([self.prefix_tokens.expand(patches.shape[0], -1, -1), patches], dim=1)


class NamedOutputs(nn.Module):
    """A model whose `forward` takes only `pixel_values` and returns a plain `dict` of tensors."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(pixel_values)
        if isinstance(self.model, DINOv2Backbone):
            return dict(zip(self.model.out_features, outputs.feature_maps, strict=True))
        return {name: outputs[name] for name in OUTPUT_NAMES[type(self.model)]}


def export_graph(
    folder: str | Path,
    output_dir: str | Path,
    image_size: Sequence[int] | None,
    batch_size: int | None,
    overwrite: bool,
    *,
    write: Callable[[torch.export.ExportedProgram, list[str], Path], Runner],
    running: tuple[str, str],
    library: str,
) -> ExportReport:
    """
    The common steps of all formats: load, trace, write, verify, describe.

    Args:
        write: puts the graph, whose outputs have these names, into a folder and returns how the file runs.
        running: imports and code of README.md that run it.
        library: the card's `library_name`.
    """
    folder, output_dir = find_model_folder(folder), Path(output_dir)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}; it must be at least 1, or left out for any number of images.")
    with new_folder(output_dir, "model", overwrite=overwrite, sources=[folder]) as new:
        model = load_model_folder(folder).float()
        processor = stock_image_processor_values(folder, model.config.num_channels)
        images = random_images(model.config, processor, image_size, batch_size)
        named = NamedOutputs(model)
        with torch.no_grad():
            expected = [named(pixel_values) for pixel_values in images]
        fix_size(model, images[0])
        with quiet_exporter():
            run = write(trace(named, images[0], dynamic_batch=batch_size is None), list(expected[0]), new)
            measurements = verify(run, images, expected)
        model.config.architectures, model.config.dtype = [type(model).__name__], torch.float32
        model.config.save_pretrained(new)
        if processor is not None:
            write_image_processor(for_fixed_size(processor, *images[0].shape[2:]), new)
        report = ExportReport(output_dir, measurements)
        card = graph_card(
            model,
            folder,
            report,
            outputs=expected[0],
            code=[inputs(None if processor is not None else tuple(images[0].shape)), running],
            library=library,
            batch_size=batch_size,
        )
        card.save(new / "README.md")
    return report


def random_images(
    config: DINOv2Config, processor: dict | None, image_size: Sequence[int] | None, batch_size: int | None
) -> list[torch.Tensor]:
    """
    Batches `(B, C, H, W)` to measure with; the size is the one asked for, else the image processor's crop.

    Raises:
        `ValueError`: the size is not a multiple of the patch size, or has more than two numbers.
    """
    crop = (processor or {}).get("crop_size") or {}
    size = image_size or [crop.get(side, config.image_size) for side in ("height", "width")]
    if len(size) > 2:
        raise ValueError(f"`image_size` has {len(size)} numbers; give one, or height and width.")
    height, width = size[0], size[-1]
    if min(height, width) < config.patch_size or height % config.patch_size or width % config.patch_size:
        raise ValueError(
            f"The images would be {height} x {width} pixels, but multiples of the model's patch size,"
            f" {config.patch_size}, are needed; choose them with `image_size`."
        )
    generator = torch.Generator().manual_seed(0)
    sizes = CHECKED_BATCHES if batch_size is None else (batch_size,)
    return [torch.randn(size, config.num_channels, height, width, generator=generator) for size in sizes]


def fix_size(model: PreTrainedModel, images: torch.Tensor) -> None:
    """Change a model in place so that it only takes images of this height and width."""
    backbone, patch_size = model.base_model, model.config.patch_size  # of a head, or the model itself
    grid = (images.shape[2] // patch_size, images.shape[3] // patch_size)
    backbone.embeddings = FixedSizeEmbeddings(cast(DINOv2Embeddings, backbone.embeddings), grid)


def trace(named: NamedOutputs, images: torch.Tensor, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """The graph for images of this shape `(B, C, H, W)`, or for any `B`."""
    if dynamic_batch:
        # Not 1, because the trace would treat it as a constant.
        two = images[:1].expand(2, -1, -1, -1).contiguous()
        program = torch.export.export(named, (two,), dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}})
    else:
        program = torch.export.export(named, (images,))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # contains file names of this machine
    return program


def write_onnx(program: torch.export.ExportedProgram, output_names: list[str], path: Path, opset: int | None) -> None:
    """
    Raises:
        `ValueError`: the exporter could not reach that `opset`.
    """
    converted = torch.onnx.export(
        program,
        (),
        kwargs={"pixel_values": program.example_inputs[0][0]},
        input_names=["pixel_values"],
        output_names=output_names,
        dynamic_shapes={"pixel_values": {0: "batch"}} if program.range_constraints else None,  # the name in the file
        opset_version=opset,
        dynamo=True,
        verbose=False,
    )
    reached = converted.model.opset_imports[""]
    if opset is not None and reached != opset:
        raise ValueError(f"`opset` is {opset}, which the exporter of torch {torch.__version__} cannot write.")
    converted.save(path)


def onnx_runner(path: Path) -> Runner:
    """The file in onnxruntime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = session.run(None, {"pixel_values": images.numpy()})
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run


@torch.no_grad()
def verify(
    run: Runner, images: list[torch.Tensor], expected: list[dict[str, torch.Tensor]]
) -> tuple[Measurement, ...]:
    """Run every batch through the written file; `ExportCheckError` if the result differs from that of the model."""
    measurements = []
    for pixel_values, reference in zip(images, expected, strict=True):
        outputs = run(pixel_values)
        measurement = measure(reference.values(), [outputs[name] for name in reference], pixel_values)
        if not measurement.within(TOLERANCE):
            raise ExportCheckError(
                f"The exported graph differs by {measurement.max_difference:.1e} for {len(pixel_values)} images, where"
                f" at most {TOLERANCE} of the largest value ({measurement.largest_value:.1e}) is right; the export was"
                " removed."
            )
        measurements.append(measurement)
    return tuple(measurements)


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Suppress prints, warnings and logs of torch's exporters. Errors are still raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def graph_card(
    model: PreTrainedModel,
    source: Path,
    report: ExportReport,
    *,
    outputs: dict[str, torch.Tensor],
    code: list[tuple[str, str]],
    library: str,
    batch_size: int | None,
) -> ModelCard:
    """README.md: inputs, outputs, how to run the graph, and the measurements."""
    name, height, width = report.folder.name, report.measurements[0].height, report.measurements[0].width
    shapes: dict[str, tuple[int, ...]] = {"pixel_values": (model.config.num_channels, height, width)}
    shapes |= {output: tuple(value.shape[1:]) for output, value in outputs.items()}
    batch = "B" if batch_size is None else str(batch_size)
    rows = [f"| `{key}` | `({', '.join([batch, *map(str, shape)])})` |" for key, shape in shapes.items()]
    about = (
        f"A `{type(model).__name__}` of dinov2_hf as a graph for images of {height} x {width} pixels,"
        f" {'any number' if batch_size is None else batch_size} at a time: `pixel_values`, normalised, to"
        f" {', '.join(f'`{output}`' for output in outputs)}, all in float32."
    )
    if "logits" in outputs:
        about += " The names of the classes are in `id2label` of config.json."
    body = [about, "\n".join(["| tensor | shape |", "|---|---|", *rows]), python_block(code, HERE_ONLY)]
    return export_card(
        source,
        title=name,
        body="\n\n".join(body),
        library_name=library,
        pipeline_tag=PIPELINE_TAGS[type(model)],
        report=report,
    )
