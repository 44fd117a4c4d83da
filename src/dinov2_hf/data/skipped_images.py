"""The list of images that could not be decoded, and the limit for their number."""

import json
from collections.abc import Iterable
from pathlib import Path

from .collator import BatchReport


class SkippedImageLog:
    """
    Writes the images that a process had to skip to a file of JSON lines, each row once.

    Args:
        path: the file of this process; existing entries (of a resumed run) count.
        num_images: rows of the dataset, or `None` for a stream, where the images seen so far are used instead.
        max_fraction: share of the images, in [0, 1], that may be skipped.
    """

    def __init__(self, path: Path, *, num_images: int | None, max_fraction: float):
        self.path = path
        self.num_images = num_images
        self.max_fraction = max_fraction
        self.reasons: dict[str, str] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:  # torn by a killed process
                    continue
                self.reasons[record["row_id"]] = record["reason"]

    def add(self, report: BatchReport) -> None:
        """Note the images of a batch that were skipped."""
        new = [image for image in report.skipped if image.row_id not in self.reasons]
        if new:
            with self.path.open("a") as file:
                for image in new:
                    self.reasons[image.row_id] = image.reason
                    file.write(json.dumps(image._asdict()) + "\n")

    def complaint(self, row_ids: Iterable[str], num_seen: int) -> str | None:
        """
        One sentence if too many images were skipped, else `None`.

        Args:
            row_ids: the rows skipped by all processes (`reasons` of each), with repetitions or without.
            num_seen: images that all processes have seen.
        """
        num_skipped = len(set(row_ids))
        # The first images of a stream are too few for a fraction.
        total = self.num_images if self.num_images is not None else max(num_seen, 1000)
        if num_skipped <= self.max_fraction * total:
            return None
        example = ""
        if self.reasons:
            row_id, reason = next(reversed(self.reasons.items()))
            example = f", the last being {row_id}: {reason}"
        return (
            f"{num_skipped} images could not be decoded, more than `max_skipped_fraction` ({self.max_fraction}) of"
            f" {total} allows; {self.path} lists them{example}."
        )
