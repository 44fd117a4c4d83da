"""Embedders turn an image into a vector: a registered function, a TorchScript file, any `AutoModel`, or precomputed
vectors.

A registered embedder, or one named as `package.module:function`, is a callable from a list of RGB pictures to their
vectors, (images, width). A class is instantiated first. If it is a module with an `image_processor`, the processor
runs where images are decoded, and the module on the device. With the fact `fitted`, a module that is fitted to the
vectors of a sample of the pool brings all vectors to their final form (`PoolWhitening`). With the fact `input_side`,
large JPEG files are decoded smaller if their shorter side keeps twice that size (`pixels`).
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..features import FeatureExtractor, Features
from ..hub_repos import name_and_revision
from ..named_objects import PATH, Registry
from .algorithms import efficientnet_descriptor, perceptual_descriptor
from .algorithms.efficientnet_descriptor import EfficientNetDescriptor, EfficientNetStatistics
from .algorithms.perceptual_descriptor import PatchSums, PerceptualDescriptor


EMBEDDERS = Registry("embedder")
EMBEDDERS.register(
    "perceptual",
    fitted=PerceptualDescriptor,
    input_side=2 * perceptual_descriptor.SIDE,  # for pictures of 4 : 1
)(PatchSums)
EMBEDDERS.register("efficientnet_lite0", fitted=EfficientNetDescriptor, input_side=efficientnet_descriptor.SIDE)(
    EfficientNetStatistics
)


def kind_of_embedder(spec: str) -> str:
    """ "registered", "torchscript", "precomputed" or "model", by the form of the name.

    Raises:
        ValueError: it is a path, but none of these.
    """
    if spec in EMBEDDERS.names() or PATH.fullmatch(spec):
        return "registered"
    path = Path(spec).expanduser()
    if path.suffix in (".parquet", ".npy", ".pt") and not path.exists():
        raise ValueError(f"embedder is {spec!r}, a file that does not exist.")
    if path.suffix in (".parquet", ".npy"):
        return "precomputed"
    if path.is_dir() and not any((folder / "config.json").exists() for folder in (path, path / "model")):
        if any(file.suffix in (".parquet", ".npy") for file in path.iterdir()):
            return "precomputed"
        raise ValueError(f"embedder is {spec!r}, a folder with neither a model (config.json) nor vectors.")
    if path.is_file():
        return "torchscript"
    if not path.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", spec):
        raise ValueError(
            f"embedder is {spec!r}, which does not exist; give {', '.join(map(repr, EMBEDDERS.names()))}, a function"
            " of your own (package.module:function), a TorchScript file, a model folder or Hub name, or vectors in"
            " .parquet or .npy files."
        )
    return "model"


def fitted_module(spec: str) -> type[nn.Module] | None:
    """The module of an embedder that is fitted to a sample of the pool, if it has one."""
    return EMBEDDERS.named(spec).facts.get("fitted") if kind_of_embedder(spec) == "registered" else None


def refuse_untrusted(spec: str, *, trust_torchscript: bool) -> None:
    """Refuse to run the code in a TorchScript file, unless the user trusts it.

    Raises:
        ValueError: the embedder is a TorchScript file, and `trust_torchscript` is not set.
    """
    if kind_of_embedder(spec) == "torchscript" and not trust_torchscript:
        raise ValueError(
            f"embedder is {spec!r}, a TorchScript file, which is a program that can read and overwrite any of your"
            " files; give --trust_torchscript if you trust where it comes from."
        )


@dataclass(frozen=True)
class Embedder:
    """A model, and how it is run over images; its features are the vectors."""

    extractor: FeatureExtractor
    kind: str = "cls"

    def __call__(self, images: Sequence[dict], description: str = "embed") -> Features:
        """Vectors of undecoded images, rows `{"image": {"bytes", "path"}}`; images without a vector have a reason."""
        return self.extractor.features(images, kind=self.kind, skip_undecodable=True, description=description)


def load_embedder(
    spec: str,
    *,
    fitted: Path | None = None,
    feature_kind: str = "cls",
    torchscript_size: Sequence[int] = (288,),
    batch_size: int = 64,
    trust_torchscript: bool = False,
    **run: Any,
) -> Embedder:
    """Load an embedder of a kind that computes vectors.

    Args:
        spec: as in `kind_of_embedder`.
        fitted: the file of its module that was fitted to a sample; None: its vectors are not changed.
        feature_kind: the feature of an `AutoModel`.
        torchscript_size: (shorter side,), image by image; or (height, width), in batches.
        batch_size: images in a forward pass.
        trust_torchscript: whether a TorchScript file, which is a program, may be run.
        run: arguments of `FeatureExtractor`, such as `device` and `num_workers`.

    Raises:
        ValueError: the model cannot be loaded, or is a TorchScript file that is not trusted.
    """
    refuse_untrusted(spec, trust_torchscript=trust_torchscript)
    kind, run = kind_of_embedder(spec), {**run, "batch_size": batch_size}
    if kind == "registered":
        return _registered(spec, fitted, run)
    if kind == "torchscript":
        try:
            network = torch.jit.load(str(Path(spec).expanduser()), map_location="cpu")
        except RuntimeError as error:
            raise ValueError(
                f"embedder is {spec!r}, which is not a TorchScript file: {str(error).splitlines()[0]}"
            ) from None
        if len(torchscript_size) == 1:  # images that keep their shapes cannot share a batch
            run["batch_size"] = 1
        return Embedder(FeatureExtractor(VectorModel(network), TorchScriptInput(torchscript_size), **run))
    from ..conversion.saved_models import load_network_and_processor

    try:
        # Not `AutoModel`, which fills missing weights with random numbers, and hides random patches in an MAE.
        model, image_processor = load_network_and_processor(_downloaded(spec))
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"embedder is {spec!r}, which cannot be loaded: {' '.join(str(error).split())}") from None
    return Embedder(FeatureExtractor(model, image_processor, **run), feature_kind)


def _downloaded(spec: str) -> str:
    """The downloaded folder of a Hub name with a revision, `owner/name@revision`; any other name unchanged."""
    name, revision = name_and_revision(spec)
    if revision is None:
        return spec
    return snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"])


def _registered(spec: str, fitted: Path | None, run: dict[str, Any]) -> Embedder:
    found = EMBEDDERS.named(spec)
    embed, last = found.object, nn.Identity()
    options = {"device": run.get("device")} if "device" in inspect.signature(embed).parameters else {}
    if isinstance(embed, type):
        embed, options = embed(**options), {}
    if fitted is not None:
        last = found.facts["fitted"]()
        last.load_state_dict(torch.load(fitted, weights_only=True))
    run = {**run, "autocast_dtype": None}  # an option of models
    if hasattr(embed, "image_processor"):
        return Embedder(FeatureExtractor(VectorModel(nn.Sequential(embed, last)), embed.image_processor, **run))
    if "fitted" not in found.facts:  # the processes of a loader cannot use tensors on a GPU
        run["num_workers"] = 0
    return Embedder(FeatureExtractor(VectorModel(last), VectorInput(embed, options), **run))


class OneToken:
    """The output of a model that gives one vector for each image, in the form of a vision transformer's output."""

    def __init__(self, last_hidden_state: Tensor):
        self.last_hidden_state = last_hidden_state


