"""The list of images that did not decode."""

import json

from dinov2_hf.data import BatchReport, SkippedImage, SkippedImageLog


def report(*rows: str) -> BatchReport:
    return BatchReport(["row 0"] * 4, [SkippedImage(row, "the file is empty") for row in rows])


def test_every_row_is_written_once_and_counted_over_a_restart(tmp_path):
    path = tmp_path / "skipped.jsonl"
    log = SkippedImageLog(path, num_images=100, max_fraction=0.02)
    log.add(report())
    assert not path.exists()
    log.add(report("row 1", "row 2"))
    log.add(report("row 1"))
    assert [json.loads(line)["row_id"] for line in path.read_text().splitlines()] == ["row 1", "row 2"]
    assert log.complaint(log.reasons, num_seen=8) is None
    with path.open("a") as file:
        file.write('{"row_id": "row')  # a process was killed while it wrote
    again = SkippedImageLog(path, num_images=100, max_fraction=0.02)
    assert list(again.reasons) == ["row 1", "row 2"]
    assert again.complaint(["row 1", "row 2", "row 2", "row 1"], num_seen=8) is None
    again.add(report("row 3"))
    complaint = again.complaint(again.reasons, num_seen=8)
    assert "3 images could not be decoded" in complaint
    assert "row 3: the file is empty" in complaint


def test_a_stream_is_judged_by_what_was_seen_but_not_at_once(tmp_path):
    log = SkippedImageLog(tmp_path / "skipped.jsonl", num_images=None, max_fraction=0.001)
    log.add(report("row 1"))
    assert log.complaint(log.reasons, num_seen=4) is None
    log.add(report("row 2"))
    assert log.complaint(log.reasons, num_seen=8)
    assert log.complaint(log.reasons, num_seen=2000) is None
