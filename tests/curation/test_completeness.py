"""An image that is lost on the way stops the run; so does one with two fates."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dinov2_hf.curation.report.accounting import check_complete, only_compared, written_row_ids


STEPS = ("ingest", "embed", "deduplicate", "relative_deduplicate", "retrieve")


def run_until_build(planted, **changes):
    for step in STEPS:
        curation = planted.curate(step, **changes)
    return curation


def rewrite(path, change) -> None:
    """Change a table of a finished shard, and its manifest, as a fault of a stage would leave them."""
    table = change(parquet.read_table(path))
    parquet.write_table(table, path)
    manifest = path.parent / "manifest.json"
    record = json.loads(manifest.read_text())
    record["files"][path.name]["bytes"] = path.stat().st_size
    manifest.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("stage", "shard", "source"),
    [("deduplicate", 0, "pool"), ("select", 0, "pool")],
)
def test_a_lost_image_stops_the_run(planted, stage, shard, source):
    curation = run_until_build(planted)
    rewrite(curation.folders[stage].shard(shard) / "dropped.parquet", lambda table: table.slice(1))
    with pytest.raises(
        ValueError, match=f"1 of 12 images of the source '{source}' are neither in the dataset nor drop"
    ):
        planted.curate()
    assert not (curation.output_dir / "report.json").exists()


def test_an_image_that_is_kept_and_dropped_stops_the_run(planted):
    curation = run_until_build(planted)

    def twice(table):
        row = {**table.slice(0, 1).to_pylist()[0], "row_id": 7}
        return pa.concat_tables([table, pa.Table.from_pylist([row], schema=table.schema)])

    rewrite(curation.folders["select"].shard(0) / "dropped.parquet", twice)
    with pytest.raises(ValueError, match=r"1 of 12 images of the source 'pool' are both .* \(rows 7\)"):
        planted.curate()


@pytest.mark.slow
def test_a_lost_curated_image_stops_the_run_whether_included_or_not(planted):
    for include in (True, False):
        curation = planted.curate(include_curated=include, output_dir=str(planted.folder / str(include)))
        times = np.zeros(len(curation.sources), np.uint8)
        for path in curation.output_dir.glob("stages/*/shard-*/dropped.parquet"):
            if "report" not in str(path):
                np.add.at(times, parquet.read_table(path)["row_id"].to_numpy(), 1)
        written = written_row_ids(curation)
        check_complete(curation, times, written)
        assert only_compared(curation).tolist() == ([14] if include else [14, 12, 13])
        if include:
            with pytest.raises(ValueError, match=r"1 of 2 images of the source 'curated' are neither .* \(rows 1\)"):
                check_complete(curation, times, written[written != 13])


def test_files_that_hold_fewer_rows_than_were_written_are_found(planted):
    curation = planted.curate()
    path = next(curation.output_dir.glob("stages/build/shard-*/00000.parquet"))
    parquet.write_table(parquet.read_table(path).slice(1), path)
    with pytest.raises(ValueError, match="holds . images, but notes ."):
        written_row_ids(curation)
