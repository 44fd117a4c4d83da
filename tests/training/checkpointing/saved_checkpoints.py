"""Checkpoints that are complete."""

from pathlib import Path

from accelerate import Accelerator

from dinov2_hf.training.checkpointing.checkpoints import CheckpointSaver


def save_checkpoint(accelerator: Accelerator, folder: Path, state: dict, save_total_limit: int) -> Path:
    saver = CheckpointSaver(accelerator, folder, save_total_limit)
    checkpoint = saver.save(state)
    saver.wait()
    return checkpoint
