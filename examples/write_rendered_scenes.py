"""Render simple scenes with exact depth and masks as two parquet files, a small data set to try depth and masks on.

`train.parquet` and `test.parquet` hold rooms and open grounds with boxes and balls, textured, lit by one lamp with
shadows. Columns:

    image       RGB PNG
    depth_map   16-bit PNG, distance along the optical axis in millimetres; 0 where there is sky
    annotation  8-bit PNG, 0 floor, 1 wall, 2 ceiling, 3 box, 4 ball, 5 sky

    python examples/write_rendered_scenes.py scenes
    dinov2-hf evaluate --model outputs/model --protocol depth,segmentation --depth_scale 1000 \
        --train_data scenes/train.parquet --eval_data scenes/test.parquet --output_dir scenes_evaluation
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tqdm.auto import tqdm


CLASSES = ("floor", "wall", "ceiling", "box", "ball", "sky")
MILLIMETRES = 1000
FAR = 60.0  # metres; what is farther is sky, as 16 bits of millimetres end at 65.5
AMBIENT = 0.25  # share of the light that reaches shadows
SKY = np.array([0.55, 0.7, 0.95])


@dataclass
class Texture:
    """Checks or stripes of two colours, that move with the place in the world."""

    colours: np.ndarray  # (2, 3) in [0, 1]
    period: float  # metres
    kind: str

    def at(self, points: np.ndarray) -> np.ndarray:
        """(n, 3) colours at (n, 3) points."""
        cells = np.floor(points / self.period + 1e-4).astype(int)
        index = cells.sum(axis=1) if self.kind == "checks" else cells[:, 0] + cells[:, 1]
        grain = 1 + 0.06 * np.sin(37 * points @ np.array([1.0, 1.7, 0.6]))
        return np.clip(self.colours[index % 2] * grain[:, None], 0, 1)


@dataclass
class Plane:
    """All points p with normal . p = offset."""

    normal: np.ndarray
    offset: float
    texture: Texture
    label: int

    def hit(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Distance along each ray, inf where it does not meet the plane from its front."""
        slope = directions @ self.normal
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (self.offset - origins @ self.normal) / slope
        return np.where((slope < 0) & (distance > 1e-4), distance, np.inf)

    def normals(self, points: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.normal, points.shape)


