"""The results of a finished run: models, numbers and pictures; and a report on them, loaded as by a user."""

import shlex
from typing import TYPE_CHECKING

from transformers import AutoImageProcessor, AutoModel, pipeline

from ...data import find_image_column, first_images
from ...pictures.patch_pca import save_patch_pca
from ...pictures.seen_images import picture_size
from ..run_folder import BEST, OVER_STEPS
from ..while_training.best_model import describe_best
from .model_export import export_models


if TYPE_CHECKING:
    from ..run import Run


def leave_results(run: "Run") -> None:
    """Write the results of each student. Every process must call it."""
    export_models(run)
    for output in run.outputs if run.accelerator.is_main_process else ():
        output.write_summary()
        folder, model_folder = output.folder, output.folder / "model"
        backbone = AutoModel.from_pretrained(model_folder)
        dataset, column = run.pictured
        column, num_channels = find_image_column(dataset, column), backbone.config.num_channels
        images = first_images(dataset, column, count=8, num_channels=num_channels)
        save_patch_pca(
            backbone,
            images,
            AutoImageProcessor.from_pretrained(model_folder),
            folder / "patch_pca.png",
            image_size=picture_size(backbone),
            device=run.accelerator.device,
        )
        print(f"\n{output.format_gains()}", end="")
        if num_channels == 3:  # pipelines read 3 channels
            extract = pipeline("image-feature-extraction", model=str(model_folder), device=run.accelerator.device)
            features = extract(images[0], return_tensors=True)
            print(f'pipeline("image-feature-extraction", model="{model_folder}") returns {tuple(features.shape)}')
        pictures = [folder / name for name in ("training_curves.png", "patch_pca.png", OVER_STEPS)]
        print(f"curves and pictures: {', '.join(str(path) for path in pictures if path.is_file())}")
        if "best" in run.state and run.best.student == output.name:
            print(f"best step: {describe_best(run.state['best'])}, in {folder / BEST}")
    step, last = run.state["step"], run.args.max_steps
    folder = shlex.quote(str(run.output_dir))
    if run.accelerator.is_main_process:
        print(f"a page of it all: dinov2-hf report {folder}")
    if step < last and run.accelerator.is_main_process:
        go_on = f"--output_dir {folder} --resume_from_checkpoint latest"
        print(f"stopped after {step} of {last} steps; {go_on} goes on to the last")
