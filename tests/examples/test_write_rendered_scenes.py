"""The rendered scenes: depth against the geometry by hand, and files that the protocols read."""

import importlib.util
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from tests import forked_python


SCRIPT = Path(__file__).parents[2] / "examples" / "write_rendered_scenes.py"


@pytest.fixture(scope="module")
def scenes():
    specification = importlib.util.spec_from_file_location("write_rendered_scenes", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_things_are_hit_where_geometry_says(scenes):
    texture = scenes.Texture(np.array([[0.2] * 3, [0.8] * 3]), 1.0, "checks")
    origins, ahead = np.zeros((1, 3)), np.array([[0.0, 0.0, 1.0]])
    assert scenes.Ball(np.array([0, 0, 5.0]), 2.0, texture).hit(origins, ahead) == pytest.approx(3)
    assert scenes.Ball(np.array([3, 0, 5.0]), 2.0, texture).hit(origins, ahead) == np.inf
    assert scenes.Plane(np.array([0, 0, -1.0]), -7.0, texture, 1).hit(origins, ahead) == pytest.approx(7)
    assert scenes.Plane(np.array([0, 0, 1.0]), 7.0, texture, 1).hit(origins, ahead) == np.inf  # from behind
    box = scenes.Box(np.array([0, 0, 5.0]), np.array([1.0, 1, 1]), 0.0, texture)
    assert box.hit(origins, ahead) == pytest.approx(4)
    box.turn = np.pi / 4  # an edge is ahead
    assert box.hit(origins, ahead) == pytest.approx(5 - np.sqrt(2))
    assert box.normals(np.array([[-0.5, 0.0, 5 - np.sqrt(2) + 0.5]]))[0] == pytest.approx(
        [-np.sqrt(0.5), 0, -np.sqrt(0.5)]
    )


def test_depth_of_the_floor_is_that_of_its_points(scenes):
    """Along the axis, so that the floor's points, put back from depth and pixel, all lie at height 0."""
    rng = np.random.default_rng(3)
    _, depth, labels = scenes.render(rng, 48, 64)
    rng = np.random.default_rng(3)
    scenes.random_scene(rng)
    origin, directions, axis = scenes.camera_rays(rng, 48, 64)
    points = origin + depth.reshape(-1, 1) * directions / (directions @ axis)[:, None]
    floor = labels.ravel() == scenes.CLASSES.index("floor")
    assert floor.mean() > 0.1
    assert np.abs(points[floor, 1]).max() < 1e-9
    assert (points[labels.ravel() == scenes.CLASSES.index("ball"), 1] > 0).all()


def test_files_hold_images_masks_and_millimetres(scenes, tmp_path):
    command = [SCRIPT, tmp_path, "--num_train", "3", "--num_test", "1", "--height", "24"]
    result = forked_python.run([*command, "--width", "32"])
    assert result.stdout.splitlines()[0].endswith("train.parquet: 3 scenes of 24 x 32 pixels")
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "test")}
    splits = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 3, "test": 1}
    row = splits["test"][0]
    assert [row[name].mode for name in ("image", "depth_map", "annotation")] == ["RGB", "I;16", "L"]
    image, depth, labels = scenes.render(np.random.default_rng(3), 24, 32)
    assert np.array_equal(np.asarray(row["image"]), image)
    assert np.array_equal(np.asarray(row["annotation"]), labels)
    stored = np.asarray(row["depth_map"]) / 1000
    sky = ~np.isfinite(depth)
    assert (stored[sky] == 0).all()
    assert np.abs(stored[~sky] - depth[~sky]).max() <= 0.0005
