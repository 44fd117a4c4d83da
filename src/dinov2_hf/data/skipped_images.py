"""The list of images that could not be decoded, and the point at which there are too many of them."""

import json
from pathlib import Path

from .collator import BatchReport


class SkippedImageLog:
    """
    Writes every row that was skipped to a file of JSON lines, once, and counts.

    Args:
        path: the file; what is in it already (a resumed run) counts.
        num_images: rows of the dataset, or `None` for a stream, where images seen so far stand in for it.
        max_fraction: share of the rows, in [0, 1], that may be skipped. Each process counts the rows that it met.
    """

    def __init__(self, path: Path, *, num_images: int | None, max_fraction: float):
        self.path = path
        self.num_images = num_images
        self.max_fraction = max_fraction
        self.num_seen = 0
        self.reasons: dict[str, str] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                record = json.loads(line)
                self.reasons[record["row_id"]] = record["reason"]

    def add(self, report: BatchReport) -> None:
        """Note the images of a batch that was not what the sampler asked for."""
        self.num_seen += len(report.row_ids) + len(report.skipped)
        new = [image for image in report.skipped if image.row_id not in self.reasons]
        if new:
            with self.path.open("a") as file:
                for image in new:
                    self.reasons[image.row_id] = image.reason
                    file.write(json.dumps(image._asdict()) + "\n")

    @property
    def too_many(self) -> bool:
        # A stream's first images are too few to judge a fraction by.
        total = self.num_images if self.num_images is not None else max(self.num_seen, 1000)
        return len(self.reasons) > self.max_fraction * total

    @property
    def complaint(self) -> str:
        """One sentence that says how many were skipped, with the last as an example."""
        row_id, reason = next(reversed(self.reasons.items()))
        return (
            f"{len(self.reasons)} images could not be decoded, more than `max_skipped_fraction` ({self.max_fraction})"
            f" allows; {self.path} lists them, the last being {row_id}: {reason}."
        )
