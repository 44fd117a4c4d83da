"""The rules of NYU Depth v2 and KITTI: units, ranges, crops, and the colours of the training images."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DepthBenchmark:
    """
    Rules for one collection of images with depth.

    Args:
        depth_scale: stored numbers in one unit of depth, such as 1000 if millimetres are stored and metres are wanted.
        min_depth, max_depth: the range, in that unit, of the predicted and the measured depths.
        crop_size: (height, width) of the training crops.
        training_box: (top, bottom, left, right) in pixels; training images are first cut to it.
        image_box_size: (height, width) of the part of every image that is used, at its bottom and in its middle.
        evaluation_box: (top, bottom, left, right) of the part that is measured, as fractions of height and width.
        max_rotation: degrees; training images are rotated by up to this angle with probability one half.
        brightness_range: range of the factor in the colour distortion.
    """

    depth_scale: float
    min_depth: float
    max_depth: float
    crop_size: tuple[int, int]
    training_box: tuple[int, int, int, int] | None
    image_box_size: tuple[int, int] | None
    evaluation_box: tuple[float, float, float, float]
    max_rotation: float
    brightness_range: tuple[float, float]


BENCHMARKS = {
    # The crop of Eigen et al. 2014, rows 45 to 471 and columns 41 to 601 of 480 x 640.
    "nyu": DepthBenchmark(
        depth_scale=1000.0,
        min_depth=0.001,
        max_depth=10.0,
        crop_size=(416, 544),
        training_box=(45, 472, 43, 608),
        image_box_size=None,
        evaluation_box=(45 / 480, 471 / 480, 41 / 640, 601 / 640),
        max_rotation=2.5,
        brightness_range=(0.75, 1.25),
    ),
    # The crop of Garg et al. 2016.
    "kitti": DepthBenchmark(
        depth_scale=256.0,
        min_depth=0.001,
        max_depth=80.0,
        crop_size=(352, 704),
        training_box=None,
        image_box_size=(352, 1216),
        evaluation_box=(0.40810811, 0.99189189, 0.03594771, 0.96405229),
        max_rotation=0.0,
        brightness_range=(0.9, 1.1),
    ),
    # Any other data: whole images, in the unit in which they are stored.
    "none": DepthBenchmark(
        depth_scale=1.0,
        min_depth=0.001,
        max_depth=10.0,
        crop_size=(416, 544),
        training_box=None,
        image_box_size=None,
        evaluation_box=(0.0, 1.0, 0.0, 1.0),
        max_rotation=0.0,
        brightness_range=(0.75, 1.25),
    ),
}
