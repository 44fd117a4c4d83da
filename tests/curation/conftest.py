from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dinov2_hf.curation import CurationArguments, curate

from .scenes import write_scenes


def unit(*angles: float) -> np.ndarray:
    """(len(angles), 2) vectors at these angles in degrees: the cosine of two is that of the angle between them."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@dataclass
class PlantedPool:
    """Pool 0 to 11, curated 0 and 1, benchmarks 0; one vector for each, so that what must happen is known.

    Images 0, 1, 2 are copies (7 degrees apart); 3 and 4 are copies; 5 resembles the benchmark (60 degrees: cosine
    0.5), 6 is a copy of 5 and does not itself. 7 to 11 lie apart from all, in dimensions of their own.
    """

    folder: Path

    def arguments(self, **changes) -> CurationArguments:
        values = {
            "uncurated": str(self.folder / "pool"),
            "curated": str(self.folder / "curated"),
            "benchmarks": str(self.folder / "benchmark"),
            "output_dir": str(self.folder / "out"),
            "embedder": str(self.folder / "vectors"),
            "num_shards": 3,
            "retrieval_num_neighbors": 2,
            "progress": False,
        }
        return CurationArguments(**{**values, **changes})

    def curate(self, stage=None, rank=None, world_size=None, **changes):
        return curate(self.arguments(**changes), stage, rank=rank, world_size=world_size)


@pytest.fixture(scope="session")
def planted_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    write_scenes(folder / "pool", range(12))
    write_scenes(folder / "curated", range(100, 102))
    write_scenes(folder / "benchmark", range(200, 201))
    vectors = np.zeros((12, 14), np.float32)
    vectors[0:3, :2] = unit(0, 7, 14)
    vectors[3:5, 2:4] = unit(0, 7)
    vectors[5:7, 4:6] = unit(60, 100)
    vectors[7:12, 6:11] = np.eye(5)
    curated = np.zeros((2, 14), np.float32)
    curated[0, [6, 7, 13]] = 1, 0.5, 1  # nearest: 7, then 8
    curated[1, [0, 6, 13]] = 1, 0.5, 1  # nearest: 0, then 7
    benchmark = np.zeros((1, 14), np.float32)
    benchmark[0, 4] = 1
    (folder / "vectors").mkdir()
    for name, array in (("pool", vectors), ("curated", curated), ("benchmark", benchmark)):
        np.save(folder / "vectors" / f"{name}.npy", array)
    return folder


@pytest.fixture
def planted(planted_files, tmp_path) -> PlantedPool:
    for name in ("pool", "curated", "benchmark", "vectors"):
        (tmp_path / name).symlink_to(planted_files / name)
    return PlantedPool(tmp_path)
