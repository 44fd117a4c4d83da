"""Moves batches to the device of the training, ready for the network."""

from collections.abc import Callable, Iterator

import torch

from .collator import BatchReport


Tensors = dict[str, torch.Tensor]
Batches = Iterator[tuple[Tensors, BatchReport]]
ON_CPU = "distortions"  # numbers that control the work of the device
CROPS = ("global_crops", "local_crops")


def batches_on_device(
    batches: Batches,
    device: torch.device,
    prepare: Callable[[Tensors], Tensors] | None,
    crops_dtype: torch.dtype | None = None,
) -> Batches:
    """Copy batches to a device, and do the rest of their augmentation there.

    For a GPU this is done one batch ahead and on a separate stream, in parallel to the training.

    Args:
        batches: from `build_loader`, in pinned memory for a GPU.
        device: device of the training.
        prepare: `on_device` of the augmentation, which gets the batch on the device, but `distortions` on the CPU;
            None: there is nothing left to do.
        crops_dtype: the dtype to which finished crops are rounded; None does not round them.
    """

    def moved(batch: Tensors) -> Tensors:
        there = {
            name: value if name == ON_CPU else value.to(device, non_blocking=True) for name, value in batch.items()
        }
        there = prepare(there) if prepare else there
        return there | {name: there[name].to(crops_dtype) for name in CROPS if crops_dtype}

    if device.type != "cuda":
        for batch, report in batches:
            yield moved(batch), report
        return
    stream = torch.cuda.Stream(device)

    def copied() -> tuple[Tensors, BatchReport, torch.cuda.Event] | None:
        upcoming = next(batches, None)
        if upcoming is None:
            return None
        with torch.cuda.stream(stream):
            return moved(upcoming[0]), upcoming[1], stream.record_event()

    current = copied()
    while current is not None:
        batch, report, done = current
        current = copied()
        training = torch.cuda.current_stream(device)
        training.wait_event(done)
        for value in batch.values():
            # Otherwise the next batch could get this memory while the training still reads it.
            value.record_stream(training)
        yield batch, report
