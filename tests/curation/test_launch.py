"""Two processes of one launch, which share the shards and cluster together, make what one process makes."""

import os

import yaml
from pyarrow import parquet

from tests import forked_python


def test_two_processes_of_torchrun(planted, tmp_path, free_port):
    """On CPUs, of which the launcher tells Accelerate nothing. One of the processes alone would refuse the folder."""
    curated = {"path": str(planted.folder / "curated"), "retrieval": "cluster"}
    changes = {"curated": [curated], "num_clusters": 4, "min_cluster_queries": 0, "kmeans_iterations": 3}
    alone = planted.curate(**changes, output_dir=str(tmp_path / "alone"))
    arguments = planted.arguments(**changes)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({name: value for name, value in vars(arguments).items() if value is not None}))
    command = [
        "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port),
        "-m", "dinov2_hf.cli", "curate", "--config", str(recipe),
    ]  # fmt: skip
    done = forked_python.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("in the dataset") == 1
    rows = [
        parquet.read_table(folder / "stages" / "select" / "shard-00000-of-00001" / "selected.parquet").to_pylist()
        for folder in (alone.output_dir, tmp_path / "out")
    ]
    assert rows[0] == rows[1]