@dataclass
class Ball:
    center: np.ndarray
    radius: float
    texture: Texture
    label: int = CLASSES.index("ball")

    def hit(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        offset = origins - self.center
        b = (offset * directions).sum(axis=1)
        root = b**2 - (offset**2).sum(axis=1) + self.radius**2
        distance = -b - np.sqrt(np.maximum(root, 0))
        return np.where((root > 0) & (distance > 1e-4), distance, np.inf)

    def normals(self, points: np.ndarray) -> np.ndarray:
        return (points - self.center) / self.radius


@dataclass
class Box:
    """Stands upright, turned about the vertical axis."""

    center: np.ndarray
    half_sides: np.ndarray
    turn: float  # radians
    texture: Texture
    label: int = CLASSES.index("box")

    @property
    def axes(self) -> np.ndarray:
        """(3, 3), the rows being the box's own axes."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])

    def hit(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        start, along = (origins - self.center) @ self.axes.T, directions @ self.axes.T
        along = np.where(np.abs(along) < 1e-9, 1e-9, along)
        one, other = (-self.half_sides - start) / along, (self.half_sides - start) / along
        enter, leave = np.minimum(one, other).max(axis=1), np.maximum(one, other).min(axis=1)
        return np.where((enter < leave) & (enter > 1e-4), enter, np.inf)

    def normals(self, points: np.ndarray) -> np.ndarray:
        local = (points - self.center) @ self.axes.T / self.half_sides
        side = np.abs(local).argmax(axis=1)
        normals = np.zeros_like(points)
        normals[np.arange(len(points)), side] = np.sign(local[np.arange(len(points)), side])
        return normals @ self.axes


def random_scene(rng: np.random.Generator) -> tuple[list, np.ndarray]:
    """The things of a scene, and the place of its lamp (metres; x right, y up, z ahead; the floor is y = 0)."""

    def texture(period=(0.2, 1.0)) -> Texture:
        colours = rng.uniform(0.15, 0.95, size=3) + rng.uniform(-0.25, 0.25, size=(2, 3))
        return Texture(colours.clip(0.05, 1), rng.uniform(*period), rng.choice(["checks", "stripes"]))

    wall, ceiling = CLASSES.index("wall"), CLASSES.index("ceiling")
    things = [Plane(np.array([0.0, 1, 0]), 0.0, texture((0.4, 1.2)), CLASSES.index("floor"))]
    length, half_width, height = rng.uniform(4.5, 9), rng.uniform(2, 3.5), rng.uniform(2.4, 3.4)
    if rng.random() < 0.8:  # a room; the others are open grounds
        things.append(Plane(np.array([0.0, 0, -1]), -length, texture(), wall))
        things += [Plane(np.array([side, 0.0, 0]), -half_width, texture(), wall) for side in (1.0, -1.0)]
        if rng.random() < 0.8:
            things.append(Plane(np.array([0.0, -1, 0]), -height, texture((0.6, 1.5)), ceiling))
    for _ in range(rng.integers(3, 7)):
        x, z = rng.uniform(-half_width + 0.4, half_width - 0.4), rng.uniform(1.8, length - 0.5)
        if rng.random() < 0.5:
            radius = rng.uniform(0.15, 0.5)
            things.append(Ball(np.array([x, radius, z]), radius, texture((0.1, 0.4))))
        else:
            half_sides = rng.uniform([0.15, 0.15, 0.15], [0.5, 0.8, 0.5])
            turn = rng.uniform(0, np.pi)
            things.append(Box(np.array([x, half_sides[1], z]), half_sides, turn, texture((0.1, 0.4))))
    lamp = np.array([rng.uniform(-1.5, 1.5), rng.uniform(2.0, 2.3), rng.uniform(0.5, 4)])
    return things, lamp


def camera_rays(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Origin (3,), unit directions (height * width, 3) row by row, and the optical axis (3,)."""
    focal = width / 2 / np.tan(np.radians(60) / 2)
    rows, columns = np.mgrid[:height, :width]
    local = np.stack([columns + 0.5 - width / 2, height / 2 - rows - 0.5, np.full(rows.shape, focal)], axis=-1)
    pitch, yaw = np.radians(rng.uniform(-18, 2)), np.radians(rng.uniform(-20, 20))
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    rotation = turn @ tilt
    directions = local.reshape(-1, 3) @ rotation.T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.array([rng.uniform(-0.6, 0.6), rng.uniform(1.0, 1.8), 0.0]), directions, rotation[:, 2]


def nearest(things: list, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distance to the first thing on each ray (inf for none), and its number."""
    distances = np.stack([thing.hit(origins, directions) for thing in things])
    return distances.min(axis=0), distances.argmin(axis=0)


def render(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene: uint8 image (H, W, 3), float depth (H, W) in metres, inf for the sky, and uint8 classes (H, W)."""
    things, lamp = random_scene(rng)
    origin, directions, axis = camera_rays(rng, height, width)
    distances, numbers = nearest(things, np.broadcast_to(origin, directions.shape), directions)
    depth = distances * (directions @ axis)
    sky = ~(depth < FAR)
    colours = np.empty_like(directions)
    labels = np.full(len(directions), CLASSES.index("sky"), dtype=np.uint8)
    colours[sky] = SKY * (1.1 - 0.5 * directions[sky, 1:2].clip(0, 1))
    for number, thing in enumerate(things):
        seen = (numbers == number) & ~sky
        if not seen.any():
            continue
        points = origin + distances[seen, None] * directions[seen]
        normals = thing.normals(points)
        to_lamp = lamp - points
        lamp_distance = np.linalg.norm(to_lamp, axis=1)
        to_lamp /= lamp_distance[:, None]
        blocked = nearest(things, points + 1e-3 * normals, to_lamp)[0] < lamp_distance - 1e-2
        light = np.where(blocked, 0, (normals * to_lamp).sum(axis=1).clip(0)) / (1 + 0.03 * lamp_distance**2)
        colours[seen] = thing.texture.at(points) * (AMBIENT + (1 - AMBIENT) * 1.3 * light)[:, None]
        labels[seen] = thing.label
    colours = colours.clip(0, 1) ** (1 / 1.6) + rng.normal(0, 0.012, colours.shape)  # a display's curve, and grain
    image = np.rint(colours.clip(0, 1) * 255).astype(np.uint8).reshape(height, width, 3)
    return image, np.where(sky, np.inf, depth).reshape(height, width), labels.reshape(height, width)


def scene_row(seed: int, height: int, width: int) -> dict[str, Image.Image]:
    """A row of the data set."""
    image, depth, labels = render(np.random.default_rng(seed), height, width)
    millimetres = np.where(np.isfinite(depth), np.rint(np.where(np.isfinite(depth), depth, 0) * MILLIMETRES), 0)
    return {
        "image": Image.fromarray(image),
        "depth_map": Image.fromarray(millimetres.astype(np.uint16)),
        "annotation": Image.fromarray(labels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path, help="folder to write to; made if it does not exist")
    parser.add_argument("--num_train", type=int, default=400)
    parser.add_argument("--num_test", type=int, default=100)
    parser.add_argument("--height", type=int, default=120)
    parser.add_argument("--width", type=int, default=160)
    args = parser.parse_args()

    args.out_dir.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    features = datasets.Features(dict.fromkeys(("image", "depth_map", "annotation"), datasets.Image()))
    first_seed = 0
    for name, count in (("train", args.num_train), ("test", args.num_test)):
        seeds = tqdm(range(first_seed, first_seed + count), desc=f"Rendering {name}", unit="scene")
        rows = [scene_row(seed, args.height, args.width) for seed in seeds]
        path = args.out_dir / f"{name}.parquet"
        datasets.Dataset.from_list(rows, features=features).to_parquet(path)
        print(f"{path}: {count} scenes of {args.height} x {args.width} pixels")
        first_seed += count


if __name__ == "__main__":
    main()
