"""The original's linear heads on a backbone: the configuration for their shapes, and the names of their tensors."""

import copy
from collections.abc import Mapping, Sequence

from ...models import DINOv2Config
from ...models.depth_layers import DEPTH_LAYERS
from .names import State
from .shapes import check_tensors, shape_of


# Classifiers of the original: blocks whose CLS tokens are read, and whether the mean patch is, by width over that of
# the backbone.
CLASSIFIER_INPUTS = {1: (1, False), 2: (1, True), 4: (4, False), 5: (4, True)}
# Metres, by what is in the names of the released files.
DEPTH_RANGES = {"nyu": (0.001, 10.0), "kitti": (0.001, 80.0)}


def classifier_config(
    config: DINOv2Config, head: State, id2label: Mapping[int, str] | Sequence[str] | None
) -> DINOv2Config:
    """
    The backbone's configuration with the fields of a linear classifier, `weight` and `bias`.

    Raises:
        `ValueError`: the tensors are not a linear layer on 1 or 4 blocks of this backbone, or the number of labels
            differs from its outputs.
    """
    num_labels, width = shape_of(head, "weight", 2)
    check_tensors(head, {"weight": (num_labels, width), "bias": (num_labels,)})
    if width % config.hidden_size or width // config.hidden_size not in CLASSIFIER_INPUTS:
        widths = ", ".join(str(factor * config.hidden_size) for factor in CLASSIFIER_INPUTS)
        raise ValueError(
            f"`weight` reads {width} features, but of a backbone that is {config.hidden_size} wide a classifier reads"
            f" one of {widths}; give the backbone that it was trained on."
        )
    num_layers, use_patch_mean = CLASSIFIER_INPUTS[width // config.hidden_size]
    _check_depth(config, num_layers)
    config = copy.deepcopy(config)
    config.classifier_num_layers, config.classifier_use_patch_mean = num_layers, use_patch_mean
    return _with_labels(config, num_labels, id2label)


def segmentation_config(
    config: DINOv2Config, head: State, id2label: Mapping[int, str] | Sequence[str] | None
) -> DINOv2Config:
    """As `classifier_config`, for `bn.*` and `conv_seg.*`, which read the patches of the last `n` blocks."""
    num_labels, width, *_ = shape_of(head, "conv_seg.weight", 4)
    expected = {f"bn.{name}": (width,) for name in ("weight", "bias", "running_mean", "running_var")}
    expected |= {
        "bn.num_batches_tracked": (),
        "conv_seg.weight": (num_labels, width, 1, 1),
        "conv_seg.bias": (num_labels,),
    }
    check_tensors(head, expected)
    if width % config.hidden_size:
        raise ValueError(
            f"`conv_seg.weight` reads {width} channels, but a multiple of {config.hidden_size}, the backbone's width,"
            " is expected; give the backbone that the head was trained on."
        )
    _check_depth(config, width // config.hidden_size)
    config = copy.deepcopy(config)
    config.segmentation_num_layers = width // config.hidden_size
    return _with_labels(config, num_labels, id2label)


def depth_config(config: DINOv2Config, head: State, depth_range: tuple[float, float]) -> DINOv2Config:
    """As `classifier_config`, for `conv_depth.*`, which reads CLS and patches of 1 or 4 blocks."""
    num_bins, width, *_ = shape_of(head, "conv_depth.weight", 4)
    check_tensors(head, {"conv_depth.weight": (num_bins, width, 1, 1), "conv_depth.bias": (num_bins,)})
    if num_bins == 1:
        raise ValueError(
            "`conv_depth.weight` has 1 output, a regression, but a head of bins (256 as released) is needed."
        )
    one_layer = 2 * config.hidden_size
    if width not in (one_layer, 4 * one_layer):
        raise ValueError(
            f"`conv_depth.weight` reads {width} channels, but {one_layer} (1 layer) or {4 * one_layer} (4) are"
            f" expected for a backbone that is {config.hidden_size} wide; give the backbone that the head was trained"
            " on."
        )
    layers = None
    if width == 4 * one_layer:
        if config.num_hidden_layers not in DEPTH_LAYERS:
            raise ValueError(
                f"`conv_depth.weight` reads 4 layers, which are known for backbones of 12, 24 and 40 blocks only, and"
                f" this one has {config.num_hidden_layers}."
            )
        layers = list(DEPTH_LAYERS[config.num_hidden_layers])
    config = copy.deepcopy(config)
    config.depth_layers, config.depth_num_bins = layers, num_bins
    config.min_depth, config.max_depth = depth_range
    config.validate()
    return config


def depth_range_of(name: str) -> tuple[float, float]:
    """
    The depth range of the data set in the name of a released file.

    Raises:
        `ValueError`: the name contains no data set, or both.
    """
    found = [depth_range for dataset, depth_range in DEPTH_RANGES.items() if dataset in name.lower()]
    if len(found) != 1:
        raise ValueError(
            "its range of depths is neither in the file nor in its name; give it with --depth_range, `0.001 10`"
            " for NYU or `0.001 80` for KITTI."
        )
    return found[0]


def _check_depth(config: DINOv2Config, num_layers: int) -> None:
    if num_layers > config.num_hidden_layers:
        raise ValueError(
            f"the head reads {num_layers} blocks, but the backbone has {config.num_hidden_layers}; give the backbone"
            " that the head was trained on."
        )


def _with_labels(
    config: DINOv2Config, num_labels: int, id2label: Mapping[int, str] | Sequence[str] | None
) -> DINOv2Config:
    """Set the number of labels and their names, `LABEL_0`, ... if none are given."""
    if id2label is None:  # not those of another head that the backbone may have had
        id2label = [f"LABEL_{index}" for index in range(num_labels)]
    labels = dict(id2label) if isinstance(id2label, Mapping) else dict(enumerate(id2label))
    labels = {int(index): str(label) for index, label in labels.items()}
    if set(labels) != set(range(num_labels)):
        raise ValueError(f"--id2label names {len(labels)} labels, but the head has {num_labels}, numbered from 0.")
    config.num_labels = num_labels
    config.id2label = dict(sorted(labels.items()))
    config.label2id = {label: index for index, label in config.id2label.items()}
    return config
