"""
Pictures of the features of the averaged backbones, for the same few images at each evaluation, to watch features form.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import IterableDataset
from PIL import Image
from transformers import PreTrainedModel

from ...atomic_files import new_folder
from ...data import find_image_column, first_images
from ...pictures.attention_maps import attention_maps, draw_attention_maps
from ...pictures.figures import draw_beside_numbers
from ...pictures.grid import Cell, PictureGrid
from ...pictures.patch_pca import draw_patch_pca, patch_pca
from ...pictures.seen_images import prepare_pictures
from ...training.checkpointing.checkpoint_folders import checkpoint_name
from ...training.processes.sharded_weights import whole_copy
from ...training.students import prefixed
from ..run_folder import OF_STEPS, OVER_STEPS, PICTURES


if TYPE_CHECKING:
    from ..ending.outputs import Output
    from ..run import Run

COLOURS, PCA, ATTENTION = "patch_pca.npy", "patch_pca.png", "attention_maps.png"
PATCHES = 16  # a side, whatever the crops: all attention of one image of a ViT-g is 0.25 GB
MOST_HEADS, MOST_STEPS = 6, 8


class WatchedImages:
    """
    Images of `eval_data`, or else of the training data, evenly spaced over the data set; for a stream, the first ones.

    Args:
        count: number of images; 0 draws nothing.
    """

    def __init__(self, run: "Run", count: int):
        self.run, self.count = run, count
        self._images: list[Image.Image] | list[np.ndarray] | None = None

    def draw(self) -> None:
        """
        Draw them for each student, into `pictures/step_N` and to the tracker. Every process must call it; the main
        process draws. A failure is only a warning and does not end the run.
        """
        for output in self.run.outputs if self.count else ():
            backbone = whole_copy(self.run.module.exported[output.name].backbone)
            if self.run.accelerator.is_main_process:
                name = checkpoint_name(self.run.state["step"])
                draw_beside_numbers(output.folder / PICTURES, name, self._draw, output, backbone)

    def _draw(self, output: "Output", backbone: PreTrainedModel, folder: Path) -> None:
        backbone.to(self.run.accelerator.device)
        side = PATCHES * backbone.config.patch_size
        pixel_values, pictures = prepare_pictures(backbone, self._read(), self.run.image_processor, side)
        step = self.run.state["step"]
        earlier = {number: colours for number, colours in _drawn(folder.parent).items() if number < step}
        like = earlier[max(earlier)] if earlier else None
        if like is not None and like.shape[:3] != (len(pictures), PATCHES, PATCHES):  # from other images
            like = None
        colours = patch_pca(backbone, pixel_values, like=like)
        maps = attention_maps(backbone, pixel_values)
        title = f"{output.name} step {step}".strip()
        with new_folder(folder, OF_STEPS[PICTURES], overwrite=True) as partial:
            np.save(partial / COLOURS, np.rint(colours * 255).astype(np.uint8))
            draw_patch_pca(pictures, colours, partial / PCA, f"patch features, {title}")
            draw_attention_maps(pictures, maps, partial / ATTENTION, f"attention of CLS, {title}", MOST_HEADS)
        _draw_over_steps(pictures, _drawn(folder.parent), output.folder / OVER_STEPS)
        self._track(prefixed({Path(name).stem: folder / name for name in (PCA, ATTENTION)}, output.name))

    def _read(self) -> list[Image.Image] | list[np.ndarray]:
        if self._images is None:
            run = self.run
            dataset, column = run.pictured
            if (labelled := run.evaluations.labelled) is not None:
                dataset, column = labelled.queries, labelled.image_column
            if not isinstance(dataset, IterableDataset):  # the data may be sorted by class
                stride = max(len(dataset) // self.count, 1)
                dataset = dataset.select(range(0, len(dataset), stride))
            num_channels = run.plan.config.backbone_config.num_channels
            column = find_image_column(dataset, column)
            self._images = first_images(dataset, column, count=self.count, num_channels=num_channels)
        return self._images

    def _track(self, files: dict[str, Path]) -> None:
        """Send the pictures to the trackers that take images, each in its own way."""
        step = self.run.state["step"]
        for tracker in self.run.accelerator.trackers:
            for name, path in files.items():
                picture = Image.open(path).convert("RGB")
                if tracker.name == "tensorboard":
                    tracker.log_images({name: np.asarray(picture).transpose(2, 0, 1)[None]}, step=step)
                elif tracker.name in ("wandb", "swanlab"):
                    tracker.log_images({name: [picture]}, step=step)
                elif tracker.name in ("aim", "clearml"):
                    tracker.log_images({name: picture}, step=step)


def _drawn(folder: Path) -> dict[int, np.ndarray]:
    """The colours (n, h, w, 3) in [0, 1] of all existing pictures, by step."""
    found = {}
    for path in sorted(folder.glob(f"step_*/{COLOURS}")):
        found[int(path.parent.name.removeprefix("step_"))] = np.load(path) / 255
    return found


def _draw_over_steps(pictures: list[Image.Image], drawn: dict[int, np.ndarray], path: Path) -> None:
    """Draw each image next to its colours at up to `MOST_STEPS` steps, from the first to the last."""
    steps = [step for step in sorted(drawn) if len(drawn[step]) == len(pictures)]
    chosen = sorted({steps[round(place)] for place in np.linspace(0, len(steps) - 1, min(len(steps), MOST_STEPS))})
    rows = [
        [Cell(picture), *(Cell(drawn[step][number]) for step in chosen)] for number, picture in enumerate(pictures)
    ]
    PictureGrid(rows, headings=["", *(f"step {step}" for step in chosen)]).save(path)