class VectorModel(nn.Module):
    """A network that gives (B, D) for a batch, as a network with a single token."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.placed = nn.Parameter(torch.zeros(()), requires_grad=False)  # gives the device, if nothing else does

    def forward(self, pixel_values: Tensor) -> OneToken:
        output = self.network(pixel_values)
        if not isinstance(output, Tensor) or output.ndim != 2:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"embedder gives {shape} for a batch of images, but (images, width) is needed.")
        return OneToken(output[:, None])


@dataclass(frozen=True)
class VectorInput:
    """A registered embedder used as an image processor: the model gets its vectors."""

    embed: Callable
    options: dict[str, Any]

    def __call__(self, images: list[Image.Image], return_tensors: str = "pt") -> dict[str, Tensor]:
        vectors = torch.as_tensor(self.embed(images, **self.options)).float()
        if vectors.ndim != 2 or len(vectors) != len(images):
            raise ValueError(
                f"embedder gives {tuple(vectors.shape)} for {len(images)} images, but (images, width) is needed."
            )
        return {"pixel_values": vectors}


class TorchScriptInput:
    """Resizing and normalisation as published for SSCD: the shorter side to 288, ImageNet's mean and deviation.

    Args:
        size: (shorter side,) or (height, width), in pixels; SSCD's are (288,), and (320, 320) for batches.
    """

    def __init__(self, size: Sequence[int]):
        self.transform = v2.Compose(
            [
                v2.ToImage(),
                v2.Resize(list(size), antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)),
            ]
        )

    def __call__(self, images: list[Image.Image], return_tensors: str = "pt") -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([self.transform(image) for image in images])}
