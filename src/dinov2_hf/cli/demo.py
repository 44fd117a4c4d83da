"""`dinov2-hf demo`."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from ..model_source import MODEL, split_checkpoint
from ..public_names import is_hub_name
from ..value_ranges import AT_LEAST_ONE, NOT_NEGATIVE


MAX_IMAGE_PIXELS = 50_000_000  # limit for a picture of a visitor: 150 MB when it is decoded
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def demo(
    model: str,
    *,
    depth: str | None = None,
    segmentation: str | None = None,
    gallery: str | None = None,
    gallery_split: str | None = None,
    image_size: Annotated[int | None, AT_LEAST_ONE] = None,
    host: str = "127.0.0.1",
    port: Annotated[int | None, AT_LEAST_ONE] = None,
    max_upload_mb: Annotated[int, AT_LEAST_ONE] = 20,
    max_image_pixels: Annotated[int, AT_LEAST_ONE] = MAX_IMAGE_PIXELS,
    batch_size: Annotated[int | None, AT_LEAST_ONE] = None,
    num_workers: Annotated[int | None, NOT_NEGATIVE] = None,
    device: str | None = None,
) -> None:
    """Serve a page for the browser: upload pictures, click a patch, see similar patches, search in your images.

    Args:
        model: any vision transformer: model folder, run folder, checkpoint of a run, Hub id, or file of the original.
        depth: model folder or Hub id with a depth head, as evaluate writes.
        segmentation: the same with a segmentation head.
        gallery: images to search in: a folder, parquet, a saved dataset, tars or a Hub name.
        gallery_split: split of --gallery, if it has splits (default: train).
        image_size: side of the square to see, in pixels; larger is finer (default: at least 16 patches).
        host: address to listen on; 0.0.0.0 lets other machines upload to this one.
        port: (default: the first free one from 7860).
        max_upload_mb: larger files are refused.
        max_image_pixels: pictures of more pixels are refused.
        batch_size: images of --gallery in a forward pass (default: 64).
        num_workers: processes that decode images of --gallery (default: 0).
        device: (default: the first accelerator, or the CPU).
    """
    for package in ("gradio", "faiss"):
        if find_spec(package) is None:
            raise ImportError(f'the demo needs {package}, which is not installed: pip install "dinov2_hf[demo]".')
    from transformers.utils import logging as transformers_logging

    from ..data import find_image_column, load_image_dataset, set_max_image_pixels
    from ..devices import find_device
    from ..features import FeatureExtractor
    from ..model_source import find_model
    from ..options import given, refuse
    from ..pictures.seen_images import picture_size
    from .backbone import load_backbone

    set_max_image_pixels(max_image_pixels)
    if gallery is None:
        refuse(
            given(gallery_split=gallery_split, batch_size=batch_size, num_workers=num_workers),
            "`--gallery` is not given",
        )
    device = find_device(device)
    for source in (depth, segmentation):
        if source is not None:
            find_model(source, folder_only=True)
    find_model(model)

    from ..demo.app import Demo, build_app, launch_app
    from ..demo.dense_heads import load_head
    from ..demo.gallery import build_gallery
    from ..demo.sight import look

    transformers_logging.disable_progress_bar()
    network, image_processor = load_backbone(model)
    num_channels = getattr(network.config, "num_channels", 3)
    if num_channels != 3:
        raise ValueError(f"{model} is a network for {num_channels} channels, but the demo shows pictures of 3.")
    network.to(device)
    image_size = image_size or picture_size(network)
    samples = sample_pictures()
    look(network, image_processor, samples[0][0], image_size)  # an error in the size is found now
    heads = {
        task: load_head(source, task, device)
        for task, source in (("depth", depth), ("segmentation", segmentation))
        if source is not None
    }
    searched = None
    if gallery is not None:
        dataset = load_image_dataset(gallery, split=gallery_split or "train")
        extractor = FeatureExtractor(
            network, image_processor, image_column=find_image_column(dataset, None), progress=True,
            **given(batch_size=batch_size, num_workers=num_workers),
        )  # fmt: skip
        searched = build_gallery(extractor, dataset)
    if host not in LOOPBACK:
        print(f"listening on {host}: whoever reaches this machine can upload pictures to it")
    name = shown_name(model)
    page = build_app(Demo(network, image_processor, name, image_size, gallery=searched, samples=samples, **heads))
    launch_app(page, host=host, port=port, max_upload_mb=max_upload_mb, say=partial(print, flush=True))


def shown_name(model: str) -> str:
    """The name of the model for visitors: an id on the Hub, or only the last part of a path."""
    if is_hub_name(model):
        return model
    path = Path(model).expanduser().absolute()
    checkpoint = split_checkpoint(path)
    if checkpoint:
        run, student = checkpoint[0].parents[1], checkpoint[1]
        return f"{run.name} {student}".strip()
    return path.parent.name if path.name == MODEL else path.name


def sample_pictures(count: int = 6) -> list:
    """Rendered scenes, with their names."""
    from ..examples.write_rendered_scenes import scene_row

    return [(scene_row(seed, 300, 400)["image"], f"scene {seed}") for seed in range(count)]
