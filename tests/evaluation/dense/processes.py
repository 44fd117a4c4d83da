"""Run by several processes in `test_processes.py`: each writes its metrics to a JSON file."""

import json
import sys
from pathlib import Path

from accelerate import PartialState

from dinov2_hf import DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.evaluation.depth import evaluate_depth
from dinov2_hf.evaluation.patch_knn import evaluate_patch_knn
from dinov2_hf.evaluation.segmentation import evaluate_segmentation
from dinov2_hf.features import FeatureExtractor
from tests.evaluation.dense.data import banded_images


def measure(model: DINOv2Model, learning_rate: float, processes: PartialState | None) -> dict[str, float]:
    """The protocols, on 5 images to measure on."""
    shared = {"num_steps": 4, "train_batch_size": 4, "learning_rate": learning_rate}
    extractor = FeatureExtractor(model, DINOv2ImageProcessor(), processes=processes)
    arguments = (extractor, banded_images(8), banded_images(5, seed=1))
    depth = {"depth_scale": 1000, "max_depth": 5.0, "crop_size": (32, 40)}
    trained = evaluate_segmentation(*arguments, image_size=32, **shared) | evaluate_depth(
        *arguments, **depth, **shared
    )
    return trained | evaluate_patch_knn(*arguments, image_size=32)


if __name__ == "__main__":
    processes = PartialState(cpu=True)
    folder = Path(sys.argv[1])
    model = DINOv2Model.from_pretrained(folder)
    found = [measure(model, learning_rate, processes) for learning_rate in (0.0, 0.01)]
    (folder / f"metrics{processes.process_index}.json").write_text(json.dumps(found))
    processes.destroy_process_group()
